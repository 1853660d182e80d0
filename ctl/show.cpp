// outboxctl show: the whole life of an event. What cannot be known is said.
#include <algorithm>

#include "ctl/context.hpp"
#include "ctl/life.hpp"
#include "ctl/table.hpp"

namespace outbox::ctl {

// Event ids as PostgreSQL writes them: what else it takes for a UUID (braces, capitals) would not be found in Redis.
static std::string canonical(database &db, const std::string &text) {
    std::string id;
    for (char c : text) {
        bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
        if (hex)
            id += c;
        else if (c != '-' && c != '{' && c != '}')
            id += "?";
    }
    if (id.size() != 32 || id.find('?') != id.npos)
        throw failure(exit_code::usage, "\"" + text + "\" is no event id",
                      "An event id is a UUID, as outbox.emit() returns it.");
    return db.row("SELECT $1::uuid::text AS id", {id}).at("id");
}

// Without its place in Redis. `native`: the tick carries this database's anchor, or there is none and nothing was restored,
// so the transaction's number means something here.
static json find_events(database &db, const std::string &id, const std::string &sink) {
    return db.rows(R"(
        SELECT e.event_id, e.event_type, e.topic, e.aggregate_type, e.aggregate_id, e.version, e.occurred_at,
               e.headers::text AS headers, e.payload::text AS payload, e.status, e.stream, e.position, e.attempts, e.last_error,
               e.published_at, e.xid::text AS xid, l.ms AS tick_ms, l.n AS tick_n,
               l.ms IS NOT NULL OR (e.position IS NULL AND NOT EXISTS (SELECT FROM outbox.sink WHERE restored)) AS native
          FROM outbox.sink_event e JOIN outbox.sink s ON s.id = e.sink_id
         CROSS JOIN LATERAL outbox.locate(s.id, outbox.anchor(), e.xid, e.seq, s.start_ms) l
         WHERE e.event_id = $1 AND e.sink = $2 ORDER BY e.seq)",
                   {id, sink});
}

// The event while it waits for its time. There is no such view before version 1.1.
static json find_delayed(database &db, const std::string &id) {
    if (!db.row("SELECT to_regclass('outbox.delayed_event') IS NOT NULL AS there").at("there").get<bool>())
        return json::array();
    return db.rows(R"(
        SELECT event_id, event_type, topic, aggregate_type, aggregate_id, version, occurred_at, emitted_at, deliver_at,
               extract(epoch FROM deliver_at - clock_timestamp())::float8 AS seconds, headers::text AS headers, payload::text AS payload
          FROM outbox.delayed_event WHERE event_id = $1 ORDER BY seq)",
                   {id});
}

static json find_dead_letters(database &db, const std::string &id) {
    return db.rows(R"(
        SELECT s.name AS sink, d.topic, d.event_type, d.position, d.attempts, d.error, d.failed_at, d.dead_at
          FROM outbox.dead_letter d LEFT JOIN outbox.sink s ON s.id = d.sink_id WHERE d.event_id = $1 ORDER BY d.dead_at)",
                   {id});
}

// It is committed, or its row could not be seen. When is kept only if the server was told to.
static json transaction_of(database &db, const json &event) {
    json transaction = {{"xid", event.at("xid")}, {"committed_at", nullptr}, {"detail", nullptr}};
    if (!event.at("native").get<bool>()) {
        transaction["detail"] = "of the database that this one was restored from, whose transactions are not known here";
        return transaction;
    }
    bool kept = db.row("SELECT pg_catalog.current_setting('track_commit_timestamp') = 'on' AS kept").at("kept");
    if (kept)
        transaction["committed_at"] =
            db.row("SELECT pg_catalog.pg_xact_commit_timestamp($1::xid8::xid) AS at", {event.at("xid").get<std::string>()})
                .at("at");
    if (transaction["committed_at"].is_null())
        transaction["detail"] = kept ? "when is no longer kept" : "when is not kept: track_commit_timestamp is off";
    return transaction;
}

static json tick_of(const json &event) {
    if (event.at("tick_ms").is_null())
        return nullptr;
    return {{"ms", event.at("tick_ms")},
            {"recorded_at", time_of(event.at("tick_ms").get<std::int64_t>())},
            {"index", event.at("tick_n")}};
}

// The tick's position is the event's, unless it was moved.
static bool was_moved(const json &event) {
    if (event.at("tick_ms").is_null() || event.at("position").is_null())
        return false;
    return event.at("position") != event.at("tick_ms").dump() + "-" + event.at("tick_n").dump();
}

static std::string text_or_empty(const json &value) { return value.is_null() ? std::string() : value.get<std::string>(); }

static json life_of(context &context, const json &event) {
    json life = event;
    for (const char *inner : {"xid", "tick_ms", "tick_n", "native"})
        life.erase(inner);
    life["transaction"] = transaction_of(context.database(), event);
    life["tick"] = tick_of(event);
    life["moved"] = was_moved(event);
    life["entry"] = {{"state", "unknown"}, {"reason", "the event has no position yet"}};
    life["groups"] = json::array();
    if (event.at("position").is_null())
        return life;
    whereabouts at{event.at("event_id"), event.at("topic"), event.at("position"), text_or_empty(event.at("aggregate_type")),
                   text_or_empty(event.at("aggregate_id"))};
    try {
        life["entry"] = entry_of(context.redis(), at);
        if (event.at("status") != "dead_letter")
            life["groups"] = groups_of(context, at);
    } catch (const outbox::error &error) {
        life["entry"] = {{"state", "unknown"}, {"reason", error.what()}};
        life["groups"] = nullptr;
    }
    return life;
}

static void add_group(facts &facts, const json &group) {
    std::string state = group.at("state"), text = state;
    colour is = state == "dead_lettered" ? colour::bad : state == "handled" ? colour::good : colour::none;
    auto given = [&] {
        return " to " + plain(group.at("consumer")) + ", delivered " + plain(group.at("deliveries")) +
               (group.at("deliveries") == 1 ? " time" : " times") + ", idle for " + duration(group.at("idle_seconds")) +
               (group.at("attempts").is_null() ? "" : ", attempts " + plain(group.at("attempts")));
    };
    if (state == "pending")
        text = "pending: given" + given();
    else if (state == "not_delivered")
        text = "not delivered yet";
    else if (state == "dead_lettered")
        text = "dead letter " + plain(group.at("dead_letter").at("id")) + " since " +
               plain(group.at("dead_letter").at("died_at")) + " after " +
               counted(group.at("attempts").get<std::int64_t>(), "attempt") + ": " +
               plain(group.at("dead_letter").at("error"));
    else if (state == "redriven")
        text = "redriven, " + (group.at("consumer").is_null() ? plain(group.at("detail")) : "given again" + given());
    else if (state == "parked")
        text = "parked behind the dead letter of its aggregate";
    else if (state == "handled")
        text = "handled and acknowledged";
    else
        text = plain(group.at("detail"));
    facts.add("group " + plain(group.at("group")), text, is);
}

static void add_what_it_is(facts &facts, const json &event) {
    facts.add("event", plain(event.at("event_id")), colour::bold);
    facts.add("type", plain(event.at("event_type")) + ", version " + plain(event.at("version")));
    facts.add("topic", plain(event.at("topic")));
    facts.add("aggregate", event.at("aggregate_id").is_null()
                               ? "-"
                               : (event.at("aggregate_type").is_null() ? "" : plain(event.at("aggregate_type")) + " ") +
                                     plain(event.at("aggregate_id")));
    facts.add("occurred", plain(event.at("occurred_at")));
}

static std::string render_delayed(const json &event, bool colours) {
    facts facts;
    add_what_it_is(facts, event);
    facts.add("emitted", plain(event.at("emitted_at")));
    bool overdue = event.at("seconds") < 0;
    facts.add("status",
              "delayed until " + plain(event.at("deliver_at")) +
                  (overdue ? ": overdue, " + duration(-event.at("seconds").get<double>())
                           : ", in " + duration(event.at("seconds"))),
              overdue ? colour::bad : colour::warning);
    facts.add("headers", plain(event.at("headers")));
    facts.add("payload", plain(event.at("payload")));
    return facts.text(colours);
}

static std::string render(const json &event, bool colours) {
    facts facts;
    std::string status = event.at("status");
    add_what_it_is(facts, event);
    const json &transaction = event.at("transaction");
    facts.add("transaction", plain(transaction.at("xid")) + ", committed" +
                                 (transaction.at("committed_at").is_null() ? "; " + plain(transaction.at("detail"))
                                                                           : " " + plain(transaction.at("committed_at"))));
    if (event.at("tick").is_null())
        facts.add("tick", event.at("position").is_null()
                              ? "none yet"
                              : "not known: recorded by the database that this one was restored from");
    else
        facts.add("tick", plain(event.at("tick").at("recorded_at")) + ", event " + plain(event.at("tick").at("index")) +
                              " of its batch");
    facts.add("status",
              status + (event.at("published_at").is_null() ? "" : ", known since " + plain(event.at("published_at"))),
              status == "published"                           ? colour::good
              : status == "failed" || status == "dead_letter" ? colour::bad
                                                              : colour::warning);
    if (!event.at("last_error").is_null())
        facts.add("attempts", plain(event.at("attempts")) + ": " + plain(event.at("last_error")), colour::bad);
    facts.add("position",
              plain(event.at("position")) + (event.at("position").is_null() ? "" : " in " + plain(event.at("stream"))) +
                  (event.at("moved").get<bool>() ? " (not its tick's: moved, or found there after a restore)" : ""));
    const json &entry = event.at("entry");
    facts.add("entry", plain(entry.at("state")) + (entry.at("reason").is_null() ? "" : ": " + plain(entry.at("reason"))),
              entry.at("state") == "present" ? colour::good : colour::warning);
    facts.add("headers", plain(event.at("headers")));
    facts.add("payload", plain(event.at("payload")));
    if (event.at("groups").is_null())
        facts.add("groups", "unknown", colour::warning);
    else if (event.at("groups").empty())
        facts.add("groups", "none");
    else
        for (const json &group : event.at("groups"))
            add_group(facts, group);
    return facts.text(colours);
}

static exit_code show(context &context, const std::string &wanted) {
    database &db = context.database();
    db.require_extension();
    auto id = canonical(db, wanted);
    // those that wait first: one that is delivered meanwhile is then seen twice, and not missed
    json delayed = find_delayed(db, id), found = find_events(db, id, context.common().sink), letters = find_dead_letters(db, id),
         events = json::array();
    if (!found.empty())
        delayed = json::array();
    if (found.empty() && letters.empty() && delayed.empty())
        throw failure(exit_code::wrong, "no event " + id + " in database \"" + db.name() + "\"",
                      "Its transaction was rolled back or has not committed, or it is older than outbox.retention.");
    for (const json &event : found)
        events.push_back(life_of(context, event));
    // nothing of Redis may be taken for an answer that was not given
    bool answered =
        std::none_of(events.begin(), events.end(), [](const json &event) { return event.at("groups").is_null(); });
    if (context.common().json) {
        write(line_of({{"event_id", id}, {"events", std::move(events)}, {"dead_letters", std::move(letters)}, {"delayed", std::move(delayed)}}));
        return answered ? exit_code::ok : exit_code::unavailable;
    }
    bool colours = shows_colours(stdout);
    std::string text;
    if (events.size() > 1)
        text += "emitted " + std::to_string(events.size()) + " times under this id\n\n";
    for (const json &event : delayed)
        text += render_delayed(event, colours);
    if (events.empty() && delayed.empty())
        text += "The event is older than outbox.retention. What is known is its dead letter.\n\n";
    for (const json &event : events)
        text += render(event, colours) + (&event == &events.back() ? "" : "\n");
    for (const json &letter : letters)
        text += in(colour::bad,
                   "dead letter of sink " + plain(letter["sink"]) + " since " + plain(letter["dead_at"]) + " after " +
                       counted(letter["attempts"].get<std::int64_t>(), "attempt") + ": " + plain(letter["error"]),
                   colours) +
                "\n";
    write(text);
    return answered ? exit_code::ok : exit_code::unavailable;
}

void add_show(CLI::App &app, options &common, action &chosen) {
    CLI::App *command =
        add_command(app, "show", "The whole life of an event: transaction, tick, entry, every consumer group",
                    "outboxctl show 01a1fd51-24fc-713f-8abb-bbffb042aade\n"
                    "outboxctl show 01a1fd51-24fc-713f-8abb-bbffb042aade --json | jq -r '.events[].groups[] | \"\\(.group) "
                    "\\(.state)\"'",
                    common);
    auto id = std::make_shared<std::string>();
    command->add_option("event_id", *id, "as outbox.emit() returned it")->required()->type_name("EVENT_ID");
    command->callback([&chosen, id] { chosen = [id](context &context) { return show(context, *id); }; });
}

} // namespace outbox::ctl
