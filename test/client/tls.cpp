// rediss://: consumers talk to the server whose certificate they have verified, and to no other. redis+sentinel://: they follow
// the master.
#include <sys/stat.h>

#include "common/channel.hpp"
#include "consumers.hpp"

namespace outbox::test {

namespace {

// Certificates of this process, made by the openssl command.
class certificates {
  public:
    static const certificates &instance() {
        static certificates made;
        return made;
    }

    std::string path(const std::string &name) const { return directory_ + "/" + name; }

    // Lines of redis.conf: TLS with this certificate, at a port of its own.
    std::vector<std::string> configuration(const std::string &name, std::vector<std::string> more = {}) const {
        std::vector<std::string> lines{"tls-port PORT", "tls-cert-file " + path(name + ".crt"),
                                       "tls-key-file " + path(name + ".key"), "tls-ca-cert-file " + path("ca.crt"),
                                       "tls-auth-clients no", "bind 127.0.0.1 -::1"};
        lines.insert(lines.end(), more.begin(), more.end());
        return lines;
    }

  private:
    certificates() {
        auto name = (std::filesystem::temp_directory_path() / "outbox-tls-XXXXXX").string();
        if (mkdtemp(name.data()) == nullptr)
            throw std::runtime_error("could not make a temporary directory");
        directory_ = name;
        const std::string here = "DNS:localhost,IP:127.0.0.1,IP:::1";
        authority("ca");
        authority("other");
        make("server", here, "ca");
        make("old", here, "ca", true);
        make("alone", here, "");
        make("elsewhere", "DNS:redis.example.org", "ca");
        make("foreign", here, "other");
        make("client", here, "ca");
    }
    ~certificates() {
        std::error_code ignored;
        std::filesystem::remove_all(directory_, ignored);
    }

    bool openssl(const std::string &words) const {
        return std::system(("cd " + directory_ + " && openssl " + words + " >>log 2>&1").c_str()) == 0;
    }
    void must(bool worked) const {
        if (!worked)
            throw std::runtime_error("openssl failed");
    }

    void authority(const std::string &name) const {
        must(openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=" + name + " -keyout " +
                     name + ".key -out " + name + ".crt"));
    }

    void make(const std::string &name, const std::string &names, const std::string &by, bool expired = false) const {
        std::ofstream(path(name + ".ext")) << "subjectAltName = " << names << "\n";
        must(openssl("req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=" + name + " -keyout " + name +
                     ".key -out " + name + ".csr"));
        std::string sign = "x509 -req -in " + name + ".csr -extfile " + name + ".ext -out " + name + ".crt " +
                           (by.empty() ? "-signkey " + name + ".key" : "-CAcreateserial -CA " + by + ".crt -CAkey " + by + ".key");
        // some versions of the command know days in the past, the others dates
        must(!expired ? openssl(sign + " -days 30")
                      : openssl(sign + " -days -1") || openssl(sign + " -not_before 20200101000000Z -not_after 20200102000000Z"));
    }

    std::string directory_;
};

const std::string secret = "s3cret";

// A server by TLS that wants a password. What it was told is known by its unix socket.
struct tls_server {
    explicit tls_server(const std::string &certificate = "server", std::vector<std::string> more = {})
        : redis(certificates::instance().configuration(certificate, std::move(more))) {
        redis.command({"CONFIG", "SET", "requirepass", secret});
        redis.command("AUTH", secret);
        redis.command("CONFIG", "RESETSTAT");
    }

    std::string url(const std::string &host = "127.0.0.1", const std::string &parameters = {}) const {
        return "rediss://:" + secret + "@" + host + ":" + std::to_string(port) + "/0?sslrootcert=" +
               certificates::instance().path("ca.crt") + parameters;
    }

    // Of the commands with which a consumer begins none has come.
    bool was_left_alone() {
        redis_reply said = redis.command("INFO", "commandstats");
        std::string all = said->str;
        return all.find("cmdstat_client") == all.npos && all.find("cmdstat_xread") == all.npos && all.find("cmdstat_ping") == all.npos;
    }

    redis_server redis;
    int port = redis.more_port();
};

consumer_options options_for(const tls_server &server, const std::string &url) {
    auto options = quick_options(server.redis);
    options.redis_url = url;
    return options;
}

std::string as(const std::string &name) {
    return "&sslcert=" + certificates::instance().path(name + ".crt") + "&sslkey=" + certificates::instance().path(name + ".key");
}

void nothing(class consumer &to) {
    to.on("wallet.created", [](const event &) {});
}

} // namespace

TEST(Tls, events_are_handled_whatever_their_size) {
    tls_server server;
    std::string large = "{\"text\": \"" + std::string(3'000'000, 'x') + "\"}";
    notes handled;
    running_consumer consumer(options_for(server, server.url()), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(std::to_string(event.payload().dump().size())); });
    });
    append_many(server.redis, 1, 500, 10);
    append(server.redis, {.id = event_id(1000), .payload = large});
    EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 501; }));
    EXPECT_EQ(handled.count(), 501u);
    EXPECT_TRUE(consumer.stop());
    EXPECT_FALSE(consumer.log().contain(secret));
}

TEST(Tls, the_server_has_a_name_and_addresses) {
    tls_server server;
    std::uint64_t number = 0;
    for (const char *host : {"localhost", "[::1]"}) {
        // there are machines without IPv6
        redis_url plain;
        std::string why;
        parse_redis_url(server.url(host), plain, why);
        socket_address address;
        if (address_of(plain, address)) {
            int fd = socket(address.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
            bool is_there = fd >= 0 && connect(fd, reinterpret_cast<sockaddr *>(&address.address), address.length) == 0;
            close(fd);
            if (!is_there)
                continue;
        }
        append(server.redis, {.id = event_id(++number)});
        running_consumer consumer(options_for(server, server.url(host)), nothing);
        EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; })) << host;
    }
}

TEST(Tls, a_server_that_is_killed_is_come_back_to) {
    tls_server server("server", {"appendonly yes", "appendfsync always", "requirepass " + secret});
    notes handled;
    running_consumer consumer(options_for(server, server.url()), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(event.payload().dump()); });
    });
    for (std::uint64_t round = 0; round < 3; ++round) {
        append_many(server.redis, 1 + round * 100, 100, 10);
        ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged >= round * 100 + 20; }));
        server.redis.restart();
        server.redis.command("AUTH", secret);
        // PING, by which the fixture knows a server, is answered while it is loading
        ASSERT_TRUE(eventually([&] { return server.redis.command("EXISTS", "x")->type == REDIS_REPLY_INTEGER; }));
    }
    EXPECT_TRUE(eventually([&] {
        auto all = handled.all();
        std::sort(all.begin(), all.end());
        return std::unique(all.begin(), all.end()) - all.begin() == 300;
    }));
}

TEST(Tls, a_server_that_is_not_verified_is_told_nothing) {
    const struct {
        const char *certificate, *reason, *hint;
        std::vector<std::string> more;
        std::string parameters;
    } table[] = {
        {"old", "TLS: the server's certificate has expired", "Renew", {}, ""},
        {"alone", "TLS: the server's certificate is self-signed", "sslrootcert", {}, ""},
        {"elsewhere", "TLS: the server's certificate is not for host", "alternative names", {}, ""},
        {"foreign", "TLS: the server's certificate is signed by an unknown certificate authority", "sslrootcert", {}, ""},
        {"server", "TLS: there is no protocol that the server supports, too", "1.2", {"tls-protocols TLSv1.1", "tls-ciphers DEFAULT@SECLEVEL=0"}, ""},
        {"server", "TLS: the server asked for a client certificate, and none is configured", "sslcert", {"tls-auth-clients yes"}, ""},
        {"server", "TLS: the server refused the client certificate", "sslcert", {"tls-auth-clients yes"}, as("foreign")},
    };
    for (const auto &row : table) {
        tls_server server(row.certificate, row.more);
        auto options = options_for(server, server.url("127.0.0.1", row.parameters));
        {
            running_consumer consumer(options, nothing);
            EXPECT_TRUE(eventually([&] { return consumer.log().contain(row.reason); })) << row.reason << consumer.log().all().back();
            EXPECT_TRUE(consumer.log().contain(row.hint)) << row.reason;
            EXPECT_FALSE(consumer.log().contain(secret));
            EXPECT_FALSE(consumer->stats().connected);
        }
        try {
            dead_letters(options.redis_url, "wallet", "billing").count();
            ADD_FAILURE() << row.reason;
        } catch (const connection_error &error) {
            EXPECT_NE(std::string(error.what()).find(row.reason), std::string::npos) << error.what();
            EXPECT_EQ(std::string(error.what()).find(secret), std::string::npos) << error.what();
        }
        EXPECT_TRUE(server.was_left_alone()) << row.reason;
    }
}

TEST(Tls, a_port_that_does_not_speak_it_is_given_up_in_time) {
    tls_server server;
    server.redis.command("CONFIG", "RESETSTAT");
    auto options = options_for(server, server.url());
    options.redis_url.replace(options.redis_url.find(std::to_string(server.port)), std::to_string(server.port).size(),
                              std::to_string(server.redis.port()));
    options.connect_timeout = 300ms;
    running_consumer consumer(options, nothing);
    EXPECT_TRUE(eventually([&] { return consumer.log().contain("TLS: "); }));
    EXPECT_TRUE(consumer.log().contain("TLS port")) << consumer.log().all().back();
    EXPECT_THROW(dead_letters(options.redis_url, "wallet", "billing", 300ms).count(), error);
    EXPECT_TRUE(server.was_left_alone());
    EXPECT_TRUE(consumer.stop());
}

TEST(Tls, a_client_certificate_lets_in_and_its_key_is_for_its_owner_only) {
    tls_server server("server", {"tls-auth-clients yes"});
    append(server.redis, {});
    auto options = options_for(server, server.url("127.0.0.1", as("client")));
    {
        running_consumer consumer(options, nothing);
        EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));
    }
    EXPECT_EQ(dead_letters(options.redis_url, "wallet", "billing").count(), 0u);
    const std::string key = certificates::instance().path("client.key");
    chmod(key.c_str(), 0644);
    {
        running_consumer consumer(options, nothing);
        EXPECT_TRUE(eventually([&] { return consumer.log().contain("has group or world access; use mode 0600"); }));
    }
    chmod(key.c_str(), 0600);
}

// a master, a replica of it, and a sentinel that swaps them when the master has gone

namespace {

struct sentinel_set {
    static std::vector<std::string> persistent(std::vector<std::string> more = {}) {
        more.insert(more.end(), {"appendonly yes", "appendfsync always", "repl-diskless-sync-delay 0"});
        return more;
    }

    sentinel_set() {
        must([this] { return says(second, {"INFO", "replication"}, "master_link_status:up"); });
        sentinel = std::make_unique<redis_server>(
            std::vector<std::string>{"sentinel monitor wallets 127.0.0.1 " + std::to_string(first.port()) + " 1",
                                     "sentinel down-after-milliseconds wallets 5000", "sentinel failover-timeout wallets 5000"},
            redis_server::role::sentinel);
        must([this] { return says(*sentinel, {"INFO", "sentinel"}, "slaves=1"); });
    }

    static bool says(redis_server &server, const std::vector<std::string> &words, const std::string &expected) {
        redis_reply reply = server.command(words);
        return reply->str != nullptr && std::string(reply->str).find(expected) != std::string::npos;
    }
    static void must(const std::function<bool()> &condition) {
        if (!eventually([&] {
                try {
                    return condition();
                } catch (const std::runtime_error &) {
                    return false; // connections are cut by a failover
                }
            }, 90s)) // after a jump of the clock a sentinel does nothing for 30 s
            throw std::runtime_error("the sentinel does not do its work");
    }

    // Nobody is at the first address.
    std::string url(const std::string &master = "wallets") const {
        return "redis+sentinel://[::1]:1,127.0.0.1:1,127.0.0.1:" + std::to_string(sentinel->port()) + "/" + master;
    }

    // A failover cuts connections, also those of the fixture, whose hiredis knows no MSG_NOSIGNAL.
    struct no_sigpipe {
        no_sigpipe() : before(signal(SIGPIPE, SIG_IGN)) {}
        ~no_sigpipe() { signal(SIGPIPE, before); }
        void (*before)(int);
    } guard;

    redis_server first{persistent()};
    redis_server second{persistent({"replicaof 127.0.0.1 " + std::to_string(first.port())})};
    std::unique_ptr<redis_server> sentinel;
};

} // namespace

TEST(Sentinel, consumers_follow_the_master) {
    sentinel_set set;
    auto options = quick_options(set.first);
    options.redis_url = set.url();
    notes handled;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(event.payload().dump()); });
    });
    auto distinct = [&] {
        auto all = handled.all();
        std::sort(all.begin(), all.end());
        return std::unique(all.begin(), all.end()) - all.begin();
    };
    append_many(set.first, 1, 100, 10);
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 100; }));
    // in the replica before the master goes
    set.first.command("WAIT", 1, 10000);
    append_many(set.first, 101, 100, 10);
    set.first.command("WAIT", 1, 10000);
    set.first.kill9();
    sentinel_set::must([&] { return sentinel_set::says(set.second, {"INFO", "replication"}, "role:master"); });
    append_many(set.second, 201, 100, 10);
    EXPECT_TRUE(eventually([&] { return distinct() == 300; })) << distinct();
    EXPECT_TRUE(consumer.log().contain("connected to Redis at \"127.0.0.1:" + std::to_string(set.second.port()) + "\" again"));

    // the old one is back, and no master for long: nobody is led to it
    set.first.start();
    EXPECT_EQ(dead_letters(options.redis_url, "wallet", "billing").count(), 0u);
    sentinel_set::must([&] { return sentinel_set::says(set.first, {"INFO", "replication"}, "role:slave"); });
    append_many(set.second, 301, 10, 10);
    EXPECT_TRUE(eventually([&] { return distinct() == 310; })) << distinct();
}

TEST(Sentinel, what_cannot_work_is_reported) {
    sentinel_set set;
    const struct {
        std::string url, reason;
    } table[] = {
        {set.url("purses"), "it knows no master of this name"},
        {set.url() + "?sentinel_password=s3cret-wrong", "AUTH: "},
        {"redis+sentinel://127.0.0.1:1/wallets", "sentinel at \"127.0.0.1:1\": "},
    };
    for (const auto &row : table) {
        auto options = quick_options(set.first);
        options.redis_url = row.url;
        running_consumer consumer(options, nothing);
        EXPECT_TRUE(eventually([&] { return consumer.log().contain(row.reason); })) << row.reason << ": " << consumer.log().all().back();
        EXPECT_FALSE(consumer.log().contain(secret));
        EXPECT_THROW(dead_letters(options.redis_url, "wallet", "billing").count(), error);
    }
    // its word is not enough
    auto options = quick_options(set.first);
    options.redis_url = set.url();
    set.first.command({"REPLICAOF", "127.0.0.1", "1"});
    running_consumer consumer(options, nothing);
    EXPECT_TRUE(eventually([&] { return consumer.log().contain("the server that the sentinel named is no master"); }));
    EXPECT_THROW(dead_letters(options.redis_url, "wallet", "billing").count(), connection_error);
    set.first.command({"REPLICAOF", "NO", "ONE"});
    EXPECT_TRUE(eventually([&] { return consumer->stats().connected; }));
}

} // namespace outbox::test
