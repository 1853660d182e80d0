// outboxctl dlq show
#include "ctl/dlq.hpp"
#include "ctl/table.hpp"

namespace outbox::ctl {

static std::string of_group(const json &letter, bool colours) {
    facts facts;
    facts.add("dead letter",
              plain(letter.at("id")) + " of group " + plain(letter.at("group")) + " in topic " + plain(letter.at("topic")),
              colour::bold);
    facts.add("error", plain(letter.at("error")), colour::bad);
    facts.add("attempts", plain(letter.at("attempts")) + ", the last by " + plain(letter.at("consumer")));
    facts.add("since", plain(letter.at("died_at")));
    facts.add("position", plain(letter.at("position")) + " in " + plain(letter.at("stream")));
    facts.add("parked", plain(letter.at("parked")) + " events of its aggregate wait behind it");
    for (const auto &[name, value] : letter.at("fields").items())
        facts.add(shown(name), value == "" ? "-" : plain(value));
    if (letter.at("fields").empty())
        facts.add("fields", "the entry was gone before it could be copied: it cannot be redriven", colour::warning);
    return facts.text(colours);
}

static std::string of_sink(const json &letter, bool colours) {
    facts facts;
    facts.add("dead letter", "of sink " + plain(letter.at("sink")), colour::bold);
    for (const auto &[name, value] : letter.items())
        facts.add(name, plain(value), name == "error" ? colour::bad : colour::none);
    return facts.text(colours);
}

static exit_code show(context &context, const dlq_request &wanted) {
    const auto &id = wanted.ids.front();
    json groups = json::array(), sinks = json::array();
    for (auto &place : places(context, wanted)) {
        if (!is_event_id(id)) {
            if (auto letter = place.letters.inspect(id))
                groups.push_back(to_json(*letter, place.group));
            continue;
        }
        each(place.letters, [&](const dead_letter &letter) {
            if (is_meant(letter, id))
                groups.push_back(to_json(letter, place.group));
            return true;
        });
    }
    if (is_event_id(id) && wanted.group.empty())
        sinks = sink_dead_letters(context.database(), wanted, id);
    if (groups.empty() && sinks.empty())
        throw failure(exit_code::wrong, "there is no dead letter \"" + id + "\"", "See \"outboxctl dlq ls\".");
    if (context.common().json) {
        write(line_of({{"consumers", std::move(groups)}, {"sinks", std::move(sinks)}}));
        return exit_code::ok;
    }
    std::string text;
    for (const json &letter : groups)
        text += (text.empty() ? "" : "\n") + of_group(letter, shows_colours(stdout));
    for (const json &letter : sinks)
        text += (text.empty() ? "" : "\n") + of_sink(letter, shows_colours(stdout));
    write(text);
    return exit_code::ok;
}

void add_dlq_show(CLI::App &dlq, options &common, action &chosen) {
    CLI::App *command = add_command(dlq, "show", "A dead letter with all there is of it",
                                    "outboxctl dlq show 1795273190101-0\n"
                                    "outboxctl dlq show 01a1fd51-24fc-713f-8abb-bbffb042aade",
                                    common);
    auto wanted = std::make_shared<dlq_request>();
    add_dlq_options(*command, *wanted);
    wanted->ids.resize(1);
    command->add_option("id", wanted->ids.front(), "of the dead letter, or of its event")->required()->type_name("ID");
    command->callback([&chosen, wanted] { chosen = [wanted](context &context) { return show(context, *wanted); }; });
}

} // namespace outbox::ctl
