#include <outbox/consumer.hpp>
#include <outbox/prometheus.hpp>
#include <outbox/testing.hpp>

#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace std::string_literals;

namespace {

// What a scraper gets.
std::string scrape(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    std::string answer;
    if (connect(client, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0) {
        const std::string_view request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        EXPECT_EQ(write(client, request.data(), request.size()), static_cast<ssize_t>(request.size()));
        char buffer[4096];
        for (ssize_t got; (got = read(client, buffer, sizeof buffer)) > 0;)
            answer.append(buffer, static_cast<std::size_t>(got));
    }
    close(client);
    return answer;
}

class Prometheus : public testing::Test {
  protected:
    Prometheus() {
        consumer.on("wallet.created", [](const outbox::event &) {});
        broker.publish({.type = "wallet.created", .payload = {}});
        broker.publish({.type = "wallet.closed", .payload = {}});
        consumer.run();
    }

    static outbox::consumer_options options() {
        outbox::consumer_options options;
        options.group = "billing";
        options.name = "one";
        return options;
    }

    outbox::testing::broker broker;
    outbox::consumer consumer{options(), broker};
};

TEST_F(Prometheus, ServesCountsAndGaugesWithGroupAndConsumer) {
    outbox::metrics_endpoint metrics{consumer, "127.0.0.1:0"};
    std::string answer = scrape(metrics.port());
    const std::string labels = "{group=\"billing\",consumer=\"one\"} ";
    for (const auto &line : {"# TYPE outbox_consumer_handled_total counter\n"s, "outbox_consumer_handled_total" + labels + "1\n",
                             "outbox_consumer_unhandled_total" + labels + "1\n", "# TYPE outbox_consumer_held gauge\n"s,
                             "outbox_consumer_held" + labels + "0\n", "outbox_consumer_connected" + labels})
        EXPECT_NE(answer.find("\n" + line), std::string::npos) << line;
}

TEST_F(Prometheus, SaysThatAnAddressIsInUse) {
    outbox::metrics_endpoint metrics{consumer, "127.0.0.1:0"};
    auto address = "127.0.0.1:" + std::to_string(metrics.port());
    try {
        outbox::metrics_endpoint again{consumer, address};
        FAIL() << "two endpoints at " << address;
    } catch (const outbox::error &cause) {
        EXPECT_EQ(std::string(cause.what()), "could not serve metrics at \"" + address + "\": the address is in use, or is none");
    }
}

TEST_F(Prometheus, FreesThePortAtTheEnd) {
    int port = outbox::metrics_endpoint{consumer, "127.0.0.1:0"}.port();
    EXPECT_EQ(scrape(port), "");
}

} // namespace
