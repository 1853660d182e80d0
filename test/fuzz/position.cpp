// Positions, against arithmetic that cannot overflow.
#include "bgworker/position.hpp"

#include "test/fuzz/fuzz.hpp"

#include <algorithm>
#include <string>

using wide = unsigned __int128;

static bool number(std::string_view digits, wide &result) {
    constexpr wide most = static_cast<wide>(1) << 64;
    result = 0;
    for (char c : digits) {
        if (c < '0' || c > '9')
            return false;
        result = std::min(result * 10 + static_cast<unsigned>(c - '0'), most);
    }
    return !digits.empty() && result < most;
}

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    std::string_view text = text_of(data, size);
    auto dash = text.find('-');
    wide ms = 0, n = 0;
    bool good = dash != std::string_view::npos && number(text.substr(0, dash), ms) && number(text.substr(dash + 1), n);
    outbox::position at;
    EXPECT(outbox::parse(text, at) == good);
    if (!good)
        return 0;
    constexpr wide most = INT64_MAX;
    EXPECT(static_cast<wide>(at.ms) == std::min(ms, most) && static_cast<wide>(at.n) == std::min(n, most));

    char out[outbox::position_text_size];
    std::string printed(out, outbox::print(at, out));
    EXPECT(printed == std::to_string(at.ms) + "-" + std::to_string(at.n));
    outbox::position again;
    EXPECT(outbox::parse(printed, again) && again == at);
    return 0;
}
