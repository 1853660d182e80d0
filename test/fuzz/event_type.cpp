// Event types and topics, against the slow reference.
#include "extension/event_type.hpp"

#include "test/fuzz/fuzz.hpp"
#include "test/unit/grammar.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    std::string_view text = text_of(data, size);
    bool is_type = outbox::is_event_type(text);
    EXPECT(is_type == outbox_test::matches(std::string(text), 2, 200));
    EXPECT(outbox::is_topic(text) == outbox_test::matches(std::string(text), 1, 100));
    if (is_type) {
        std::string_view topic = outbox::default_topic(text);
        EXPECT(text.starts_with(topic) && text[topic.size()] == '.');
        EXPECT(outbox::is_topic(topic) == (topic.size() <= 100));
    }
    return 0;
}
