#include "bgworker/reply.hpp"

#include <gtest/gtest.h>

#include <string>

using outbox::blame;
using outbox::blame_for;
using outbox::hint_for;

namespace {

// Error replies as Redis 6.2 to 7.4 and Valkey 8 write them, to an XADD that runs inside EXEC.
TEST(reply, who_is_to_blame_for_an_entry) {
    const struct {
        const char *error;
        blame expected;
    } table[] = {
        {"ERR The ID specified in XADD is equal or smaller than the target stream top item", blame::rejected},

        {"WRONGTYPE Operation against a key holding the wrong kind of value", blame::stream},
        {"ERR The ID specified in XADD must be greater than 0-0", blame::stream},
        {"ERR The stream has exhausted the last possible ID, unable to add more items", blame::stream},
        {"ERR Elements are too large to be stored", blame::stream},
        {"ERR string exceeds maximum allowed size (proto-max-bulk-len)", blame::stream},
        {"NOPERM this user has no permissions to access one of the keys used as arguments", blame::stream},
        {"NOPERM No permissions to access a key", blame::stream},
        {"NOPERM ACLs rules changed between the moment the transaction was accumulated and the EXEC call. This command is no "
         "longer allowed for the following reason: no permission to touch the specified keys",
         blame::stream},
        {"ERR something that nobody has heard of", blame::stream},

        {"NOPERM this user has no permissions to run the 'xadd' command", blame::sink},
        {"NOPERM this user has no permissions to run the 'xadd' command or its subcommand", blame::sink},
        {"NOPERM User anna has no permissions to run the 'xadd' command", blame::sink},
        {"NOPERM this user has no permissions to access one of the channels used as arguments", blame::sink},
        {"NOPERM ACLs rules changed between the moment the transaction was accumulated and the EXEC call. This command is no "
         "longer allowed for the following reason: no permission to execute the command or subcommand",
         blame::sink},
        {"OOM command not allowed when used memory > 'maxmemory'.", blame::sink},
        {"READONLY You can't write against a read only replica.", blame::sink},
        {"READONLY You can't write against a read only slave.", blame::sink},
        {"LOADING Redis is loading the dataset in memory", blame::sink},
        {"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", blame::sink},
        {"CLUSTERDOWN Hash slot not served", blame::sink},
        {"CLUSTERDOWN The cluster is down", blame::sink},
        {"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. Commands that may "
         "modify the data set are disabled, because this instance is configured to report errors during writes if RDB "
         "snapshotting fails (stop-writes-on-bgsave-error option). Please check the Redis logs for details about the RDB error.",
         blame::sink},
        {"MISCONF Errors writing to the AOF file: No space left on device", blame::sink},
        {"NOREPLICAS Not enough good replicas to write.", blame::sink},
        {"NOAUTH Authentication required.", blame::sink},
        {"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", blame::sink},
        {"UNKILLABLE Sorry the script already executed write commands against the dataset.", blame::sink},
        {"TRYAGAIN Multiple keys request during rehashing of slot", blame::sink},
        {"MOVED 3999 127.0.0.1:6381", blame::sink},
        {"ASK 3999 127.0.0.1:6381", blame::sink},
        {"CROSSSLOT Keys in request don't hash to the same slot", blame::sink},
    };
    for (const auto &row : table)
        EXPECT_EQ(blame_for(row.error, false), row.expected) << row.error;
}

// What is refused when it is queued aborts the chunk. Only a key that we may not touch can be left out of the next one.
TEST(reply, who_is_to_blame_for_a_refusal_to_queue) {
    for (const char *error :
         {"OOM command not allowed when used memory > 'maxmemory'.", "READONLY You can't write against a read only replica.",
          "ERR unknown command 'XADD', with args beginning with: 'outbox:{a}' ",
          "ERR wrong number of arguments for 'xadd' command", "NOAUTH Authentication required.",
          "MISCONF Errors writing to the AOF file: No space left on device", "NOREPLICAS Not enough good replicas to write.",
          "NOPERM this user has no permissions to run the 'xadd' command",
          "NOPERM User anna has no permissions to run the 'xadd' command",
          "MOVED 3999 127.0.0.1:6381", "ERR something that nobody has heard of", ""})
        EXPECT_EQ(blame_for(error, true), blame::sink) << error;
    EXPECT_EQ(blame_for("NOPERM this user has no permissions to access one of the keys used as arguments", true), blame::stream);
    EXPECT_EQ(blame_for("NOPERM No permissions to access a key", true), blame::stream);
}

// The code is the first word: the rest is text, and in it may be anything.
TEST(reply, the_code_is_the_first_word) {
    EXPECT_EQ(blame_for("ERR this is not about READONLY or OOM", false), blame::stream);
    EXPECT_EQ(blame_for("WRONGTYPE MOVED", false), blame::stream);
    EXPECT_EQ(blame_for("", false), blame::stream);
}

TEST(reply, every_error_has_a_hint_that_says_where_to_look) {
    const struct {
        const char *error, *word;
    } table[] = {
        {"NOAUTH Authentication required.", "password"},
        {"WRONGPASS invalid username-password pair or user is disabled.", "password"},
        {"ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is "
         "correct?",
         "password"},
        {"NOPERM this user has no permissions to run the 'xadd' command", "README"},
        {"OOM command not allowed when used memory > 'maxmemory'.", "maxmemory"},
        {"READONLY You can't write against a read only replica.", "primary"},
        {"TLS: the server's certificate has expired", "Renew"},
        {"TLS: the server's certificate is not for host \"h\"", "alternative names"},
        {"sentinel at \"h:26379\": TLS: the server's certificate is self-signed", "sslrootcert"},
        {"TLS: the handshake timed out", "TLS port"},
        {"TLS: private key file \"k\" has group or world access; use mode 0600", "owner"},
        {"sentinel at \"h:26379\": WRONGPASS invalid username-password pair or user is disabled.", "password"},
        {"sentinel at \"h:26379\": it knows no master of this name", "name of the master"},
        {"MOVED 3999 127.0.0.1:6381", "Cluster"},
        {"CLUSTERDOWN Hash slot not served", "Cluster"},
        {"CROSSSLOT Keys in request don't hash to the same slot", "Cluster"},
        {"MISCONF Errors writing to the AOF file: No space left on device", "disk"},
        {"entries cannot be confirmed with WAITAOF: ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.", "appendonly yes"},
        {"entries cannot be confirmed with WAITAOF: ERR unknown command 'WAITAOF', with args beginning with: '1' '0' '1' ", "7.2"},
        {"ERR WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if a replica is configured to be writable (which is "
         "not the default) writes to replicas are just local and are not propagated.",
         "primary"},
        {"NOPERM this user has no permissions to run the 'wait' command", "Redis privileges"},
        {"Protocol error, got \"H\" as reply type byte", "leads to a Redis server"},
        {"connection refused", "outbox.redis_url"},
        {"ERR something that nobody has heard of", "outbox.redis_url"},
        {"", "outbox.redis_url"},
    };
    for (const auto &row : table) {
        std::string hint = hint_for(row.error);
        EXPECT_NE(hint.find(row.word), std::string::npos) << row.error << ": " << hint;
        EXPECT_EQ(hint.back(), '.') << hint;
    }
}

} // namespace
