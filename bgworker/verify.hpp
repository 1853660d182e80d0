// What the backend that calls outbox.verify() and the worker that does it have to say to each other: a request, followed by a
// queue in the same segment. In the queue come findings, at the end the sum of it all, or PostgreSQL's own message of an error.
#pragma once

#include "extension/pg.hpp"

namespace outbox::verify {

struct request {
    Oid database;
    int caller; // its pid
    int64 since_ms, until_ms;
    char sink[256];
};

constexpr Size queue_at = MAXALIGN(sizeof(request));
constexpr Size queue_size = 64 * 1024;
constexpr char finding_message = 'D';
constexpr char sum_message = 'C';

} // namespace outbox::verify
