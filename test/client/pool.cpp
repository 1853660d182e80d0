// The threads that call handlers: whom they wake, and whom they do not keep waiting.
#include "src/pool.hpp"

#include <atomic>
#include <chrono>
#include <latch>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

using namespace outbox::detail;
using namespace std::chrono_literals;

namespace {

class pool_test : public testing::Test {
  protected:
    // Deliveries of the given types; "slow" ones are handled when the latch is open.
    std::vector<delivery *> make(const std::vector<std::string_view> &types) {
        std::vector<delivery *> result;
        for (std::string_view type : types) {
            outbox::event event({.type = type, .payload = "{}"}, "wallet", "1-1", 1, nullptr);
            auto *one = new delivery(event, {1, 1}, "1-1");
            one->lease_until.store(lease_clock::now() + 1h);
            EXPECT_TRUE(handlers_->route(*one, false));
            result.push_back(one);
        }
        return result;
    }

    std::shared_ptr<handlers> make_handlers() {
        auto made = std::make_shared<handlers>();
        made->add("wallet.quick", 0, outbox::consumer::handler([](const outbox::event &) {}));
        made->add("wallet.slow", 0, outbox::consumer::handler([this](const outbox::event &) {
                      ++running_;
                      open_.wait();
                  }));
        return made;
    }

    // What comes back within 20 s, until there are so many of the type; each is destroyed.
    std::size_t collect(std::string_view type, std::size_t wanted) {
        std::size_t found = 0;
        auto until = std::chrono::steady_clock::now() + 20s;
        std::vector<delivery *> finished;
        while (found < wanted && std::chrono::steady_clock::now() < until) {
            finished.clear();
            mailbox_->collect(finished);
            for (delivery *one : finished) {
                found += one->event.type() == type;
                delete one;
            }
            if (finished.empty())
                std::this_thread::yield();
        }
        return found;
    }

    // Until it believes that all handlers are quick.
    void only_quick_ones(pool &threads) {
        for (int i = 0; i < 50; ++i) {
            threads.submit(make(std::vector<std::string_view>(64, "wallet.quick")));
            ASSERT_EQ(collect("wallet.quick", 64), 64u);
        }
    }

    std::latch open_{1};
    std::atomic<int> running_{0};
    std::shared_ptr<handlers> handlers_ = make_handlers();
    std::atomic<int> wakes_{0};
    std::shared_ptr<mailbox> mailbox_ = std::make_shared<mailbox>([this] { ++wakes_; });
};

} // namespace

TEST_F(pool_test, a_slow_handler_after_many_quick_ones_keeps_nothing_waiting) {
    pool threads(2, 256, handlers_, mailbox_, {});
    only_quick_ones(threads);
    std::vector<std::string_view> types(100, "wallet.quick");
    types[3] = "wallet.slow";
    threads.submit(make(types));
    threads.look();
    EXPECT_EQ(collect("wallet.quick", 99), 99u);
    open_.count_down();
    EXPECT_EQ(collect("wallet.slow", 1), 1u);
}

TEST_F(pool_test, after_many_quick_handlers_slow_ones_get_a_thread_each) {
    pool threads(8, 256, handlers_, mailbox_, {});
    only_quick_ones(threads);
    threads.submit(make(std::vector<std::string_view>(8, "wallet.slow")));
    threads.look();
    auto until = std::chrono::steady_clock::now() + 20s;
    while (running_ < 8 && std::chrono::steady_clock::now() < until)
        std::this_thread::yield();
    EXPECT_EQ(running_, 8);
    open_.count_down();
    EXPECT_EQ(collect("wallet.slow", 8), 8u);
}

TEST_F(pool_test, the_last_one_that_is_finished_is_told) {
    pool threads(4, 256, handlers_, mailbox_, {});
    only_quick_ones(threads);
    for (int round = 0; round < 200; ++round) {
        const int before = wakes_;
        threads.submit(make(std::vector<std::string_view>(10, "wallet.quick")));
        // whoever sleeps until it is woken gets all of them
        std::size_t found = 0;
        auto until = std::chrono::steady_clock::now() + 20s;
        for (int seen = before; found < 10 && std::chrono::steady_clock::now() < until;) {
            if (wakes_ == seen) {
                std::this_thread::yield();
                continue;
            }
            seen = wakes_;
            std::vector<delivery *> finished;
            mailbox_->collect(finished);
            found += finished.size();
            for (delivery *one : finished)
                delete one;
        }
        ASSERT_EQ(found, 10u);
    }
}

TEST_F(pool_test, a_lease_that_has_run_out_brings_it_back_unhandled) {
    pool threads(1, 4, handlers_, mailbox_, {});
    std::vector<delivery *> work = make({"wallet.slow"});
    work[0]->lease_until.store(lease_clock::now() - 1ms);
    threads.submit(work);
    std::vector<delivery *> finished;
    for (auto until = std::chrono::steady_clock::now() + 20s; finished.empty() && std::chrono::steady_clock::now() < until;)
        mailbox_->collect(finished);
    ASSERT_EQ(finished.size(), 1u);
    EXPECT_EQ(finished[0]->end.is, outcome::kind::stale);
    delete finished[0];
    open_.count_down();
}

TEST_F(pool_test, a_closed_box_destroys_what_comes) {
    auto work = make({"wallet.quick", "wallet.quick"});
    mailbox_->post(work[0]);
    EXPECT_EQ(wakes_, 1);
    std::vector<delivery *> finished;
    mailbox_->close(finished);
    ASSERT_EQ(finished, std::vector{work[0]});
    delete finished[0];
    mailbox_->post(work[1]); // a sanitizer would find it
    EXPECT_EQ(wakes_, 1);
}
