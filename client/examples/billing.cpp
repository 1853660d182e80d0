// Gives every new user a billing profile, exactly once: the profile, the event that tells of it, and the note that the user's
// event was handled are one transaction.
//
//   BILLING_DATABASE='dbname=billing' OUTBOX_REDIS_URL=redis://127.0.0.1 billing
//
// Any number of these may run, die and be started again.
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

struct user_created {
    static constexpr std::string_view event_type = "identity.user.created";
    static constexpr int version = 1;
    std::string user_id;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(user_created, user_id)

static void run(PGconn *database, const char *statement, std::array<const char *, 1> texts = {}) {
    result answer(PQexecParams(database, statement, texts[0] ? 1 : 0, nullptr, texts.data(), nullptr, nullptr, 0), PQclear);
    if (PQresultStatus(answer.get()) != PGRES_COMMAND_OK)
        throw std::runtime_error(PQerrorMessage(database));
}

// The tables of this service and those of the inbox, in the same database.
static void prepare(const std::string &where) {
    connection database(PQconnectdb(where.c_str()), PQfinish);
    if (PQstatus(database.get()) != CONNECTION_OK)
        throw std::runtime_error(PQerrorMessage(database.get()));
    outbox::inbox::create_schema(database.get());
    // nothing here keeps a user from getting two profiles: the inbox does
    run(database.get(), "CREATE TABLE IF NOT EXISTS billing_profile "
                        "(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id text NOT NULL, plan text NOT NULL)");
}

int main() try {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    auto options = outbox::consumer_options::from_env();
    if (options.group.empty())
        options.group = "billing";
    if (const char *where = std::getenv("BILLING_DATABASE"))
        options.inbox = where;
    prepare(options.inbox);

    outbox::consumer consumer(options);
    consumer.on_transaction<user_created>([](const user_created &user, const outbox::event &event, outbox::transaction &tx) {
        run(tx.connection(), "INSERT INTO billing_profile (user_id, plan) VALUES ($1, 'free')", {user.user_id.c_str()});
        // carries the correlation and causation of the user's event
        outbox::emit(tx.connection(), {.type = "billing.profile.created",
                                       .payload = {{"user_id", user.user_id}, {"plan", "free"}},
                                       .aggregate_id = user.user_id});
        std::printf("a profile for user %s, attempt %d\n", user.user_id.c_str(), event.attempt());
    });
    return consumer.run() ? 0 : 1;
} catch (const std::exception &error) {
    std::fprintf(stderr, "billing: %s\n", error.what());
    return 1;
}
