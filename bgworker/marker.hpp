// The marker: the one key that says who appended last, and up to where. It is set with every chunk, in the same transaction.
//
//   <incarnation>:<position>:<repairs>:<in doubt>[:<tick>]
//
// The tick is the one that <position> lies in, as long as it has not reached this database's disk: the ms of the one before it,
// its anchor, seq, timeline, end of the log, xmin, xmax and xip, with commas between; the xip as how far each is from xmin. Pure.
#pragma once

#include "bgworker/position.hpp"

#include <cstdint>
#include <string_view>

namespace outbox {

constexpr int max_carried_xids = 256; // a tick with more transactions in progress is made durable before it is sent

struct carried_tick {
    std::int64_t ms = 0;       // 0: there is none
    std::int64_t previous = 0; // ms of the tick before; 0: it is the first
    std::int32_t anchor = 0;
    std::int64_t seq = 0;
    std::uint32_t timeline = 0;
    std::uint64_t log_end = 0; // a database that has the log up to here has everything that the tick sees
    std::uint64_t xmin = 0, xmax = 0;
    std::uint64_t xip[max_carried_xids]; // in progress, in ascending order
    int nxip = 0;
};

struct sink_marker {
    std::string_view incarnation; // of the worker that wrote it
    position at;                  // the last event that is in Redis with it
    std::int64_t repairs = 0;     // chunks that did not move it: releases, and chunks made again
    std::int64_t in_doubt = 0;    // events up to `at` that are in doubt until every reply to the chunk was seen
    carried_tick tick;
};

constexpr std::size_t marker_text_size = 6144;

// Writes it with a terminating zero into marker_text_size bytes; returns its length. The incarnation has up to 40 bytes.
std::size_t print(const sink_marker &value, char *text) noexcept;

// False for what is no marker. A tick that cannot be read is no tick.
bool parse(std::string_view text, sink_marker &value) noexcept;

} // namespace outbox
