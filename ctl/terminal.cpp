#include "ctl/terminal.hpp"

#include <cerrno>
#include <clocale>
#include <cstdlib>
#include <cstring>
#include <cwchar>
#include <langinfo.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ctl/failure.hpp"

namespace outbox::ctl {

static bool unicode = false;

void prepare_terminal() {
    std::setlocale(LC_CTYPE, "");
    unicode = std::strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

bool shows_unicode() noexcept { return unicode; }

bool is_terminal(std::FILE *file) noexcept { return isatty(fileno(file)) == 1; }

bool shows_colours(std::FILE *file) noexcept {
    const char *no_colour = std::getenv("NO_COLOR"), *term = std::getenv("TERM");
    return is_terminal(file) && (no_colour == nullptr || *no_colour == '\0') && term != nullptr &&
           std::strcmp(term, "dumb") != 0;
}

screen_size terminal_size() noexcept {
    auto from = [](const char *name, std::size_t otherwise) {
        const char *text = std::getenv(name);
        std::size_t value = text != nullptr ? std::strtoul(text, nullptr, 10) : 0;
        return value >= 1 && value <= 10'000 ? value : otherwise;
    };
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0)
        return {size.ws_row, size.ws_col};
    return {from("LINES", 24), from("COLUMNS", 80)};
}

// The character that begins the text, and how many bytes it has; 0 bytes where it is no UTF-8.
static std::size_t decode(std::string_view text, char32_t &character) noexcept {
    auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    std::size_t size = byte(0) < 0x80 ? 1 : byte(0) >> 5 == 6 ? 2 : byte(0) >> 4 == 14 ? 3 : byte(0) >> 3 == 30 ? 4 : 0;
    if (size == 0 || size > text.size())
        return 0;
    character = size == 1 ? byte(0) : byte(0) & (0x7fu >> size);
    for (std::size_t i = 1; i < size; ++i) {
        if (byte(i) >> 6 != 2)
            return 0;
        character = character << 6 | (byte(i) & 0x3fu);
    }
    constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    bool valid = character >= least[size] && character <= 0x10ffff && (character < 0xd800 || character > 0xdfff);
    return valid ? size : 0;
}

// Of zero width, or turning the direction of what follows.
static bool deceives(char32_t c) noexcept {
    return (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff ||
           c == 0x061c;
}

static bool harmless(char32_t c) noexcept {
    if (c < 0x80)
        return c >= 0x20 && c != 0x7f;
    return unicode && c >= 0xa0 && !deceives(c) && wcwidth(static_cast<wchar_t>(c)) > 0;
}

std::string shown(std::string_view text) {
    std::string result;
    char escape[16];
    while (!text.empty()) {
        char32_t character = 0;
        std::size_t size = decode(text, character);
        if (size > 0 && harmless(character))
            result.append(text.substr(0, size));
        else if (size > 1)
            result.append(escape, static_cast<std::size_t>(
                                      std::snprintf(escape, sizeof escape, "\\u{%x}", static_cast<unsigned>(character))));
        else
            result.append(escape, static_cast<std::size_t>(
                                      std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned char>(text[0]))));
        text.remove_prefix(size > 0 ? size : 1);
    }
    return result;
}

// Walks over the characters until `columns` would be exceeded; how many bytes that is, and how many columns.
static std::pair<std::size_t, std::size_t> measure(std::string_view text, std::size_t columns) noexcept {
    std::size_t at = 0, taken = 0;
    while (at < text.size()) {
        char32_t character = 0;
        std::size_t size = decode(text.substr(at), character);
        int wide = size == 0 ? 1 : wcwidth(static_cast<wchar_t>(character));
        std::size_t more = wide > 0 ? static_cast<std::size_t>(wide) : 0;
        if (taken + more > columns)
            break;
        taken += more;
        at += size > 0 ? size : 1;
    }
    return {at, taken};
}

std::size_t width(std::string_view text) noexcept { return measure(text, text.size()).second; }

std::string cut(std::string_view text, std::size_t columns) {
    if (width(text) <= columns)
        return std::string(text);
    constexpr std::string_view more = "...";
    if (columns <= more.size())
        return std::string(text.substr(0, measure(text, columns).first));
    return std::string(text.substr(0, measure(text, columns - more.size()).first)).append(more);
}

std::string in(colour which, std::string_view text, bool use) {
    constexpr std::string_view codes[] = {"", "\033[32m", "\033[33m", "\033[31m", "\033[2m", "\033[1m"};
    auto code = codes[static_cast<std::size_t>(which)];
    if (!use || code.empty())
        return std::string(text);
    return std::string(code).append(text).append("\033[0m");
}

void write(std::string_view text) {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
        throw failure(exit_code::unavailable, std::string("could not write the answer: ") + std::strerror(errno));
}

} // namespace outbox::ctl
