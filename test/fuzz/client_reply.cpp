// Whatever a server sends, in whatever pieces: the replies are those that hiredis itself would make of it, and nothing that is
// looked at in them is out of bounds.
#include "src/entry.hpp"
#include "src/entry_id.hpp"
#include "src/pattern.hpp"
#include "src/reply.hpp"

#include "test/fuzz/fuzz.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace outbox::detail;

namespace {

struct free_reader {
    void operator()(redisReader *reader) const { redisReaderFree(reader); }
};
using reader = std::unique_ptr<redisReader, free_reader>;

void expect_alike(const redisReply &one, const redisReply &other) {
    EXPECT(one.type == other.type && one.integer == other.integer &&
           one.elements == other.elements);
    EXPECT(text(one) == text(other) && (one.str == nullptr) == (other.str == nullptr));
    EXPECT(one.str == nullptr || one.str[one.len] == '\0');
#if HIREDIS_MAJOR >= 1
    EXPECT(std::memcmp(&one.dval, &other.dval, sizeof one.dval) == 0 &&
           std::memcmp(one.vtype, other.vtype, sizeof one.vtype) == 0);
#endif
    for (std::size_t i = 0; i < one.elements; ++i)
        expect_alike(*one.element[i], *other.element[i]);
}

void look_at_entry(const raw_entry &entry) {
    entry_id id;
    EXPECT(parse(entry.id, id));
    if (entry.fields == nullptr)
        return;
    EXPECT(entry.fields->elements % 2 == 0);
    decoded result = decode(*entry.fields);
    if (result.reason.empty())
        EXPECT(result.fields.id.size() == 36 && !result.fields.type.empty() &&
               !result.fields.payload.empty());
    (void)check_json(result.fields);
    (void)aggregate_key(result.fields);
}

void look(const redisReply &reply) {
    EXPECT((classify(reply) == trouble::none) == (reply.type != REDIS_REPLY_ERROR));

    std::vector<raw_stream> streams(1);
    bool is_read = interpret_read(reply, streams);
    EXPECT(streams.size() == (is_read ? reply.elements : 0));
    for (const auto &stream : streams)
        for (const auto &entry : stream.entries)
            look_at_entry(entry);

    raw_entry entry{"x", &reply};
    if (interpret_entry(reply, entry))
        look_at_entry(entry);
    else
        EXPECT(entry.id.empty() && entry.fields == nullptr);

    pending_summary summary;
    summary.count = 7;
    if (!interpret_pending(reply, summary))
        EXPECT(summary.count == 0 && summary.owners.empty());
    std::vector<pending_entry> pending(1);
    EXPECT(interpret_pending_list(reply, pending) ? pending.size() == reply.elements
                                                  : pending.empty());
    (void)decode(reply);

    for (std::size_t i = 0; i < reply.elements; ++i)
        look(*reply.element[i]);
}

// hiredis' own functions take the memory that is announced.
bool announces_little(std::string_view bytes) {
    std::size_t digits = 0;
    for (char c : bytes) {
        digits = c >= '0' && c <= '9' ? digits + 1 : 0;
        if (digits > 4)
            return false;
    }
    return true;
}

} // namespace

// The first byte says how many bytes come at a time.
int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    if (size == 0)
        return 0;
    std::size_t piece = data[0] == 0 ? size : data[0];
    std::string_view bytes = text_of(data + 1, size - 1);
    (void)classify_error(bytes);
    std::string wrapped =
        "ERR Error running script (call to f_x): @user_script:1: " + std::string(bytes);
    if (!bytes.empty() &&
        std::string_view(": 0123456789-").find(bytes[0]) == std::string_view::npos &&
        bytes.find("@user_script") == std::string_view::npos)
        EXPECT(classify_error(wrapped) == classify_error(bytes));

    arena_reader state;
    reader ours(redisReaderCreate());
    state.attach(*ours);
    reader theirs(announces_little(bytes) ? redisReaderCreate() : nullptr);

    std::shared_ptr<const void> kept;
    std::string_view kept_text;
    std::string kept_copy;
    while (!bytes.empty()) {
        std::string_view next = bytes.substr(0, piece);
        bytes.remove_prefix(next.size());
        redisReaderFeed(ours.get(), next.data(), next.size());
        if (theirs)
            redisReaderFeed(theirs.get(), next.data(), next.size());
        for (;;) {
            void *one = nullptr, *other = nullptr;
            int status = redisReaderGetReply(ours.get(), &one);
            if (theirs) {
                EXPECT(redisReaderGetReply(theirs.get(), &other) == status);
                EXPECT((one == nullptr) == (other == nullptr) &&
                       std::strcmp(ours->errstr, theirs->errstr) == 0);
            }
            if (one == nullptr)
                break;
            auto *reply = static_cast<redisReply *>(one);
            if (other != nullptr) {
                expect_alike(*reply, *static_cast<redisReply *>(other));
                freeReplyObject(other);
            }
            // in proportion to what was sent: at the least 3 bytes for an element
            EXPECT(arena_size(reply) <=
                   1024 + size * (sizeof(redisReply) + 3 * sizeof(redisReply *)) + 9 * 8192);
            look(*reply);
            if (kept == nullptr && reply->str != nullptr) {
                kept = share(reply);
                kept_text = text(*reply);
                kept_copy = kept_text;
            }
            ours->fn->freeObject(one);
        }
    }
    EXPECT(kept_text == kept_copy);
    return 0;
}
