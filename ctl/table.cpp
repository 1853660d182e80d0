#include "ctl/table.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>

namespace outbox::ctl {

static std::string padded(std::string_view text, std::size_t columns, table::align where) {
    std::string blanks(columns - std::min(columns, width(text)), ' ');
    return where == table::align::right ? blanks + std::string(text) : std::string(text) + blanks;
}

std::string table::text(bool colours, std::size_t columns) const {
    std::vector<std::size_t> widths;
    for (const auto &one : columns_)
        widths.push_back(width(one.name));
    for (const auto &row : rows_)
        for (std::size_t i = 0; i < row.size(); ++i)
            widths[i] = std::max(widths[i], width(row[i].text));

    std::string result;
    auto line = [&](auto &&cell_of, std::size_t count) {
        std::size_t left = columns == 0 ? std::string::npos : columns;
        for (std::size_t i = 0; i < count && left > 0; ++i) {
            cell one = cell_of(i);
            bool last = i + 1 == count;
            // nothing but blanks behind the last: a line that wraps by them looks broken
            std::string text =
                last && columns_[i].where == align::left ? one.text : padded(one.text, widths[i], columns_[i].where);
            if (left != std::string::npos) {
                text = cut(text, left);
                left -= std::min(left, width(text) + 2);
            }
            result += in(one.is, text, colours);
            if (!last)
                result += "  ";
        }
        while (result.ends_with(' '))
            result.pop_back();
        result += "\n";
    };
    line([&](std::size_t i) { return cell{columns_[i].name, colour::bold}; }, columns_.size());
    for (const auto &row : rows_)
        line([&](std::size_t i) { return row[i]; }, row.size());
    return result;
}

std::string facts::text(bool colours) const {
    std::size_t widest = 0;
    for (const auto &row : rows_)
        widest = std::max(widest, width(row.name));
    std::string result;
    for (const auto &row : rows_)
        result += in(colour::dim, padded(row.name, widest, table::align::left), colours) + "  " +
                  in(row.is, row.value, colours) + "\n";
    return result;
}

std::string plain(const json &value) {
    if (value.is_null())
        return "-";
    if (value.is_string())
        return shown(value.get_ref<const std::string &>());
    return value.dump();
}

std::string duration(const json &seconds) {
    if (!seconds.is_number())
        return "-";
    double value = std::max(0.0, seconds.get<double>());
    char text[64];
    auto whole = static_cast<long long>(value);
    if (value < 10)
        std::snprintf(text, sizeof text, "%.2f s", value);
    else if (value < 60)
        std::snprintf(text, sizeof text, "%.0f s", std::floor(value));
    else if (whole < 3600)
        std::snprintf(text, sizeof text, "%lld min %lld s", whole / 60, whole % 60);
    else if (whole < 86400)
        std::snprintf(text, sizeof text, "%lld h %lld min", whole / 3600, whole % 3600 / 60);
    else
        std::snprintf(text, sizeof text, "%lld d %lld h", whole / 86400, whole % 86400 / 3600);
    return text;
}

std::string decimal(const json &number) {
    if (!number.is_number())
        return "-";
    double value = number.get<double>();
    char text[64];
    std::snprintf(text, sizeof text, value != 0 && std::fabs(value) < 100 ? "%.1f" : "%.0f", value);
    return text;
}

std::string counted(std::int64_t count, const std::string &what) {
    return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

std::string line_of(const json &document) { return document.dump(-1, ' ', false, json::error_handler_t::replace) + "\n"; }

std::string time_of(std::int64_t unix_ms) {
    auto seconds = static_cast<std::time_t>(unix_ms / 1000);
    std::tm utc{};
    char text[64], result[80];
    if (gmtime_r(&seconds, &utc) == nullptr || std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc) == 0)
        return std::to_string(unix_ms) + " ms"; // beyond every calendar
    std::snprintf(result, sizeof result, "%s.%03dZ", text, static_cast<int>(unix_ms % 1000));
    return result;
}

} // namespace outbox::ctl
