// Rows of texts under a header, aligned. For people: scripts take --json.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ctl/postgres.hpp"
#include "ctl/terminal.hpp"

namespace outbox::ctl {

class table {
  public:
    enum class align { left, right };
    struct column {
        std::string name;
        align where = align::left;
    };
    struct cell {
        std::string text; // as shown() gives it
        colour is = colour::none;
    };

    explicit table(std::vector<column> columns) : columns_(std::move(columns)) {}

    void add(std::vector<cell> row) { rows_.push_back(std::move(row)); }
    bool empty() const noexcept { return rows_.empty(); }

    // `columns`: lines are cut there; 0: never.
    std::string text(bool colours, std::size_t columns = 0) const;

  private:
    std::vector<column> columns_;
    std::vector<std::vector<cell>> rows_;
};

// "name  value", a line each, the values under each other.
class facts {
  public:
    void add(std::string name, std::string value, colour is = colour::none) {
        rows_.push_back({std::move(name), std::move(value), is});
    }
    std::string text(bool colours) const;

  private:
    struct row {
        std::string name, value;
        colour is;
    };
    std::vector<row> rows_;
};

// "-" for what is not known, a number as it is, a text as shown() gives it.
std::string plain(const json &value);

// 0.25 s, 12 s, 3 min 5 s, 2 h 10 min, 4 d 3 h; "-" for null.
std::string duration(const json &seconds);

// A number with as many decimals as it needs: 0.4, 12.5, 1734; "-" for null.
std::string decimal(const json &number);

// 1 attempt, 2 attempts
std::string counted(std::int64_t count, const std::string &what);

// What --json prints: one line; what is no UTF-8 is replaced.
std::string line_of(const json &document);

// RFC 3339 in UTC with milliseconds.
std::string time_of(std::int64_t unix_ms);

} // namespace outbox::ctl
