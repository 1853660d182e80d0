// A service that was built against an installed library: a handler, called by the broker in memory. What it does not call it
// mentions, so that it links only if all of it is there to be linked.
#include <outbox/outbox.hpp>
#include <outbox/testing.hpp>
#ifdef WITH_PROMETHEUS
#include <outbox/prometheus.hpp>
#endif

#include <cstdio>
#include <cstdlib>
#include <string>

static void mention() {
    auto options = outbox::consumer_options::from_env();
    outbox::consumer consumer{options};
    consumer.run();
#ifdef WITH_PROMETHEUS
    outbox::metrics_endpoint metrics{consumer, "127.0.0.1:0"};
#endif
    PGconn *connection = PQconnectdb("");
    outbox::emit(connection, {.type = "wallet.created", .payload = {}});
    outbox::inbox::create_schema(connection);
    outbox::inbox::purge(connection, std::chrono::hours(1));
    outbox::dead_letters letters{options.redis_url, "wallet", "billing"};
    letters.redrive_all();
}

struct wallet_created {
    static constexpr std::string_view event_type = "wallet.created";
    static constexpr int version = 1;
    std::string wallet_id;
};

static void from_json(const nlohmann::json &json, wallet_created &wallet) { json.at("wallet_id").get_to(wallet.wallet_id); }

int main() {
    if (std::getenv("OUTBOX_MENTION") != nullptr)
        mention();

    outbox::testing::broker broker;
    outbox::consumer_options options;
    options.group = "billing";
    outbox::consumer consumer{options, broker};
    std::string seen;
    consumer.on<wallet_created>([&](const wallet_created &wallet) { seen += wallet.wallet_id; });
    consumer.on("wallet.closed", [](const outbox::event &event) { throw outbox::reject("no " + std::string(event.type())); });
    broker.publish({.type = "wallet.created", .payload = {{"wallet_id", "a"}}});
    broker.publish({.type = "wallet.closed", .payload = {{"wallet_id", "a"}}});
    consumer.run();
    auto dead = broker.dead("wallet", "billing");
    if (seen != "a" || dead.size() != 1 || dead[0].error.find("no wallet.closed") == std::string::npos) {
        std::fprintf(stderr, "handled \"%s\", %zu dead letters\n", seen.c_str(), dead.size());
        return 1;
    }
    return 0;
}
