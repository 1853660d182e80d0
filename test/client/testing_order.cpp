// The in-memory broker: order, consumers of one group, and handlers that are asynchronous.
#include "testing.hpp"

namespace outbox::test {

// order

TEST_F(Testing, EventsOfAnAggregateWaitWhileAnEarlierOneDoes) {
    consumer consumer(options(), broker_);
    bool failing = true;
    consumer.on("wallet.created", [&](const event &event) {
        seen_.push_back(name_of(event));
        if (name_of(event) == "a1" && std::exchange(failing, false))
            throw std::runtime_error("failed");
    });
    publish("a1", "a");
    publish("a2", "a");
    publish("b1", "b");
    publish("free");
    publish("a3", "a");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "b1", "free"}));
    publish("a4", "a");
    consumer.run();
    EXPECT_EQ(seen(), texts{});
    broker_.advance(100ms);
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2", "a3", "a4"}));
}

TEST_F(Testing, AnAggregateGoesOnWithoutADeadLetter) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [this](const event &event) {
        seen_.push_back(name_of(event));
        if (name_of(event) == "a1")
            throw reject("broken");
    });
    publish("a1", "a");
    publish("a2", "a");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2"}));
    EXPECT_EQ(dead().size(), 1u);
}

TEST_F(Testing, WithoutOrderingOthersPass) {
    auto some = options();
    some.ordering = ordering::none;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", noting({"a1"}));
    publish("a1", "a");
    publish("a2", "a");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2"}));
    broker_.advance(100ms);
    consumer.run();
    EXPECT_EQ(seen(), texts{"a1"});
}

// consumers of one group

TEST_F(Testing, ConsumersOfAGroupShareItsEvents) {
    consumer first(options(), broker_), second(options(), broker_);
    first.on("wallet.created", noting());
    second.on("wallet.created", noting());
    publish("a");
    first.run();
    second.run();
    EXPECT_EQ(seen(), texts{"a"});
    publish("b");
    second.run();
    first.run();
    EXPECT_EQ(seen(), texts{"b"});
    EXPECT_EQ(first.stats().handled, 1u);
    EXPECT_EQ(second.stats().handled, 1u);
    EXPECT_EQ(second.stats().groups_created, 0u);
}

TEST_F(Testing, TheOrderOfAnAggregateHoldsAcrossConsumersOfAGroup) {
    consumer first(options(), broker_), second(options(), broker_);
    bool failing = true;
    first.on("wallet.created", [&](const event &event) {
        seen_.push_back(name_of(event));
        if (std::exchange(failing, false))
            throw std::runtime_error("failed");
    });
    second.on("wallet.created", noting());
    publish("a1", "a");
    first.run();
    publish("a2", "a");
    publish("b1", "b");
    second.run();
    EXPECT_EQ(seen(), (texts{"a1", "b1"})) << "a2 is with the second, and waits for the first";
    broker_.advance(100ms);
    second.run();
    EXPECT_EQ(seen(), texts{});
    first.run();
    second.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2"}));
}

TEST_F(Testing, WhatAStoppedConsumerHoldsGoesToTheOthers) {
    consumer first(options(), broker_), second(options(), broker_);
    std::vector<int> attempts;
    auto fails_at_first = [&](const event &event) {
        attempts.push_back(event.attempt());
        if (event.attempt() == 1)
            throw std::runtime_error("failed");
    };
    first.on("wallet.created", fails_at_first);
    second.on("wallet.created", fails_at_first);
    publish("a", "a");
    first.run();
    second.run();
    EXPECT_EQ(attempts, std::vector<int>{1});
    first.stop();
    EXPECT_EQ(broker_.until_next_retry(), std::nullopt);
    second.run();
    EXPECT_EQ(attempts, (std::vector<int>{1, 2})) << "at once, and with the attempts so far";
    EXPECT_EQ(second.stats().claimed, 1u);
    EXPECT_TRUE(first.run()) << "it does nothing any more";
    EXPECT_EQ(first.stats().held, 0u);
}

TEST_F(Testing, WhatAConsumerHeldThatIsGoneGoesToTheOthersInOrder) {
    consumer second(options(), broker_);
    second.on("wallet.created", noting());
    {
        consumer first(options(), broker_);
        first.on("wallet.created", noting({"a1"}));
        publish("a1", "a");
        publish("a2", "a");
        first.run();
        publish("a3", "a");
        second.run();
        EXPECT_EQ(seen(), texts{"a1"});
    }
    second.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2", "a3"}));
}

TEST_F(Testing, WhatIsGivenBackIsTakenOverByOneWhoIsFull) {
    auto narrow = options();
    narrow.prefetch = 1;
    consumer first(narrow, broker_), second(narrow, broker_);
    first.on("wallet.created", noting({"a1"}));
    second.on("wallet.created", noting());
    publish("a1", "a");
    publish("a2", "a");
    first.run();
    second.run();
    first.stop();
    second.run();
    EXPECT_EQ(seen(), (texts{"a1", "a1", "a2"}));
}

TEST_F(Testing, StopLetsTheRunningHandlerFinishAndNoOtherStart) {
    consumer first(options(), broker_), second(options(), broker_);
    first.on("wallet.created", [&](const event &event) {
        first.stop();
        seen_.push_back(name_of(event));
    });
    second.on("wallet.created", noting());
    publish("a");
    publish("b");
    EXPECT_TRUE(first.run());
    EXPECT_EQ(seen(), texts{"a"});
    EXPECT_EQ(broker_.pending("wallet", "billing"), 1u);
    first.run();
    EXPECT_EQ(seen(), texts{});
    second.run();
    EXPECT_EQ(seen(), texts{"b"});
}

TEST_F(Testing, AConsumerThatIsStoppedBeforeItRunsDoesNothing) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", noting());
    publish("a");
    consumer.stop();
    EXPECT_TRUE(consumer.run());
    EXPECT_EQ(seen(), texts{});
}

// asynchronous handlers

class TestingAsync : public Testing {
  protected:
    auto keeping() {
        return [this](const event &event, completion token) {
            seen_.push_back(name_of(event));
            tokens_.push_back(token);
        };
    }
    std::vector<completion> tokens_;
};

TEST_F(TestingAsync, AnEventIsFinishedWhenItsTokenSaysSo) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", keeping());
    publish("a");
    EXPECT_TRUE(consumer.run());
    EXPECT_EQ(seen(), texts{"a"});
    EXPECT_EQ(consumer.stats().running, 1u);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 1u);
    EXPECT_EQ(name_of(tokens_.at(0).event()), "a");
    tokens_[0].done();
    tokens_[0].failed("too late to say so");
    consumer.run();
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
    EXPECT_EQ(consumer.stats().running, 0u);
    EXPECT_EQ(consumer.stats().handled, 1u);
    EXPECT_EQ(consumer.stats().failed, 0u);
}

TEST_F(TestingAsync, ATokenMayBeDoneInTheHandler) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [](const event &, completion token) { token.done(); });
    publish("a");
    consumer.run();
    EXPECT_EQ(consumer.stats().handled, 1u);
}

TEST_F(TestingAsync, AFailureIsAsIfTheHandlerHadThrown) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", keeping());
    publish("a");
    publish("b");
    publish("c");
    consumer.run();
    tokens_.at(0).failed("timed out");
    tokens_.at(1).failed(std::make_exception_ptr(reject("unknown")));
    tokens_.at(2).failed(std::make_exception_ptr(retry_after(1h, "closed")));
    consumer.run();
    EXPECT_EQ(error_of_the_dead(), "unknown");
    EXPECT_EQ(broker_.until_next_retry(), 100ms);
    seen();
    broker_.advance(100ms);
    consumer.run();
    EXPECT_EQ(seen(), texts{"a"});
    EXPECT_EQ(tokens_.at(3).event().attempt(), 2);
    EXPECT_EQ(broker_.until_next_retry(), 1h - 100ms);
}

TEST_F(TestingAsync, ADroppedTokenFailsTheEvent) {
    auto some = options();
    some.retry.max_attempts = 1;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", [](const event &, completion) {});
    publish("a");
    consumer.run();
    EXPECT_EQ(error_of_the_dead(), "the completion token was dropped without a word");
}

TEST_F(TestingAsync, SoManyMayBeOutAtATime) {
    auto some = options();
    some.concurrency = 2;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", keeping());
    for (const char *name : {"a", "b", "c", "d"})
        publish(name);
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a", "b"}));
    tokens_[1].done();
    consumer.run();
    EXPECT_EQ(seen(), texts{"c"});
}

TEST_F(TestingAsync, AnAggregateWaitsForTheToken) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", keeping());
    publish("a1", "a");
    publish("a2", "a");
    publish("b1", "b");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "b1"}));
    tokens_[0].done();
    consumer.run();
    EXPECT_EQ(seen(), texts{"a2"});
}

TEST_F(TestingAsync, WhatIsOutWhenAConsumerIsStoppedIsForTheOthersToHandle) {
    consumer first(options(), broker_), second(options(), broker_);
    first.on("wallet.created", keeping());
    std::vector<int> attempts;
    second.on("wallet.created", [&](const event &event) { attempts.push_back(event.attempt()); });
    publish("a");
    publish("b");
    first.run();
    tokens_[0].done();
    first.stop();
    EXPECT_FALSE(first.run()) << "b is still out";
    EXPECT_EQ(first.stats().handled, 1u) << "a is not";
    second.run();
    EXPECT_EQ(attempts, std::vector<int>{2}) << "the attempt that was begun counts";
    tokens_[1].done(); // nobody listens
    EXPECT_EQ(first.stats().handled, 1u);
}

TEST_F(TestingAsync, AnAttemptThatNobodyHearsOfIsTheLastOneToo) {
    auto some = options();
    some.retry.max_attempts = 1;
    consumer first(some, broker_), second(some, broker_);
    first.on("wallet.created", keeping());
    second.on("wallet.created", noting());
    publish("a");
    first.run();
    first.stop();
    second.run();
    EXPECT_EQ(error_of_the_dead(), "the handler did not come back from 1 attempt: its process died or was stopped");
}

TEST_F(TestingAsync, ATokenMayOutliveTheConsumerAndTheBroker) {
    {
        outbox::testing::broker broker;
        consumer consumer(options(), broker);
        consumer.on("wallet.created", keeping());
        broker.publish({.type = "wallet.created", .payload = {{"name", "a"}}});
        consumer.run();
    }
    EXPECT_EQ(name_of(tokens_.at(0).event()), "a");
    tokens_[0].done();
}

} // namespace outbox::test
