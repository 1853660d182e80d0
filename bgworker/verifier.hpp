// The worker of outbox.verify(), in parts: what it is to do and the whole of it (verifier.cpp), the comparison (compare.cpp), and what is
// not as it should be (findings.cpp).

#pragma once

#include "bgworker/entry.hpp"
#include "bgworker/expectation.hpp"
#include "bgworker/link.hpp"
#include "bgworker/shared.hpp"
#include "bgworker/verify.hpp"

extern "C" {
#include "common/hashfn.h"
}

namespace outbox {

// A set of entries, in a few bytes: equal sums mean equal sets, but for one chance in 2^128.
struct entry_sum {
    int64 count;
    position first, last;
    uint64 hash[2];

    void add(position at, const pg_uuid_t &id) {
        struct {
            int64 ms, n;
            pg_uuid_t id;
        } key = {at.ms, at.n, id};
        if (count == 0 || at < first)
            first = at;
        if (count == 0 || at > last)
            last = at;
        ++count;
        for (uint64 seed = 0; seed < 2; ++seed)
            hash[seed] += hash_bytes_extended(reinterpret_cast<unsigned char *>(&key), sizeof key, seed);
    }
    bool operator==(const entry_sum &) const = default;
};

struct checked_stream {
    char topic[max_topic_length + 1]; // the key of the table, zero-padded
    bool looked;                      // end is known
    position upto;                    // compared up to here
    position end;                     // the last entry that there was when we came
    std::size_t entry_bytes;          // of the largest that was seen or is expected
    entry_sum expected, found;        // in this window
    bool optional;                    // the window has events of it that may be there or not
    bool empty;                       // it has none of the window, and that is no trimming
    stream_info info;                 // as it was then

    // Entries that are gone from its beginning.
    int64 trimmed;
    position trimmed_first, trimmed_last;
    int64 taken_out; // entries that were ever taken out of it, -1 where Redis does not count
    int64 deleted;   // of these, as we know, by XDEL

    std::string_view name() const { return topic; }
};

constexpr int max_extras = 512; // looked up at once

// An entry that no event explains, as far as is known before the database is asked for its id.
struct unexplained_entry {
    char topic[max_topic_length + 1];
    char at[64];
    bool has_id;
    pg_uuid_t id;
    char event_type[64];
};

// A page of a stream.
struct stream_page {
    const redisReply *entries;
    bool more; // there may be others behind it
};

class verifier {
  public:
    verifier(const verify::request &request, shared::verification *place) : request_(request), place_(place) {}
    verifier(const verifier &) = delete;
    verifier &operator=(const verifier &) = delete;

    void run();

  private:
    bool load();
    void compare_window();
    void sum_up(checked_stream **streams, int count);
    bool is_gone(checked_stream &stream);
    void compare_entries(checked_stream &stream, position upto, bool tail);
    void look_at(checked_stream **streams, int count);
    void compare_tails();
    void report_trimmed();
    void read_marker();

    void absent(checked_stream &stream, const expected_entry &entry, const stream_info &info);
    void unexplained(const checked_stream &stream, const redisReply &entry);
    void explain();
    void report(const char *finding, std::string_view topic, const char *at, const pg_uuid_t *id, const char *belongs_topic,
                const char *belongs_at, int64 entries, const char *detail);
    void send_sum();

    void append_range(const checked_stream &stream, const char *from, position upto, int count);
    stream_page read_page(checked_stream &stream, std::size_t reply, int count, char *next, Size next_size);
    int page_size(const checked_stream &stream) const;
    position begin_of(const checked_stream &stream) const { return std::max(stream.upto, expectation_.floor()); }
    void ask(std::size_t replies);
    [[noreturn]] void fail();
    checked_stream *stream_of(std::string_view topic);
    checked_stream **all_streams(int &count);
    void show(bool now = false);

    verify::request request_;
    shared::verification *place_;
    shared::verification progress_ = {};
    MemoryContext scratch_ = nullptr; // reset again and again
    int sink_id_ = 0;
    state::sink_row sink_ = {};
    stream_naming naming_;
    position confirmed_;
    carried_tick carried_; // by the sink's marker, and not in this database; ms 0: there is none
    expectation expectation_;
    link link_;
    std::string *commands_ = nullptr;
    HTAB *streams_ = nullptr;
    unexplained_entry *extras_ = nullptr;
    int extra_count_ = 0;
    int64 optional_ = 0;
    TimestampTz shown_at_ = 0;
};

inline void print_text(position value, char *text) { text[print(value, text)] = '\0'; }

} // namespace outbox
