// What an event's accessors parse when they are first asked.
#include <outbox/event.hpp>

#include <outbox/error.hpp>

#include "src/entry.hpp"
#include "src/text.hpp"

namespace outbox {

std::chrono::sys_time<std::chrono::microseconds> event::occurred_at() const {
    std::chrono::sys_time<std::chrono::microseconds> time{};
    if (!detail::parse_time(fields_.occurred_at, time))
        throw malformed("occurred_at \"" + detail::printable(fields_.occurred_at, 100) +
                        "\" is not a time in RFC 3339 and UTC");
    return time;
}

const nlohmann::json &event::headers() const {
    if (!headers_json_) {
        // They are few, so they are checked again wherever they come from: header() prints what is in them.
        if (std::string reason = detail::check_headers(fields_.headers); !reason.empty())
            throw malformed(reason);
        headers_json_ = std::make_shared<nlohmann::json>(
            fields_.headers.empty() ? nlohmann::json::object()
                                    : nlohmann::json::parse(fields_.headers));
    }
    return *headers_json_;
}

std::optional<std::string> event::header(std::string_view name) const {
    const nlohmann::json &all = headers();
    auto found = all.find(name);
    if (found == all.end())
        return std::nullopt;
    return found->is_string() ? found->get<std::string>() : found->dump();
}

const nlohmann::json &event::payload() const {
    if (!payload_json_) {
        // A handler's event has passed check_json already: what was found good is not looked at twice.
        auto parsed = nlohmann::json::parse(fields_.payload, nullptr, false);
        if (parsed.is_discarded())
            throw malformed(detail::check_payload(fields_.payload));
        payload_json_ = std::make_shared<nlohmann::json>(std::move(parsed));
    }
    return *payload_json_;
}

std::string event::correlation_id() const {
    auto found = headers().find("correlation_id");
    // One that was emitted from what is not set is none.
    bool none = found == headers().end() || found->is_null() || *found == "";
    return none ? std::string(fields_.id) : *header("correlation_id");
}

} // namespace outbox
