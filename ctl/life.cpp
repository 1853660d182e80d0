#include "ctl/life.hpp"

#include <cstdlib>
#include <stdexcept>

#include <outbox/dead_letter.hpp>

#include "ctl/streams.hpp"
#include "ctl/table.hpp"
#include "src/entry.hpp"
#include "src/keys.hpp"

namespace outbox::ctl {

json entry_of(redis &redis, const whereabouts &event) {
    auto absent = [](const std::string &why) { return json{{"state", "absent"}, {"reason", why}}; };
    auto stream = look_at(redis, event.topic);
    if (!stream)
        return absent("Redis has no such stream");
    auto reply = redis.command({"XRANGE", stream->key, event.position, event.position});
    if (reply->elements > 0) {
        detail::raw_entry raw;
        if (!detail::interpret_entry(*reply->element[0], raw) || raw.fields == nullptr)
            throw reply_error("the reply is not that of Redis to " + stream->key);
        if (text(*raw.fields, "event_id") == event.event_id)
            return {{"state", "present"}, {"reason", nullptr}};
        return {{"state", "foreign"},
                {"reason", "the entry there is of another event: \"" + text(*raw.fields, "event_id") + "\""}};
    }
    detail::entry_id at, first, last;
    detail::parse(event.position, at);
    if (detail::parse(stream->last, last) && at > last)
        return absent("the stream has not come to this position: it was not appended yet, or Redis has lost it");
    if (stream->length == 0 || (detail::parse(stream->first, first) && at < first))
        return absent("it was trimmed or deleted: the stream " +
                      (stream->length == 0 ? std::string("is empty") : "begins at " + stream->first));
    return absent("there are entries before it and after it: it was deleted, or never appended");
}

// Visits the entries of a stream until one has this text in a field; its ID, or empty.
static std::string find_entry(redis &redis, const std::string &key, std::string_view field, const std::string &wanted) {
    for (std::string from = "-";;) {
        auto page = redis.command({"XRANGE", key, from, "+", "COUNT", "100"});
        if (page->elements == 0)
            return {};
        for (std::size_t i = 0; i < page->elements; ++i) {
            detail::raw_entry raw;
            if (!detail::interpret_entry(*page->element[i], raw) || raw.fields == nullptr)
                throw reply_error("the reply is not that of Redis to " + key);
            if (text(*raw.fields, field) == wanted)
                return std::string(raw.id);
            from = "(" + std::string(raw.id);
        }
    }
}

namespace {

class group_view {
  public:
    group_view(context &context, const whereabouts &event, const std::string &group, const std::string &last_delivered)
        : context_(context), redis_(context.redis()), event_(event), group_(group), keys_(event.topic, group) {
        detail::entry_id at, delivered;
        delivered_ = detail::parse(event.position, at) && detail::parse(last_delivered, delivered) && at <= delivered;
    }

    json row() {
        row_ = {{"group", group_},       {"state", nullptr},    {"consumer", nullptr},    {"idle_seconds", nullptr},
                {"deliveries", nullptr}, {"attempts", nullptr}, {"dead_letter", nullptr}, {"detail", nullptr}};
        if (pending(keys_.stream, event_.position))
            row_["state"] = "pending";
        else if (!delivered_)
            row_["state"] = "not_delivered";
        else if (dead())
            row_["state"] = "dead_lettered";
        else if (redriven())
            row_["state"] = "redriven";
        else if (parked())
            row_["state"] = "parked";
        else if (handled())
            row_["state"] = "handled";
        else {
            row_["state"] = "passed";
            row_["detail"] = "acknowledged, or the group was made to begin behind it: Redis does not keep which";
        }
        return row_;
    }

  private:
    bool pending(const std::string &key, const std::string &id) {
        auto reply = redis_.unless({"NOGROUP", "ERR no such key"}, {"XPENDING", key, group_, id, id, "1"});
        std::vector<detail::pending_entry> entries;
        if (!reply || !detail::interpret_pending_list(*reply, entries) || entries.empty())
            return false;
        row_["consumer"] = std::string(entries[0].owner);
        row_["idle_seconds"] = static_cast<double>(entries[0].idle) / 1000;
        row_["deliveries"] = entries[0].deliveries;
        // the client library's count; it begins to write with the second attempt
        auto attempts = redis_.command({"HGET", detail::topic_keys::attempts(key, group_), id});
        if (attempts->type == REDIS_REPLY_STRING)
            row_["attempts"] = std::atoll(attempts->str);
        return true;
    }

    bool dead() {
        try {
            dead_letters letters(context_.address().secret_text(), event_.topic, group_);
            std::string after = "0";
            for (auto page = letters.list(100, after); !page.empty(); page = letters.list(100, after))
                for (const auto &letter : page) {
                    after = letter.id;
                    if (letter.position != event_.position)
                        continue;
                    row_["attempts"] = letter.attempts;
                    row_["consumer"] = letter.consumer;
                    row_["dead_letter"] = {{"id", letter.id},
                                           {"error", letter.error},
                                           {"died_at", time_of(letter.died_at.time_since_epoch().count())}};
                    return true;
                }
        } catch (const std::invalid_argument &) {
            // a group whose name the library does not take is none of its own
        }
        return false;
    }

    bool redriven() {
        auto id = find_entry(redis_, keys_.redrive, detail::position_field, event_.position);
        if (id.empty())
            return false;
        row_["detail"] = pending(keys_.redrive, id) ? "given to a consumer again" : "not given to a consumer yet";
        return true;
    }

    bool parked() {
        event::fields fields;
        fields.aggregate_type = event_.aggregate_type;
        fields.aggregate_id = event_.aggregate_id;
        auto aggregate = detail::aggregate_key(fields);
        return !aggregate.empty() &&
               !find_entry(redis_, keys_.parked + ":" + aggregate, detail::position_field, event_.position).empty();
    }

    bool handled() {
        auto mark = redis_.command({"GET", keys_.event + event_.event_id});
        return mark->type == REDIS_REPLY_STRING && detail::text(*mark) == "done";
    }

    context &context_;
    redis &redis_;
    const whereabouts &event_;
    const std::string &group_;
    detail::topic_keys keys_;
    bool delivered_ = false;
    json row_;
};

} // namespace

json groups_of(context &context, const whereabouts &event) {
    json rows = json::array();
    auto reply =
        context.redis().unless({"ERR no such key", "WRONGTYPE"}, {"XINFO", "GROUPS", "outbox:{" + event.topic + "}"});
    for (std::size_t i = 0; reply && i < reply->elements; ++i) {
        std::string group = text(*reply->element[i], "name"), last_delivered = text(*reply->element[i], "last-delivered-id");
        rows.push_back(group_view(context, event, group, last_delivered).row());
    }
    return rows;
}

} // namespace outbox::ctl
