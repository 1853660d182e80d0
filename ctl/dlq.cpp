// outboxctl dlq: dead letters, of consumer groups and of sinks.
#include "ctl/dlq.hpp"

#include <algorithm>
#include <stdexcept>

#include "ctl/streams.hpp"
#include "ctl/table.hpp"

namespace outbox::ctl {

std::vector<dlq_place> places(context &context, const dlq_request &wanted) {
    std::vector<dlq_place> found;
    auto add = [&](const std::string &topic, const std::string &group) {
        found.push_back({topic, group, dead_letters(context.address().secret_text(), topic, group)});
    };
    if (!wanted.topic.empty())
        require_topic(wanted.topic);
    if (!wanted.topic.empty() && !wanted.group.empty()) {
        try {
            add(wanted.topic, wanted.group);
        } catch (const std::invalid_argument &why) {
            throw failure(exit_code::usage, why.what());
        }
        return found;
    }
    for (const auto &stream : dead_letter_streams(context.redis()))
        if ((wanted.topic.empty() || stream.topic == wanted.topic) && (wanted.group.empty() || stream.group == wanted.group))
            try {
                add(stream.topic, stream.group);
            } catch (const std::invalid_argument &) {
                // a group whose name the library does not take is none of its own
            }
    return found;
}

void each(dead_letters &letters, const std::function<bool(const dead_letter &)> &visit) {
    std::string after = "0";
    for (auto page = letters.list(100, after); !page.empty(); page = letters.list(100, after))
        for (const auto &letter : page) {
            if (!visit(letter))
                return;
            after = letter.id;
        }
}

bool is_meant(const dead_letter &letter, const std::string &id) { return letter.id == id || letter.field("event_id") == id; }

bool is_event_id(const std::string &text) {
    return text.size() == 36 && std::all_of(text.begin(), text.end(), [](char c) {
               return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || c == '-';
           });
}

json to_json(const dead_letter &letter, const std::string &group) {
    json fields = json::object();
    for (const auto &[name, value] : letter.fields)
        fields.emplace(name, value);
    return {{"topic", letter.topic},
            {"group", group},
            {"id", letter.id},
            {"position", letter.position},
            {"stream", letter.stream},
            {"error", letter.error},
            {"attempts", letter.attempts},
            {"consumer", letter.consumer},
            {"died_at", time_of(letter.died_at.time_since_epoch().count())},
            {"parked", letter.parked},
            {"fields", std::move(fields)}};
}

json sink_dead_letters(database &db, const dlq_request &wanted, const std::string &event_id) {
    if (!wanted.group.empty())
        return json::array();
    db.require_extension();
    return db.rows(R"(
        SELECT s.name AS sink, d.event_id, d.topic, d.event_type, d.aggregate_type, d.aggregate_id, d.version, d.occurred_at,
               d.headers, d.payload, d.position, d.attempts, d.error, d.failed_at, d.dead_at
          FROM outbox.dead_letter d LEFT JOIN outbox.sink s ON s.id = d.sink_id
         WHERE ($1 = '' OR d.topic = $1) AND ($2 = '' OR d.event_id::text = $2) ORDER BY d.dead_at, d.seq LIMIT $3)",
                   {wanted.topic, event_id, std::to_string(wanted.limit)});
}

void add_dlq_options(CLI::App &command, dlq_request &wanted) {
    command.add_option("--topic", wanted.topic, "only those of this topic")->type_name("TOPIC");
    command.add_option("--group", wanted.group, "only those of this consumer group")->type_name("GROUP");
}

void add_dlq(CLI::App &app, options &common, action &chosen) {
    CLI::App *dlq = app.add_subcommand("dlq", "Dead letters: list, show, redrive, discard");
    dlq->require_subcommand(1);
    dlq->footer("\"outboxctl dlq COMMAND --help\" shows examples.");
    add_dlq_ls(*dlq, common, chosen);
    add_dlq_show(*dlq, common, chosen);
    add_dlq_redrive(*dlq, common, chosen);
    add_dlq_discard(*dlq, common, chosen);
}

} // namespace outbox::ctl
