// Account statements: a line for each movement of each wallet, exactly once and in order, however many of these processes run
// and however often they are killed. What `make demo` runs, and kills.
//
//   CREATE TABLE statement (line bigserial, event_id uuid, topic text, wallet text, n int, amount int);
//
//   OUTBOX_REDIS_URL=redis://127.0.0.1:6379/0 OUTBOX_INBOX='dbname=bank' ./statements
#include <cstdio>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include <outbox/outbox.hpp>

static void run(PGconn *connection, const char *statement, std::initializer_list<const char *> parameters = {}) {
    PGresult *result = PQexecParams(connection, statement, static_cast<int>(parameters.size()), nullptr, parameters.begin(),
                                    nullptr, nullptr, 0);
    bool done = PQresultStatus(result) == PGRES_COMMAND_OK || PQresultStatus(result) == PGRES_TUPLES_OK;
    PQclear(result);
    if (!done)
        throw std::runtime_error(PQerrorMessage(connection));
}

int main() try {
    auto options = outbox::consumer_options::from_env();
    if (options.group.empty())
        options.group = "statements";
    options.topics = {"wallet", "transfer"};
    options.claim_idle = std::chrono::seconds(2); // nobody waits long for a process that was killed
    options.block = std::chrono::milliseconds(500);
    options.concurrency = 8;

    if (PGconn *connection = PQconnectdb(options.inbox.c_str())) {
        outbox::inbox::create_schema(connection);
        PQfinish(connection);
    }

    outbox::consumer consumer{options};
    consumer.on_transaction("*", [](const outbox::event &event, outbox::transaction &transaction) {
        const auto &movement = event.payload();
        std::string wallet = movement.at("wallet"), n = movement.at("n").dump(), amount = movement.at("amount").dump();
        run(transaction.connection(), "INSERT INTO statement (event_id, topic, wallet, n, amount) VALUES ($1, $2, $3, $4, $5)",
            {std::string(event.id()).c_str(), std::string(event.topic()).c_str(), wallet.c_str(), n.c_str(), amount.c_str()});
    });
    return consumer.run() ? 0 : 1;
} catch (const std::exception &cause) {
    std::fprintf(stderr, "statements: %s\n", cause.what());
    return 1;
}
