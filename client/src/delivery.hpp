// An entry in this process' hands, from the read that brought it to the acknowledgement.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include <outbox/event.hpp>

#include "src/entry_id.hpp"

namespace outbox::detail {

// CLOCK_BOOTTIME: goes on while the machine sleeps, as the leases in Redis do, and is never set.
struct lease_clock {
    using duration = std::chrono::nanoseconds;
    using time_point = std::chrono::time_point<lease_clock, duration>;
    static time_point now() noexcept;
};
using time_point = lease_clock::time_point;

// How a handler ended.
struct outcome {
    enum class kind {
        handled,
        duplicate,
        failed,
        rejected,
        later,       // outbox::retry_after
        unavailable, // the inbox could not be reached, so the handler was not called
        stale,       // nor here: the lease had run out
    } is = kind::handled;
    std::string error;
    std::chrono::milliseconds delay; // of later
};

struct lane;
struct stream;

// What a single reply brought: its memory goes when the last of its deliveries goes.
struct batch {
    std::size_t bytes = 0;
    std::size_t live = 0;
};

struct delivery {
    enum class state {
        waiting,  // in its lane, behind others or held back
        offered,  // may run as far as its lane knows
        delayed,  // until its time has come
        started,  // on its way to a handler, or in it
        settling, // handled or dead; Redis has not said so yet
    };

    delivery(const outbox::event &about, entry_id at, std::string_view at_text) : event(about), id(at), id_text(at_text) {}

    outbox::event event;
    entry_id id;
    std::string_view id_text;        // in the event's memory
    std::shared_ptr<detail::batch> batch; // shared: deliveries that outlive the consumer leave it in any order
    std::uint64_t aggregate = 0;     // 0: none
    bool redriven = false;           // comes before what is new in its aggregate
    std::size_t handler = 0;
    detail::stream *stream = nullptr;

    state is = state::waiting;
    bool held = false;       // by its source: may not be offered, however its lane stands
    bool unseen = false;     // nobody has asked yet what other consumers have before it
    bool running = false;    // a handler has it; its fields but lease_until are the worker's until it is back
    bool written = false;    // its attempts are in Redis
    bool alone = false;      // asked for in a script of its own: a key that it needs, or another did, is of a wrong type
    bool renewing = false;   // its lease is being renewed
    bool verifying = false;  // it waits for that, because its lease has run out
    bool suspect = false;    // taken over after an attempt whose end nobody knows
    bool lost = false;       // another consumer has taken it over while it was on its way to a handler, or in it
    int attempts = 0;        // that may have started
    std::string reason;      // why it is to be a dead letter; empty: it is not
    outcome end;             // of the last attempt

    // The last moment at which nobody else can have taken it over.
    std::atomic<time_point> lease_until{time_point{}};

    // the scheduler's
    detail::lane *lane = nullptr;
    delivery *behind = nullptr;    // the next in its lane
    delivery *next_offer = nullptr;
    time_point due{};

    // the mailbox's
    delivery *posted_before = nullptr;

    // the stream's list of all that is held
    delivery *previous_held = nullptr, *next_held = nullptr;
};

} // namespace outbox::detail
