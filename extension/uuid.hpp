// Event ids: UUID version 7 (RFC 9562, section 6.2, method 3: the clock's fraction in the bits behind the milliseconds).
#pragma once

#include <cstddef>
#include <cstdint>

namespace outbox {

// `unix_us` microseconds since 1970 and ten random bytes, of which 62 bits are used.
inline void make_uuid7(std::int64_t unix_us, const unsigned char *random, unsigned char *uuid) noexcept {
    std::uint64_t ms = static_cast<std::uint64_t>(unix_us / 1000);
    // 1000 us spread over 12 bits
    std::uint32_t fraction = static_cast<std::uint32_t>(unix_us % 1000) * 4096 / 1000;
    for (int i = 0; i < 6; ++i)
        uuid[i] = static_cast<unsigned char>(ms >> (40 - 8 * i));
    uuid[6] = static_cast<unsigned char>(0x70 | (fraction >> 8));
    uuid[7] = static_cast<unsigned char>(fraction);
    for (int i = 0; i < 8; ++i)
        uuid[8 + i] = random[i];
    uuid[8] = static_cast<unsigned char>((uuid[8] & 0x3f) | 0x80);
}

} // namespace outbox
