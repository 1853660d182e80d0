// What is taken for JSON, against another parser.
#include "extension/json_scan.hpp"

#include "test/fuzz/fuzz.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    std::string_view text = text_of(data, size);
    bool plain = outbox::is_plain_json(text);
    // That one ends at a zero, and wants UTF-8, pairs of surrogates and numbers that a double can hold.
    if (std::any_of(text.begin(), text.end(), [](char c) { return c & 0x80 || c == 0; }) || text.find("\\u") != text.npos)
        return 0;
    bool valid = true, deep = false;
    std::size_t depth = 0;
    try {
        (void)nlohmann::json::parse(text, [&](int, nlohmann::json::parse_event_t event, nlohmann::json &) {
            using kind = nlohmann::json::parse_event_t;
            depth += event == kind::object_start || event == kind::array_start;
            deep = deep || depth > 64;
            depth -= event == kind::object_end || event == kind::array_end;
            return true;
        });
    } catch (const nlohmann::json::out_of_range &) {
        return 0;
    } catch (const nlohmann::json::parse_error &) {
        valid = false;
    }
    EXPECT(deep ? !plain || valid : plain == valid);
    return 0;
}
