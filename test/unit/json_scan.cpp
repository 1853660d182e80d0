#include "extension/json_scan.hpp"

#include <gtest/gtest.h>

#include <string>

using outbox::is_plain_json;

namespace {

TEST(json_scan, takes_json) {
    for (const char *text :
         {"{}", "[]", " [ ] ", "0", "-0", "-0.5e+10", "12.50", "1E9", "true", "false", "null", "\"\"", "\t\r\n {\"a\" : [1, {\"b\":[]}] } ",
          R"("\" \\ \/ \b \f \n \r \t é €")", R"({"a":1,"a":2})", R"({"":{"":[null,true,false]}})", R"("\ud800")", R"("\u0000")",
          R"(["12345678","123456789012345","a long text without anything that is special in it"])"})
        EXPECT_TRUE(is_plain_json(text)) << text;
}

TEST(json_scan, takes_nothing_else) {
    for (const char *text :
         {"", " ", "{", "}", "[", "]", "\"", "{]", "[}", "{}}", "{} {}", "[1,]", "[,1]", "[1 2]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{,}",
          "{1:2}", "{\"a\" 1}", "{\"a\":1 \"b\":2}", "{\"a\":1]", "tru", "truex", "True", "nul", "nan", "'a'", "01", "-", "+1", "1.", ".5", "1e", "1e+",
          "1.e5", "0x1", "1a", "--1", R"("\x")", R"("\u12")", R"("\u12g4")", R"("\)", R"("\")", "\"a\nb\"", "\"1234567\x01\"", "\"123456789",
          "/* */1", "\f1", "\xef\xbb\xbf{}"})
        EXPECT_FALSE(is_plain_json(text)) << text;
}

// at each place of the eight bytes that are looked at together
TEST(json_scan, sees_what_ends_a_string_wherever_it_is) {
    for (std::size_t before = 0; before < 40; ++before) {
        std::string text = "\"" + std::string(before, before % 2 ? 'x' : '\xff');
        EXPECT_TRUE(is_plain_json(text + "\"")) << before;
        EXPECT_TRUE(is_plain_json(text + "\\n\"")) << before;
        EXPECT_FALSE(is_plain_json(text + "\n\"")) << before;
        EXPECT_FALSE(is_plain_json(text + "\x1f" + std::string(20, 'x') + "\"")) << before;
        EXPECT_FALSE(is_plain_json(text)) << before;
        EXPECT_FALSE(is_plain_json(text + "\"\"")) << before;
    }
}

TEST(json_scan, leaves_what_is_nested_deeply_to_others) {
    for (std::size_t depth : {1, 63, 64, 65, 1000}) {
        std::string text(depth, '[');
        text.append(depth, ']');
        EXPECT_EQ(is_plain_json(text), depth <= 64) << depth;
    }
}

} // namespace
