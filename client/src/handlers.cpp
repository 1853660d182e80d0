#include "src/handlers.hpp"

#include <atomic>
#include <stdexcept>

#include <outbox/emit.hpp>

#include "src/entry.hpp"
#include "src/event_access.hpp"
#include "src/inbox.hpp"
#include "src/mailbox.hpp"
#include "src/text.hpp"

namespace outbox {

// Shared by the copies of a token; the delivery is in its hands until the first of them speaks, or the last one is gone.
struct completion::state {
    state(detail::delivery *one, std::shared_ptr<detail::mailbox> to) : event(one->event), delivery(one), mailbox(std::move(to)) {}
    ~state() { finish({detail::outcome::kind::failed, "the completion token was dropped without a word", {}}); }

    void finish(detail::outcome end) noexcept {
        if (detail::delivery *one = delivery.exchange(nullptr)) {
            one->end = std::move(end);
            mailbox->post(one);
        }
    }

    outbox::event event; // a copy: the delivery may be gone before the token is
    std::atomic<detail::delivery *> delivery;
    std::shared_ptr<detail::mailbox> mailbox;
};

void completion::done() const noexcept { state_->finish({}); }

void completion::failed(std::string_view why) const noexcept {
    state_->finish({detail::outcome::kind::failed, std::string(why), {}});
}

void completion::failed(std::exception_ptr why) const noexcept {
    try {
        if (why)
            std::rethrow_exception(why);
        failed("failed without an exception");
    } catch (...) {
        state_->finish(detail::outcome_of_exception());
    }
}

const event &completion::event() const noexcept { return state_->event; }

namespace detail {

outcome outcome_of_exception() noexcept {
    try {
        throw;
    } catch (const retry_after &later) {
        return {outcome::kind::later, later.what(), std::max(later.delay(), std::chrono::milliseconds(0))};
    } catch (const inbox_unavailable &cause) {
        return {outcome::kind::unavailable, cause.what(), {}};
    } catch (const reject &never) {
        return {outcome::kind::rejected, never.what(), {}};
    } catch (const std::exception &cause) {
        return {outcome::kind::failed, cause.what(), {}};
    } catch (...) {
        return {outcome::kind::failed, "an exception that is no std::exception", {}};
    }
}

void handlers::add(std::string_view pattern, int version, any handler) {
    if (!is_pattern(pattern))
        throw std::invalid_argument("\"" + printable(pattern) +
                                    "\" is no event type and no pattern of one: segments of A-Z a-z 0-9 _ - or \"*\", "
                                    "separated by dots, such as \"wallet.created\" or \"billing.*\"");
    if (!std::visit([](const auto &function) { return static_cast<bool>(function); }, handler))
        throw std::invalid_argument("the handler of \"" + std::string(pattern) + "\" is an empty function");
    if (!routes_.add(pattern, version, handlers_.size()))
        throw std::invalid_argument("\"" + std::string(pattern) + "\"" +
                                    (version > 0 ? " in version " + std::to_string(version) : std::string()) +
                                    " has a handler already: one event goes to one handler");
    need_transactions_ |= std::holds_alternative<consumer::transaction_handler>(handler);
    any_async_ |= std::holds_alternative<consumer::async_handler>(handler);
    handlers_.push_back(std::move(handler));
}

bool handlers::route(delivery &one, bool unhandled_dies) const {
    auto found = routes_.find(one.event.type(), one.event.version());
    switch (found.is) {
    case routes::verdict::found:
        one.handler = found.handler;
        return true;
    case routes::verdict::unknown_version:
        one.reason = "no contract of " + std::string(one.event.type()) + " is of version " + std::to_string(one.event.version());
        return true;
    case routes::verdict::unhandled:
        break;
    }
    if (unhandled_dies)
        one.reason = "no handler is for " + std::string(one.event.type());
    return unhandled_dies;
}

bool handlers::call(delivery &one, transaction_runner *transactions, const std::shared_ptr<mailbox> &mailbox) const {
    const any &handler = handlers_[one.handler];
    const event &event = one.event;
    one.end = {};
    if (std::string reason = check_json(event_access::fields(event)); !reason.empty()) {
        one.end = {outcome::kind::rejected, std::move(reason), {}};
        return true;
    }
    handling context(event);
    try {
        if (auto *plain = std::get_if<consumer::handler>(&handler)) {
            (*plain)(event);
        } else if (auto *transactional = std::get_if<consumer::transaction_handler>(&handler)) {
            if (!transactions->run(event, *transactional))
                one.end.is = outcome::kind::duplicate;
        } else {
            auto state = std::make_shared<completion::state>(&one, mailbox);
            // the event that the token keeps, since the delivery may be gone before the handler returns
            const outbox::event &kept = state->event;
            handling also(kept);
            completion token(std::move(state));
            try {
                std::get<consumer::async_handler>(handler)(kept, token);
            } catch (...) {
                token.failed(std::current_exception());
            }
            return false;
        }
    } catch (...) {
        one.end = outcome_of_exception();
    }
    return true;
}

} // namespace detail
} // namespace outbox
