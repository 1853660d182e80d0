// The examples do what they say, on the real servers: from an emit in PostgreSQL to the effect, until SIGTERM.
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <outbox/emit.hpp>
#include <outbox/inbox.hpp>

#include "test/client/servers.hpp"

namespace outbox::test {
namespace {

// A running example; what it says is in a file.
class program {
  public:
    program(const std::string &name, std::vector<std::string> words, const std::map<std::string, std::string> &environment) {
        auto path = std::string(OUTBOX_EXAMPLES) + "/" + name;
        auto file = (std::filesystem::temp_directory_path() / "outbox-example-XXXXXX").string();
        int out = mkstemp(file.data());
        if (out < 0)
            throw std::runtime_error("could not make a temporary file");
        output_ = file;
        words.insert(words.begin(), path);
        std::vector<char *> argv;
        for (auto &word : words)
            argv.push_back(word.data());
        argv.push_back(nullptr);
        pid_ = fork();
        if (pid_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (const auto &[variable, value] : environment)
                setenv(variable.c_str(), value.c_str(), 1);
            dup2(out, 1);
            dup2(out, 2);
            execv(path.c_str(), argv.data());
            _exit(127);
        }
        close(out);
    }

    ~program() {
        kill9();
        std::filesystem::remove(output_);
    }

    program(const program &) = delete;
    program &operator=(const program &) = delete;

    std::string output() const {
        std::ifstream file(output_);
        return {std::istreambuf_iterator<char>(file), {}};
    }

    // Once it does; false if it does not, or has ended without.
    bool says(const std::string &words) {
        bool heard = false;
        eventually([&] {
            bool over = ended();
            heard = output().find(words) != std::string::npos;
            return heard || over;
        });
        return heard;
    }

    bool ended() {
        if (pid_ > 0 && waitpid(pid_, &status_, WNOHANG) == pid_)
            pid_ = 0;
        return pid_ == 0;
    }

    // Its exit status after SIGTERM; -1 if it does not end, or not by itself.
    int terminate() {
        if (ended())
            return -1;
        ::kill(pid_, SIGTERM);
        return eventually([&] { return ended(); }) && WIFEXITED(status_) ? WEXITSTATUS(status_) : -1;
    }

    void kill9() {
        if (pid_ <= 0)
            return;
        ::kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        pid_ = 0;
    }

  private:
    std::string output_;
    pid_t pid_ = 0;
    int status_ = 0;
};

class Examples : public testing::Test {
  protected:
    void SetUp() override {
        if (!std::filesystem::exists(OUTBOX_EXAMPLES))
            GTEST_SKIP() << "the examples are not built: OUTBOX_BUILD_EXAMPLES";
        redis().command("FLUSHALL"); // before the database's worker knows it
        database_.emplace();
        session_.emplace(database_->connect());
    }

    static redis_server &redis() { return servers::instance().redis; }

    // With what every example needs.
    std::map<std::string, std::string> environment(const std::string &variable, const std::string &value) {
        return {{"OUTBOX_REDIS_URL", redis().url()}, {"OUTBOX_CLAIM_IDLE_MS", "2100"}, {variable, value}};
    }

    std::optional<database> database_;
    std::optional<session> session_;
};

TEST_F(Examples, WalletsGreetsTheOwnersOfTheWalletsThatItOpens) {
    program wallets("wallets", {"ada", "grace"}, environment("WALLETS_DATABASE", database_->conninfo()));
    for (std::string owner : {"ada", "grace"}) {
        EXPECT_TRUE(wallets.says("welcome, " + owner)) << wallets.output();
        EXPECT_TRUE(wallets.says("wallet " + session_->sql("SELECT id FROM wallet WHERE owner = '" + owner + "'") + " is yours"))
            << wallets.output();
    }
    EXPECT_EQ(wallets.terminate(), 0) << wallets.output();
}

TEST_F(Examples, BillingGivesEachUserOneProfileHoweverOftenItIsKilled) {
    constexpr int users = 300;
    auto environment = this->environment("BILLING_DATABASE", database_->conninfo());
    auto billing = std::make_unique<program>("billing", std::vector<std::string>{}, environment);
    ASSERT_TRUE(eventually([&] { return billing->ended() || session_->sql("SELECT to_regclass('billing_profile')") != ""; }));
    ASSERT_FALSE(billing->ended()) << billing->output();

    std::vector<new_event> events;
    for (int i = 0; i < users; ++i) {
        auto id = std::to_string(i);
        events.push_back({.type = "identity.user.created", .payload = {{"user_id", id}}, .aggregate_id = id});
    }
    auto ids = emit(session_->get(), events);
    // and what a careless operator does
    for (std::size_t i = 0; i < events.size(); ++i)
        events[i].id = ids[i];
    emit(session_->get(), events);

    auto profiles = [&] { return std::stoi(session_->sql("SELECT count(*) FROM billing_profile")); };
    for (int enough : {20, 100, 200}) {
        EXPECT_TRUE(eventually([&] { return profiles() >= enough; })) << billing->output();
        billing->kill9();
        billing = std::make_unique<program>("billing", std::vector<std::string>{}, environment);
    }
    auto pending = [&] {
        auto groups = redis().command("XINFO", "GROUPS", "outbox:{identity}");
        for (std::size_t i = 0; groups->elements == 1 && i + 1 < groups->element[0]->elements; i += 2)
            if (groups->element[0]->element[i]->str == std::string_view("pending"))
                return groups->element[0]->element[i + 1]->integer;
        return -1LL;
    };
    EXPECT_TRUE(eventually([&] { return profiles() >= users && pending() == 0; })) << billing->output();
    EXPECT_EQ(billing->terminate(), 0) << billing->output();
    EXPECT_EQ(profiles(), users);
    EXPECT_EQ(session_->sql("SELECT count(DISTINCT user_id) FROM billing_profile"), std::to_string(users));
    EXPECT_EQ(session_->sql("SELECT count(*) FROM outbox_inbox.event"), std::to_string(users));

    // what it told the others: once for each, with the user's event as the cause
    auto told = session_->rows("SELECT headers::json->>'causation_id', headers::json->>'correlation_id' FROM outbox.stored_event "
                               "WHERE event_type = 'billing.profile.created'");
    std::set<std::string> causes;
    for (const auto &row : told) {
        causes.insert(row[0]);
        EXPECT_EQ(row[1], row[0]) << "the user's event began the correlation";
    }
    EXPECT_EQ(told.size(), ids.size());
    EXPECT_EQ(causes, std::set<std::string>(ids.begin(), ids.end()));
}

TEST_F(Examples, CacheDeletesWhatIsStale) {
    auto environment = this->environment("CACHE_PORT", std::to_string(redis().port()));
    program cache("cache", {}, environment);
    for (int product : {1, 2, 3})
        redis().command("SET", "product:" + std::to_string(product), "cached");
    session_->sql("BEGIN");
    emit(session_->get(), {.type = "catalog.product.changed", .aggregate_id = "1"});
    emit(session_->get(), {.type = "catalog.product.price.changed", .aggregate_id = "2"});
    emit(session_->get(), {.type = "catalog.product.changed", .aggregate_id = "9"});
    EXPECT_EQ(redis().command("EXISTS", "product:1", "product:2")->integer, 2) << "nothing is committed yet";
    session_->sql("COMMIT");
    EXPECT_TRUE(cache.says("product:1 deleted")) << cache.output();
    EXPECT_TRUE(cache.says("product:2 deleted")) << cache.output();
    EXPECT_TRUE(cache.says("product:9 is not cached")) << cache.output();
    EXPECT_EQ(redis().command("EXISTS", "product:1", "product:2")->integer, 0);
    EXPECT_EQ(redis().command("EXISTS", "product:3")->integer, 1);
    EXPECT_EQ(cache.terminate(), 0) << cache.output();
}

} // namespace
} // namespace outbox::test
