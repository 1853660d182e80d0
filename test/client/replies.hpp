// What a server sends, as text, and the reader that the client has on a connection.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include <hiredis/hiredis.h>

#include "src/reply.hpp"

namespace outbox::test {

inline std::string bulk(std::string_view text) {
    return "$" + std::to_string(text.size()) + "\r\n" + std::string(text) + "\r\n";
}

inline std::string array(std::initializer_list<std::string> elements) {
    std::string result = "*" + std::to_string(elements.size()) + "\r\n";
    for (const auto &element : elements)
        result += element;
    return result;
}

inline std::string integer(long long value) { return ":" + std::to_string(value) + "\r\n"; }

inline std::string texts(std::initializer_list<std::string_view> elements) {
    std::string result = "*" + std::to_string(elements.size()) + "\r\n";
    for (std::string_view element : elements)
        result += bulk(element);
    return result;
}

inline const std::string nil = "$-1\r\n", nil_array = "*-1\r\n";

// One connection's reader.
class reader {
  public:
    reader() : reader_(redisReaderCreate()) { state_.attach(*reader_); }

    struct give_back {
        redisReplyObjectFunctions *functions = nullptr;
        void operator()(redisReply *reply) const { functions->freeObject(reply); }
    };
    using reply = std::unique_ptr<redisReply, give_back>;

    void feed(std::string_view bytes) {
        redisReaderFeed(reader_.get(), bytes.data(), bytes.size());
    }

    // The next reply; null if it is not complete yet, or never will be: see error().
    reply next() {
        void *outermost = nullptr;
        redisReaderGetReply(reader_.get(), &outermost);
        return reply(static_cast<redisReply *>(outermost), {reader_->fn});
    }

    // A reply that is complete.
    reply read(std::string_view bytes) {
        feed(bytes);
        reply result = next();
        if (result == nullptr)
            throw std::logic_error("no reply: " + std::string(error()));
        return result;
    }

    // What the reply takes that is not complete yet.
    std::size_t half_read() const {
        return detail::arena_size(static_cast<const redisReply *>(reader_->reply));
    }

    const char *error() const { return reader_->errstr; }

  private:
    struct free_reader {
        void operator()(redisReader *reader) const { redisReaderFree(reader); }
    };
    // in this order: the reader gives a half-read reply back to its arena
    detail::arena_reader state_;
    std::unique_ptr<redisReader, free_reader> reader_;
};

} // namespace outbox::test
