// What the commands of `outboxctl dlq` share: which dead letters are meant.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <outbox/dead_letter.hpp>

#include "ctl/context.hpp"

namespace outbox::ctl {

struct dlq_request {
    std::string topic, group;     // empty: any
    std::vector<std::string> ids; // of dead letters, or of events
    std::string type;             // a pattern of event types
    std::size_t limit = 100;
    bool all = false;
    bool of_sink = false;
    bool yes = false;
};

// A stream of a consumer group's dead letters that the request may mean, oldest letters first.
struct dlq_place {
    std::string topic, group;
    dead_letters letters;
};
std::vector<dlq_place> places(context &context, const dlq_request &wanted);

// Visits the dead letters of a place until `visit` returns false.
void each(dead_letters &letters, const std::function<bool(const dead_letter &)> &visit);

// Whether this is the dead letter's id, or that of its event.
bool is_meant(const dead_letter &letter, const std::string &id);

json to_json(const dead_letter &letter, const std::string &group);

// Rows of outbox.dead_letter; an id that is no event's finds nothing. Empty where a group was asked for.
json sink_dead_letters(database &db, const dlq_request &wanted, const std::string &event_id = {});
bool is_event_id(const std::string &text);

void add_dlq_ls(CLI::App &dlq, options &common, action &chosen);
void add_dlq_show(CLI::App &dlq, options &common, action &chosen);
void add_dlq_redrive(CLI::App &dlq, options &common, action &chosen);
void add_dlq_discard(CLI::App &dlq, options &common, action &chosen);
void add_dlq_options(CLI::App &command, dlq_request &wanted);

} // namespace outbox::ctl
