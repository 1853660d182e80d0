// outboxctl dlq redrive and dlq discard: of consumer groups, and by outbox.redrive() and outbox.discard() of sinks.
#include <iostream>
#include <optional>

#include "ctl/dlq.hpp"
#include "ctl/table.hpp"
#include "src/pattern.hpp"

namespace outbox::ctl {

namespace {

struct verb {
    const char *name; // as the command
    const char *past; // as the key in JSON, and "2 dead letters were redriven"
    bool (*one)(dead_letters &, std::string_view);
    bool needs_fields; // of one whose entry was gone before it was copied nothing is left to deliver
};
constexpr verb redrive{"redrive", "redriven", [](dead_letters &letters, std::string_view id) { return letters.redrive(id); },
                       true};
constexpr verb discard{"discard", "discarded",
                       [](dead_letters &letters, std::string_view id) { return letters.discard(id); }, false};

struct found {
    dlq_place *place;
    std::string id;
    bool has_fields;
};

} // namespace

static void check(const dlq_request &wanted) {
    int ways = (wanted.ids.empty() ? 0 : 1) + (wanted.all ? 1 : 0) + (wanted.type.empty() ? 0 : 1);
    if (ways != 1)
        throw failure(exit_code::usage, "which dead letters?", "Give ids, or --type PATTERN, or --all.");
    if (wanted.of_sink && (!wanted.ids.empty() || !wanted.group.empty()))
        throw failure(exit_code::usage, "--of-sink goes with --all or --type, and without --group",
                      "The id of an event finds dead letters of sinks by itself.");
    if (!wanted.of_sink && wanted.ids.empty() && (wanted.topic.empty() || wanted.group.empty()))
        throw failure(exit_code::usage, "--all and --type need --topic and --group, or --of-sink",
                      "\"outboxctl dlq ls\" shows where there are dead letters.");
    if (wanted.of_sink && wanted.type.find('*') != wanted.type.npos)
        throw failure(exit_code::usage, "with --of-sink, --type is an event type and no pattern");
    if (!wanted.type.empty() && !detail::is_pattern(wanted.type))
        throw failure(exit_code::usage, "\"" + wanted.type + "\" is no pattern of event types",
                      "Such as wallet.created, wallet.* or *.");
}

static std::vector<found> by_id(std::vector<dlq_place> &places, const std::string &id) {
    std::vector<found> letters;
    for (auto &place : places)
        if (is_event_id(id))
            each(place.letters, [&](const dead_letter &letter) {
                if (is_meant(letter, id))
                    letters.push_back({&place, letter.id, !letter.fields.empty()});
                return true;
            });
        else if (auto letter = place.letters.inspect(id))
            letters.push_back({&place, letter->id, !letter->fields.empty()});
    if (letters.size() > 1)
        throw failure(exit_code::usage, "\"" + id + "\" is more than one dead letter",
                      "Say which with its own id, --topic and --group.");
    return letters;
}

static std::vector<found> by_type(std::vector<dlq_place> &places, const std::string &pattern) {
    std::vector<found> letters;
    for (auto &place : places)
        each(place.letters, [&](const dead_letter &letter) {
            if (pattern.empty() || detail::matches(pattern, letter.field("event_type")))
                letters.push_back({&place, letter.id, !letter.fields.empty()});
            return true;
        });
    return letters;
}

static bool confirmed(std::size_t count) {
    if (!is_terminal(stdin) || !is_terminal(stderr))
        throw failure(exit_code::usage, "what is discarded is gone for ever: say --yes");
    std::cerr << "Discard " << counted(static_cast<std::int64_t>(count), "dead letter") << " for ever? [y/N] " << std::flush;
    std::string answer;
    return std::getline(std::cin, answer) && (answer == "y" || answer == "yes");
}

// Calls outbox.redrive() or outbox.discard(): event id, sink, topic, event type.
static std::size_t act_on_sinks(database &db, const verb &act, const std::vector<std::optional<std::string>> &which) {
    auto statement = std::string("SELECT outbox.") + act.name + "($1::uuid, $2, $3, $4) AS count";
    return db.row(statement.c_str(), which).at("count").get<std::size_t>();
}

static std::optional<std::string> if_any(const std::string &text) { return text.empty() ? std::nullopt : std::optional(text); }

static exit_code say(context &context, const verb &act, std::size_t done, const json &missing, const json &left) {
    auto code = missing.empty() && left.empty() ? exit_code::ok : exit_code::wrong;
    if (context.common().json) {
        write(line_of({{act.past, done}, {"not_found", missing}, {"without_fields", left}}));
        return code;
    }
    std::string text = std::to_string(done) + (done == 1 ? " dead letter was " : " dead letters were ") + act.past + "\n";
    for (const json &id : missing)
        text += "there is no dead letter \"" + plain(id) + "\"\n";
    for (const json &id : left)
        text += "dead letter " + plain(id) +
                " does not have its entry, which was gone before it could be copied: it cannot be redriven\n";
    write(text);
    return code;
}

// Those that the sink gave up, by topic and event type.
static exit_code run_on_sink(context &context, const dlq_request &wanted, const verb &act) {
    const std::string &sink = context.common().sink;
    database &db = context.database();
    db.require_extension();
    if (&act == &discard && !wanted.yes) {
        auto count = db.row(R"(
            SELECT count(*) AS count FROM outbox.dead_letter d JOIN outbox.sink s ON s.id = d.sink_id
             WHERE s.name = $1 AND ($2 = '' OR d.topic = $2) AND ($3 = '' OR d.event_type = $3))",
                            {sink, wanted.topic, wanted.type})
                         .at("count")
                         .get<std::size_t>();
        if (count > 0 && !confirmed(count))
            return exit_code::wrong;
    }
    auto done = act_on_sinks(db, act, {std::nullopt, sink, if_any(wanted.topic), if_any(wanted.type)});
    return say(context, act, done, json::array(), json::array());
}

static exit_code run(context &context, const dlq_request &wanted, const verb &act) {
    check(wanted);
    if (wanted.of_sink)
        return run_on_sink(context, wanted, act);
    auto where = places(context, wanted);
    std::vector<found> letters;
    json missing = json::array(), left = json::array();
    std::vector<std::string> of_sinks;
    std::size_t letters_of_sinks = 0;
    if (wanted.ids.empty())
        letters = by_type(where, wanted.type);
    for (const auto &id : wanted.ids) {
        auto some = by_id(where, id);
        letters.insert(letters.end(), some.begin(), some.end());
        if (!some.empty())
            continue;
        auto given_up = is_event_id(id) ? sink_dead_letters(context.database(), wanted, id).size() : 0;
        letters_of_sinks += given_up;
        if (given_up > 0)
            of_sinks.push_back(id);
        else
            missing.push_back(id);
    }
    if (auto count = letters.size() + letters_of_sinks; &act == &discard && !wanted.yes && count > 0 && !confirmed(count))
        return exit_code::wrong;

    std::size_t done = 0;
    for (const auto &id : of_sinks)
        done += act_on_sinks(context.database(), act, {id, std::nullopt, if_any(wanted.topic), std::nullopt});
    for (const auto &letter : letters)
        if (act.needs_fields && !letter.has_fields)
            left.push_back(letter.id);
        else if (act.one(letter.place->letters, letter.id))
            ++done;
        else
            missing.push_back(letter.id); // somebody else was faster
    return say(context, act, done, missing, left);
}

static CLI::App *add(CLI::App &dlq, options &common, action &chosen, const verb &act, const std::string &about,
                     const std::string &examples, const std::shared_ptr<dlq_request> &wanted) {
    CLI::App *command = add_command(dlq, act.name, about, examples, common);
    add_dlq_options(*command, *wanted);
    command->add_option("id", wanted->ids, "of dead letters, or of their events")->type_name("ID");
    command->add_option("--type", wanted->type, "those whose event type matches, in the topic and group")
        ->type_name("PATTERN");
    command->add_flag("--all", wanted->all, "all of the topic and group");
    command->add_flag("--of-sink", wanted->of_sink, "those that the sink gave up (--sink), and not a group's");
    command->callback(
        [&chosen, wanted, &act] { chosen = [wanted, &act](context &context) { return run(context, *wanted, act); }; });
    return command;
}

void add_dlq_redrive(CLI::App &dlq, options &common, action &chosen) {
    add(dlq, common, chosen, redrive, "Deliver dead letters again: to their group, or by their sink",
        "outboxctl dlq redrive 1795273190101-0\n"
        "outboxctl dlq redrive --topic wallet --group billing --type wallet.created\n"
        "outboxctl dlq redrive --topic wallet --group billing --all\n"
        "outboxctl dlq redrive --of-sink --sink audit --topic wallet --all",
        std::make_shared<dlq_request>());
}

void add_dlq_discard(CLI::App &dlq, options &common, action &chosen) {
    auto wanted = std::make_shared<dlq_request>();
    add(dlq, common, chosen, discard, "Delete dead letters for ever",
        "outboxctl dlq discard 1795273190101-0\n"
        "outboxctl dlq discard --topic wallet --group billing --all --yes",
        wanted)
        ->add_flag("-y,--yes", wanted->yes, "without asking");
}

} // namespace outbox::ctl
