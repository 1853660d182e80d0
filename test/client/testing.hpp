// The in-memory broker with a consumer's options, for tests of handlers as the author of a service writes them.
#pragma once

#include <outbox/testing.hpp>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <outbox/outbox.hpp>

namespace outbox::test {

using namespace std::chrono_literals;
using nlohmann::json;
using texts = std::vector<std::string>;

class Testing : public ::testing::Test {
  protected:
    static consumer_options options(std::string group = "billing") {
        consumer_options result;
        result.group = std::move(group);
        result.name = "only";
        result.retry = {.max_attempts = 3, .initial = 100ms, .max = 1min, .multiplier = 2, .jitter = 0.2};
        result.log = nullptr;
        return result;
    }

    static consumer_options parking() {
        auto result = options();
        result.on_poison = on_poison::park_aggregate;
        return result;
    }

    // An event with a name in its payload, of an aggregate or of none.
    std::string publish(const std::string &name, const std::string &aggregate = {}, const std::string &type = "wallet.created") {
        return broker_.publish({.type = type, .payload = {{"name", name}}, .aggregate_id = aggregate, .aggregate_type = "wallet"});
    }

    static std::string name_of(const event &event) { return event.payload().at("name"); }

    // A handler that notes the event's name, and throws for those of these names.
    auto noting(texts failing = {}) {
        return [this, failing = std::move(failing)](const event &event) {
            seen_.push_back(name_of(event));
            for (const auto &name : failing)
                if (name == seen_.back())
                    throw std::runtime_error(name + " failed");
        };
    }

    // What was noted since the last call.
    texts seen() { return std::exchange(seen_, {}); }

    std::vector<dead_letter> dead(std::string_view group = "billing") const { return broker_.dead("wallet", group); }
    std::string error_of_the_dead() const { return dead().size() == 1 ? dead().at(0).error : "not one dead letter"; }

    outbox::testing::broker broker_;
    texts seen_;
};

} // namespace outbox::test
