#include "src/pattern.hpp"

#include "test/unit/grammar.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

using namespace outbox::detail;

namespace {

TEST(Pattern, types_and_topics_are_what_emit_takes) {
    for (int byte = 0; byte < 256; ++byte) {
        std::string one(1, static_cast<char>(byte));
        for (const std::string &text : {one, "a." + one, one + ".a", "a" + one + "b.c"}) {
            EXPECT_EQ(is_event_type(text), outbox_test::matches(text, 2, 200)) << text;
            EXPECT_EQ(is_topic(text), outbox_test::matches(text, 1, 100)) << text;
        }
    }
    EXPECT_TRUE(is_event_type("a." + std::string(198, 'b')));
    EXPECT_FALSE(is_event_type("a." + std::string(199, 'b')));
    EXPECT_TRUE(is_topic(std::string(100, 'b')));
    EXPECT_FALSE(is_topic(std::string(101, 'b')));
}

TEST(Pattern, is_an_event_type_in_which_a_segment_may_be_a_star) {
    for (const char *text :
         {"*", "billing.*", "*.created", "*.*", "a.*.b", "*.a.*", "wallet.created", "a.b.c"})
        EXPECT_TRUE(is_pattern(text)) << text;
    for (const char *text : {"", "wallet", ".", "*.", ".*", "a..*", "**", "a.**", "a*.b", "a.b*",
                             "a.*b", "a.* ", "a.?", "a.[b]", "a.b.", ".a.b", "*\n", "a.\xff"})
        EXPECT_FALSE(is_pattern(text)) << text;
    EXPECT_TRUE(is_pattern("*." + std::string(198, 'b')));
    EXPECT_FALSE(is_pattern("*." + std::string(199, 'b')));
}

TEST(Pattern, a_star_is_one_segment_and_at_the_end_one_or_more) {
    const struct {
        const char *pattern, *type;
        bool expected;
    } table[] = {
        {"billing.*", "billing.paid", true},
        {"billing.*", "billing.invoice.paid", true},
        {"billing.*", "billings.paid", false},
        {"billing.*", "x.billing.paid", false},
        {"*.created", "wallet.created", true},
        {"*.created", "wallet.item.created", false},
        {"*.created", "wallet.created.twice", false},
        {"*", "a.b", true},
        {"*", "a.b.c.d", true},
        {"*.*", "a.b", true},
        {"*.*", "a.b.c", true},
        {"a.*.c", "a.b.c", true},
        {"a.*.c", "a.b.b.c", false},
        {"a.*.c", "a.c", false},
        {"a.b.*", "a.b", false},
        {"a.b.*", "a.b.c", true},
        {"*.*.*", "a.b", false},
        {"a.b", "a.b", true},
        {"a.b", "a.b.c", false},
        {"a.b.c", "a.b", false},
        {"a.b", "a.B", false},
    };
    for (const auto &row : table)
        EXPECT_EQ(matches(row.pattern, row.type), row.expected) << row.pattern << " " << row.type;
}

TEST(Pattern, the_topic_is_its_first_segment_if_that_is_known) {
    EXPECT_EQ(topic_of("wallet.created"), "wallet");
    EXPECT_EQ(topic_of("billing.*"), "billing");
    EXPECT_EQ(topic_of("*.created"), "");
    EXPECT_EQ(topic_of("*"), "");
}

using verdict = routes::verdict;

TEST(Routes, the_type_itself_wins_over_patterns) {
    routes routes;
    EXPECT_TRUE(routes.empty());
    EXPECT_TRUE(routes.add("*", 0, 1));
    EXPECT_TRUE(routes.add("wallet.*", 0, 2));
    EXPECT_TRUE(routes.add("wallet.created", 0, 3));
    EXPECT_EQ(routes.find("wallet.created", 7).handler, 3u);
    EXPECT_EQ(routes.find("wallet.deleted", 7).handler, 2u);
    EXPECT_EQ(routes.find("user.created", 7).handler, 1u);
    EXPECT_FALSE(routes.empty());
}

TEST(Routes, the_exact_version_wins_over_any_in_whatever_order_they_come) {
    for (bool any_first : {true, false}) {
        routes routes;
        if (any_first)
            routes.add("wallet.created", 0, 9);
        routes.add("wallet.created", 1, 1);
        routes.add("wallet.created", 2, 2);
        if (!any_first)
            routes.add("wallet.created", 0, 9);
        EXPECT_EQ(routes.find("wallet.created", 1).handler, 1u);
        EXPECT_EQ(routes.find("wallet.created", 2).handler, 2u);
        EXPECT_EQ(routes.find("wallet.created", 3).handler, 9u);
    }
}

TEST(Routes, among_patterns_the_most_literal_segments_win_then_the_earlier_one) {
    routes routes;
    routes.add("*", 0, 1);
    routes.add("*.*.c", 0, 2);
    routes.add("a.*.*", 0, 3);
    routes.add("a.*.c", 0, 4);
    EXPECT_EQ(routes.find("a.b.c", 1).handler, 4u);
    EXPECT_EQ(routes.find("a.b.d", 1).handler, 3u);
    EXPECT_EQ(routes.find("x.b.c", 1).handler, 2u);
    routes.add("*.b.*", 0, 5);
    EXPECT_EQ(routes.find("x.b.c", 1).handler, 2u);
    EXPECT_EQ(routes.find("x.b.d", 1).handler, 5u);
}

TEST(Routes, an_event_that_nobody_is_for_is_unhandled) {
    routes routes;
    EXPECT_EQ(routes.find("a.b", 1).is, verdict::unhandled);
    routes.add("wallet.*", 0, 1);
    EXPECT_EQ(routes.find("a.b", 1).is, verdict::unhandled);
}

TEST(Routes, a_version_that_no_contract_is_for_is_unknown_unless_somebody_takes_it) {
    routes routes;
    routes.add("a.b", 1, 1);
    EXPECT_EQ(routes.find("a.b", 2).is, verdict::unknown_version);
    EXPECT_EQ(routes.find("a.c", 2).is, verdict::unhandled);
    routes.add("*.b", 0, 2);
    EXPECT_EQ(routes.find("a.b", 2).is, verdict::found);
    EXPECT_EQ(routes.find("a.b", 2).handler, 2u);
    EXPECT_EQ(routes.find("a.b", 1).handler, 1u);
}

TEST(Routes, a_pattern_and_version_is_taken_once) {
    routes routes;
    EXPECT_TRUE(routes.add("a.b", 0, 1));
    EXPECT_FALSE(routes.add("a.b", 0, 2));
    EXPECT_TRUE(routes.add("a.b", 1, 3));
    EXPECT_FALSE(routes.add("a.b", 1, 4));
    EXPECT_TRUE(routes.add("a.*", 0, 5));
    EXPECT_FALSE(routes.add("a.*", 0, 6));
    EXPECT_EQ(routes.find("a.b", 5).handler, 1u);
    EXPECT_EQ(routes.find("a.c", 5).handler, 5u);
    EXPECT_EQ(routes.patterns(), (std::vector<std::string>{"a.b", "a.*"}));
}

} // namespace
