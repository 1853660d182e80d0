// What is written to: whether it is a terminal, how wide, and what of a text may go there.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>

namespace outbox::ctl {

// Once, before anything is written: the locale says whether characters beyond ASCII can be shown.
void prepare_terminal();

bool is_terminal(std::FILE *file) noexcept;

// Not when it is no terminal, or NO_COLOR is set, or TERM is dumb.
bool shows_colours(std::FILE *file) noexcept;

bool shows_unicode() noexcept;

struct screen_size {
    std::size_t rows, columns;
};
// That of the terminal, else COLUMNS and LINES, else 24 x 80.
screen_size terminal_size() noexcept;

// The text on one line with nothing in it that a terminal would obey, or that would be read in another order than it is
// written: escaped as \xNN or \u{NNNN}.
std::string shown(std::string_view text);

// How many columns a text takes that shown() gave, and its beginning that takes no more than so many.
std::size_t width(std::string_view text) noexcept;
std::string cut(std::string_view text, std::size_t columns);

enum class colour { none, good, warning, bad, dim, bold };
// The text in a colour, as a terminal wants it; unchanged where `use` is false.
std::string in(colour which, std::string_view text, bool use);

// Writes to standard output; throws failure when it cannot.
void write(std::string_view text);

} // namespace outbox::ctl
