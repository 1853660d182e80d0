#include "bgworker/confirm_level.hpp"

#include <gtest/gtest.h>

using outbox::read_confirm_level;

namespace {

TEST(confirm_level, what_cannot_be_read_is_the_strictest) {
    EXPECT_TRUE(read_confirm_level("memory").is_memory());
    EXPECT_EQ(read_confirm_level("replicas(12)").replicas, 12);
    EXPECT_FALSE(read_confirm_level("replicas(12)").fsync);
    for (const char *strict : {"fsync", "", "replicas()", "replicas(0)", "replicas(-1)", "Memory"}) {
        EXPECT_TRUE(read_confirm_level(strict).fsync) << strict;
        EXPECT_FALSE(read_confirm_level(strict).is_memory()) << strict;
    }
}

} // namespace
