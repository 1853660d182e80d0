// The worker of outbox.replay(), in two parts: the whole of it (replayer.cpp), and to append to streams that are not the sink's own
// (replay_append.cpp).

#pragma once

#include "bgworker/expectation.hpp"
#include "bgworker/link.hpp"
#include "bgworker/replay_task.hpp"

namespace outbox {

constexpr int events_in_chunk = 256;

struct target_stream {
    char topic[max_topic_length + 1]; // the key of the table, zero-padded
    bool exists;                      // this process has appended to it
};

struct sent_entry {
    target_stream *stream;
    position at;
    pg_uuid_t id;
};

class replayer {
  public:
    explicit replayer(int sink_id) : sink_id_(sink_id) {}
    bool run(); // the next one; false where there is none, or it has to wait

  private:
    enum class outcome { good, over, trouble }; // over: done, failed or cancelled

    bool load();
    outcome replay();
    outcome replay_window();
    outcome count();
    template <typename Visitor> void meet(std::string_view topic, const expected_entry &entry, Visitor visit);
    void load_placed(position after);
    void append_placed(position before);
    void append(const event_row &event, position at, const sinks::filter *filter);
    void record_copy(const event_row &event);
    void save_copies();

    outcome connect();
    void begin_chunk();
    outcome send_chunk();
    outcome judge(const redisReply &executed);
    outcome recognise(const int *refused, int count);
    outcome lost();

    outcome pace();
    outcome save();
    outcome end(const char *state, const char *error);
    target_stream *stream_of(std::string_view topic);
    void show() const;
    bool copies() const { return !*task_.into; }

    int sink_id_;
    state::sink_row sink_ = {};
    replay::task task_ = {};
    stream_naming naming_;
    expectation expectation_;
    MemoryContext scratch_ = nullptr, window_ = nullptr;
    link link_;
    std::string *commands_ = nullptr, *unused_ = nullptr;
    char marker_key_[64] = "";
    char marker_[96] = "";
    HTAB *streams_ = nullptr;
    sent_entry *sent_ = nullptr;
    Size sent_count_ = 0, sent_capacity_ = 0;
    position last_;      // of the chunk that is being made
    int64 added_ = 0;    // events in it
    bool cancelled_ = false;
    int64 done_before_ = 0; // by others
    TimestampTz began_at_ = 0, saved_at_ = 0;

    struct placed_event {
        event_row event;
        position at;
    };
    placed_event *placed_ = nullptr;
    int placed_count_ = 0, at_placed_ = 0;
};

} // namespace outbox
