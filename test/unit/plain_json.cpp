// The first look at JSON never says yes to what the library says no to, and says yes to what people send.
#include "common/plain_json.hpp"

#include <random>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

using outbox::is_plain_json;
using namespace std::string_literals;

namespace {

const std::string everyday[] = {
    R"({"invoice":"000000000042","amount":"12.50","currency":"EUR","note":"thank you for your order"})",
    R"({"name": "Jörg Müßig", "city": "東京", "smile": "😀", "quote": "\"so\"\\\/\b\f\n\r\t\u00e9"})",
    R"( [ 0, -0, -1.5, 2.25e10, 1E-7, 3e+2, 12345678901234567890, true, false, null, {}, [], [[]], {"a": {}} ] )",
    "\"exactly 8\"",
    "\"0123456\"",
    "\"01234567\"",
    "\"012345678\"",
    "{\"a\"\t:\n1\r,\"b\" : [ ] }",
    "7",
    "{}",
    std::string(64, '[') + std::string(64, ']'),
};

} // namespace

TEST(PlainJson, is_what_nearly_every_event_carries) {
    for (const std::string &text : everyday) {
        EXPECT_TRUE(is_plain_json(text, false)) << text;
        EXPECT_EQ(is_plain_json(text, true), nlohmann::json::parse(text).is_object()) << text;
    }
}

TEST(PlainJson, is_nothing_that_is_not_json) {
    for (const std::string &text :
         {""s, " "s, "{"s, "}"s, "[1,]"s, "[,1]"s, "{,}"s, "{\"a\"}"s, "{\"a\":}"s, "{\"a\":1,}"s, "{1:2}"s, "[1 2]"s, "{}{}"s,
          "[}"s, "{]"s, "nul"s, "True"s, "01"s, "-"s, "-01"s, "1."s, ".5"s, "+1"s, "1e"s, "1e+"s, "0x1"s, "'a'"s, "\""s, "\"\\\""s,
          "\"\\x\""s, "\"\\u12g4\""s, "\"\\u12"s, "\"\n\""s, "\"\x1f\""s, "\"\xff\""s, "\"\xc0\xaf\""s, "\"\xe0\x80\xaf\""s,
          "\"\xed\xa0\x80\""s, "\"\xf4\x90\x80\x80\""s, "\"\xe2\x82\""s, "\"\xe2\x82"s, "{}\0"s, "\"a\0b\""s, "NaN"s, "1e400"s})
        EXPECT_FALSE(is_plain_json(text, false)) << text;
}

TEST(PlainJson, is_json_whatever_a_text_is_changed_to) {
    std::mt19937 random(20261121);
    auto below = [&random](std::size_t bound) { return random() % bound; };
    const std::string bits = "{}[]:,\"\\u0123e+-.tfn \n\x01\x7f\x80\xbf\xc2\xe0\xed\xf0\xf4\xff";
    int plain = 0;
    for (int i = 0; i < 200'000; ++i) {
        std::string text = everyday[below(std::size(everyday))];
        for (auto changes = below(4); changes > 0; --changes) {
            std::size_t at = below(text.size());
            if (below(2) == 0)
                text.insert(at, 1, bits[below(bits.size())]);
            else if (below(2) == 0 && text.size() > 1)
                text.erase(at, 1);
            else
                text[at] = bits[below(bits.size())];
        }
        if (!is_plain_json(text, false))
            continue;
        ++plain;
        ASSERT_TRUE(nlohmann::json::accept(text)) << text;
    }
    EXPECT_GT(plain, 10'000);
}
