#include "bgworker/redis.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

using namespace outbox;
using answer = redis_connection::answer;

namespace {

// The other end of a connection, whose bytes come as a test has them come.
class redis : public testing::Test {
  protected:
    void SetUp() override {
        const char *folder = std::getenv("TMPDIR");
        path_ = std::string(folder ? folder : "/tmp") + "/outbox-unit." + std::to_string(getpid());
        listener_ = socket(AF_UNIX, SOCK_STREAM, 0);
        sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        ASSERT_LT(path_.size(), sizeof address.sun_path);
        path_.copy(address.sun_path, path_.size());
        unlink(path_.c_str());
        ASSERT_EQ(bind(listener_, reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
        ASSERT_EQ(listen(listener_, 1), 0);
        redis_url url;
        url.path = path_;
        connection_.open(url);
        ASSERT_TRUE(connection_.ready()) << connection_.error();
        server_ = accept(listener_, nullptr, nullptr);
        ASSERT_GE(server_, 0);
    }

    void TearDown() override {
        connection_.close();
        if (server_ >= 0)
            ::close(server_);
        ::close(listener_);
        unlink(path_.c_str());
    }

    void say(std::string_view text) {
        ASSERT_EQ(::send(server_, text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
        connection_.pump();
    }

    redis_connection connection_;
    int server_ = -1;

  private:
    std::string path_;
    int listener_ = -1;
};

TEST_F(redis, an_answer_that_comes_in_parts_is_taken_when_it_is_whole) {
    std::string_view expected = "+OK\r\n$3\r\n1-1\r\n";
    EXPECT_EQ(connection_.take(expected), answer::incomplete);
    for (std::size_t i = 0; i + 1 < expected.size(); ++i) {
        say(expected.substr(i, 1));
        EXPECT_EQ(connection_.take(expected), answer::incomplete) << i;
    }
    say(expected.substr(expected.size() - 1));
    EXPECT_EQ(connection_.take(expected), answer::equals);
    EXPECT_EQ(connection_.take("+OK\r\n"), answer::incomplete);
    EXPECT_FALSE(connection_.next_reply());
}

TEST_F(redis, what_comes_behind_an_answer_is_the_next_one) {
    say("+OK\r\n+QUEUED\r\n:7\r\n");
    EXPECT_EQ(connection_.take("+OK\r\n"), answer::equals);
    EXPECT_EQ(connection_.take("+QUEUED\r\n"), answer::equals);
    reply_pointer reply = connection_.next_reply();
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->integer, 7);
}

TEST_F(redis, another_answer_is_left_to_the_reader_from_its_begin) {
    say("+OK\r\n+QUEUED\r\n-OOM");
    EXPECT_EQ(connection_.take("+OK\r\n+QUEUED\r\n+QUEUED\r\n"), answer::differs);
    for (std::string_view text : {"OK", "QUEUED"}) {
        reply_pointer reply = connection_.next_reply();
        ASSERT_TRUE(reply);
        EXPECT_EQ(std::string_view(reply->str, static_cast<std::size_t>(reply->len)), text);
    }
    EXPECT_FALSE(connection_.next_reply());
    // the reader has the begin of it
    EXPECT_EQ(connection_.take("-OOM x\r\n"), answer::differs);
    say(" x\r\n+OK\r\n");
    reply_pointer reply = connection_.next_reply();
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->type, REDIS_REPLY_ERROR);
    reply = connection_.next_reply();
    ASSERT_TRUE(reply);
    EXPECT_EQ(connection_.take("+OK\r\n"), answer::incomplete);
}

TEST_F(redis, an_error_that_is_shorter_than_the_answer_is_noticed) {
    say("-ERR\r\n");
    EXPECT_EQ(connection_.take("+OK\r\n+QUEUED\r\n"), answer::differs);
}

TEST_F(redis, what_a_server_said_before_it_went_is_still_there) {
    say("+OK\r\n-ERR max number of clients reached\r\n");
    ::close(server_);
    server_ = -1;
    connection_.pump();
    EXPECT_TRUE(connection_.failed());
    EXPECT_EQ(connection_.take("+OK\r\n"), answer::equals);
    reply_pointer reply = connection_.next_reply();
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->type, REDIS_REPLY_ERROR);
}

} // namespace
