// What is taken for JSON is JSON to another parser, too.
#include "common/plain_json.hpp"

#include "test/fuzz/fuzz.hpp"

#include <nlohmann/json.hpp>

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    std::string_view text = text_of(data, size);
    if (outbox::is_plain_json(text)) {
        EXPECT(nlohmann::json::accept(text));
    }
    EXPECT(!outbox::is_plain_json(text, true) || nlohmann::json::parse(text).is_object());
    return 0;
}
