// Scripts: the tokens of a rate limit.
#include <array>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "scripts.hpp"

namespace outbox::test {

class tokens : public scripts {
  protected:
    // Granted, and ms until the next.
    std::array<long long, 2> take(const std::string &rate, const std::string &burst, const std::string &wanted) {
        auto reply = server_->command({"EVAL", detail::take_tokens.text, "1", key, rate, burst, wanted});
        if (reply->type != REDIS_REPLY_ARRAY)
            throw std::runtime_error(show(*reply));
        return {reply->element[0]->integer, reply->element[1]->integer};
    }
    const std::string key = "outbox:{wallet}:rate:billing";
};

TEST_F(tokens, come_in_a_burst_and_then_at_the_rate) {
    // one in a thousand seconds, so that none comes while this is tried
    EXPECT_EQ(take("0.001", "5", "3")[0], 3);
    auto rest = take("0.001", "5", "10");
    EXPECT_EQ(rest[0], 2);
    EXPECT_TRUE(rest[1] > 900'000 && rest[1] <= 1'000'000) << rest[1];
    EXPECT_EQ(take("0.001", "5", "1")[0], 0);
    auto ttl = std::stoll(command("PTTL", key));
    EXPECT_TRUE(ttl > 4'900'000 && ttl <= 5'000'001) << ttl;
}

TEST_F(tokens, hold_the_rate_over_a_second) {
    constexpr int rate = 200, burst = 10;
    int granted = 0;
    double lost = 0; // what nobody asked for in time, on a machine that had something else to do
    auto begin = std::chrono::steady_clock::now();
    auto seconds = [](auto duration) { return std::chrono::duration<double>(duration).count(); };
    auto asked = begin, now = begin;
    while (now - begin < std::chrono::seconds(1)) {
        auto before = std::exchange(asked, now);
        auto [some, wait] = take("200", "10", "3");
        granted += static_cast<int>(some);
        EXPECT_LE(wait, 1000 / rate + 1);
        now = std::chrono::steady_clock::now();
        lost += std::max(0.0, seconds(now - before) * rate - burst + 1);
    }
    auto elapsed = seconds(now - begin);
    EXPECT_GE(granted, 0.97 * rate * elapsed - lost);
    EXPECT_LE(granted, rate * elapsed + burst + 1);
}

TEST_F(tokens, of_a_fractional_rate_come_too) {
    EXPECT_EQ(take("0.0025", "1", "1"), (std::array<long long, 2>{1, 400'000}));
    EXPECT_EQ(take("0.0025", "1", "1")[0], 0);
}

TEST_F(tokens, come_one_by_one_at_least) {
    EXPECT_EQ(take("3", "0", "5")[0], 1);
}

TEST_F(tokens, all_of_a_burst_are_there_whatever_the_rate) {
    for (auto rate : {"3", "7", "0.3", "1234.5", "100000"}) {
        command("DEL", key);
        EXPECT_EQ(take(rate, "49", "49")[0], 49) << rate;
    }
}

TEST_F(tokens, are_held_up_by_a_clock_that_jumps_back_for_no_longer_than_the_burst) {
    // As if an hour ago the clock had been an hour ahead.
    auto time = server_->command("TIME");
    auto ahead = std::to_string(std::stoll(show(*time->element[0])) + 3600) + "000000";
    command("SET", key, ahead, "PX", "3600000");
    auto begin = std::chrono::steady_clock::now();
    auto first = take("20", "4", "1");
    EXPECT_EQ(first[0], 0);
    EXPECT_LE(first[1], 50);
    while (take("20", "4", "1")[0] == 0)
        ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
    EXPECT_LE(std::stoll(command("PTTL", key)), 201);
}

TEST_F(tokens, are_shared_by_two_connections) {
    redisContext *other = redisConnectUnix(server_->socket_path().c_str());
    int granted = 0;
    std::thread taker([&] {
        for (int i = 0; i < 300; ++i) {
            test::redis_reply reply(static_cast<redisReply *>(redisCommand(
                other, "EVAL %s 1 %s 0.001 100 1", detail::take_tokens.text.c_str(), key.c_str())));
            granted += static_cast<int>(reply->element[0]->integer);
        }
    });
    int here = 0;
    for (int i = 0; i < 300; ++i)
        here += static_cast<int>(take("0.001", "100", "1")[0]);
    taker.join();
    redisFree(other);
    EXPECT_EQ(granted + here, 100);
}

} // namespace outbox::test
