// A service that opens wallets, tells the others, and hears its own events like everybody else.
//
//   WALLETS_DATABASE='dbname=shop' OUTBOX_REDIS_URL=redis://127.0.0.1 wallets ada grace
//
// opens a wallet for ada and one for grace, and greets the owners of new wallets until SIGTERM.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include <libpq-fe.h>

#include <outbox/outbox.hpp>

using connection = std::unique_ptr<PGconn, decltype(&PQfinish)>;
using result = std::unique_ptr<PGresult, decltype(&PQclear)>;

// The contract of the event: both sides of the wire.
struct wallet_created {
    static constexpr std::string_view event_type = "wallet.created";
    static constexpr int version = 1;
    std::string wallet_id, owner;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(wallet_created, wallet_id, owner)

static std::string query(PGconn *database, const char *statement, std::array<const char *, 1> texts = {}) {
    result answer(PQexecParams(database, statement, texts[0] ? 1 : 0, nullptr, texts.data(), nullptr, nullptr, 0), PQclear);
    if (PQresultStatus(answer.get()) != PGRES_COMMAND_OK && PQresultStatus(answer.get()) != PGRES_TUPLES_OK)
        throw std::runtime_error(PQerrorMessage(database));
    return PQntuples(answer.get()) > 0 ? PQgetvalue(answer.get(), 0, 0) : "";
}

// The wallet and its event are committed together, or neither is.
static void open_wallet(PGconn *database, const char *owner) {
    query(database, "BEGIN");
    std::string id = query(database, "INSERT INTO wallet (owner) VALUES ($1) RETURNING id", {owner});
    outbox::emit(database, {.type = std::string(wallet_created::event_type),
                            .payload = wallet_created{id, owner},
                            .aggregate_id = id,
                            .aggregate_type = "wallet"});
    query(database, "COMMIT");
    std::printf("opened wallet %s for %s\n", id.c_str(), owner);
}

int main(int count, char **words) try {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    const char *where = std::getenv("WALLETS_DATABASE");
    connection database(PQconnectdb(where ? where : ""), PQfinish);
    if (PQstatus(database.get()) != CONNECTION_OK)
        throw std::runtime_error(PQerrorMessage(database.get()));
    query(database.get(), "CREATE TABLE IF NOT EXISTS wallet (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner text)");
    for (int i = 1; i < count; ++i)
        open_wallet(database.get(), words[i]);

    auto options = outbox::consumer_options::from_env();
    if (options.group.empty())
        options.group = "wallets";
    outbox::consumer consumer(options);
    consumer.on<wallet_created>([](const wallet_created &wallet, const outbox::event &event) {
        std::printf("welcome, %s: wallet %s is yours (%s)\n", wallet.owner.c_str(), wallet.wallet_id.c_str(),
                    std::string(event.position()).c_str());
    });
    return consumer.run() ? 0 : 1;
} catch (const std::exception &error) {
    std::fprintf(stderr, "wallets: %s\n", error.what());
    return 1;
}
