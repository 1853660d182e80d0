// A replication connection that reads a logical slot: what the server sends, message by message,
// and the position that is told back to it.
#pragma once

#include "clock.hpp"
#include "options.hpp"

#include <cstdint>
#include <cstring>
#include <endian.h>
#include <libpq-fe.h>
#include <optional>
#include <string>
#include <string_view>

inline std::uint64_t read_uint64(const char *at) {
    std::uint64_t value;
    std::memcpy(&value, at, sizeof value);
    return be64toh(value);
}

inline std::uint32_t read_uint32(const char *at) {
    std::uint32_t value;
    std::memcpy(&value, at, sizeof value);
    return be32toh(value);
}

inline std::uint16_t read_uint16(const char *at) {
    std::uint16_t value;
    std::memcpy(&value, at, sizeof value);
    return be16toh(value);
}

class walsender {
  public:
    struct message {
        std::uint64_t lsn; // of a commit: its end
        std::string_view text;
    };

    // settings: of the output plugin, as START_REPLICATION takes them
    walsender(const std::string &conninfo, const std::string &slot, const std::string &settings) {
        connection_ =
            PQconnectdb((conninfo + " replication=database options='-c timezone=UTC'").c_str());
        if (PQstatus(connection_) != CONNECTION_OK)
            fail();
        std::string command =
            "START_REPLICATION SLOT \"" + slot + "\" LOGICAL 0/0 (" + settings + ")";
        PGresult *result = PQexec(connection_, command.c_str());
        if (PQresultStatus(result) != PGRES_COPY_BOTH)
            fail();
        PQclear(result);
    }
    ~walsender() {
        PQfreemem(buffer_);
        PQfinish(connection_);
    }
    walsender(const walsender &) = delete;

    int fd() const { return PQsocket(connection_); }

    // What has arrived, until the next call; nothing when there is nothing now.
    std::optional<message> next() {
        for (;;) {
            PQfreemem(buffer_);
            buffer_ = nullptr;
            int length = PQgetCopyData(connection_, &buffer_, 1);
            if (length == 0)
                return {};
            if (length < 0)
                fail();
            if (buffer_[0] == 'w' && length >= 25)
                return message{read_uint64(buffer_ + 1),
                               {buffer_ + 25, static_cast<std::size_t>(length) - 25}};
            if (buffer_[0] == 'k' && length >= 18) {
                keepalive_ = read_uint64(buffer_ + 1);
                answer_due_ = answer_due_ || buffer_[17];
            }
        }
    }

    // Reads from the socket what is there.
    void consume() {
        if (!PQconsumeInput(connection_))
            fail();
    }

    // Everything before is published. Tells the server, not more often than ten times a second: it
    // only spares reading again after a crash. At once if the server has asked, or if it is urgent.
    void confirm(std::uint64_t lsn, bool urgent = false) {
        std::int64_t now = now_ns();
        if (!urgent && !answer_due_ && (lsn == confirmed_ || now - told_at_ < 100'000'000))
            return;
        confirmed_ = lsn;
        told_at_ = now;
        answer_due_ = false;
        char reply[34] = {'r'};
        std::uint64_t position = htobe64(lsn);
        for (int at : {1, 9, 17})
            std::memcpy(reply + at, &position, sizeof position);
        if (PQputCopyData(connection_, reply, sizeof reply) != 1 || PQflush(connection_) != 0)
            fail();
    }

    // how far the server had come when it had nothing to send
    std::uint64_t keepalive() const { return keepalive_; }

  private:
    [[noreturn]] void fail() {
        options::fail(std::string("replication: ") + PQerrorMessage(connection_));
    }

    PGconn *connection_;
    char *buffer_ = nullptr;
    std::uint64_t confirmed_ = 0, keepalive_ = 0;
    std::int64_t told_at_ = 0;
    bool answer_due_ = false;
};
