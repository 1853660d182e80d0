// Everything but the in-memory broker for tests (outbox/testing.hpp) and the metrics endpoint (outbox/prometheus.hpp).
#pragma once

#include <outbox/consumer.hpp>
#include <outbox/dead_letter.hpp>
#include <outbox/emit.hpp>
#include <outbox/error.hpp>
#include <outbox/event.hpp>
#include <outbox/inbox.hpp>
