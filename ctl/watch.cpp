// outboxctl status --watch: the same again and again, with what became of it meanwhile.
#include <chrono>
#include <cmath>
#include <csignal>
#include <limits>

#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include "ctl/status.hpp"
#include "ctl/table.hpp"

namespace outbox::ctl {

constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

static void push(std::deque<double> &values, double value) {
    values.push_back(value);
    if (values.size() > history::length)
        values.pop_front();
}

static std::string key_of_sink(const json &sink) { return "sink " + sink.at("sink").get<std::string>(); }
static std::string key_of_group(const json &group) {
    return "group " + group.at("stream").get<std::string>() + " " + group.at("group").get<std::string>();
}

// `pid`: a counter of another process begins at nothing; the rate is not known then.
static void add_to(std::map<std::string, history::series> &all, const std::string &key, const json &lag, const json &counter,
                   std::int64_t pid, double elapsed) {
    auto [at, is_new] = all.try_emplace(key);
    auto &series = at->second;
    double value = counter.is_number() ? counter.get<double>() : unknown;
    bool comparable = !is_new && series.pid == pid && value >= series.counter && elapsed > 0;
    push(series.lag, lag.is_number() ? lag.get<double>() : unknown);
    push(series.rate, comparable ? (value - series.counter) / elapsed : unknown);
    series.counter = value;
    series.pid = pid;
}

void history::add(const json &document, double elapsed) {
    for (const json &sink : document.at("sinks"))
        add_to(series_, key_of_sink(sink), sink.at("lag_events"), sink.at("published"),
               sink.at("pid").is_number() ? sink.at("pid").get<std::int64_t>() : 0, elapsed);
    if (document.at("groups").is_array())
        for (const json &group : document.at("groups"))
            add_to(series_, key_of_group(group), group.at("lag"), group.at("entries_read"), 0, elapsed);
}

const history::series *history::of_sink(const json &sink) const {
    auto found = series_.find(key_of_sink(sink));
    return found != series_.end() ? &found->second : nullptr;
}

const history::series *history::of_group(const json &group) const {
    auto found = series_.find(key_of_group(group));
    return found != series_.end() ? &found->second : nullptr;
}

// The terminal while it is a screen of ours. A signal must find how it was, also in the middle of a query that hangs.
static termios before;

static void restore() noexcept {
    constexpr std::string_view leave = "\033[?25h\033[?1049l"; // the cursor, and what was on the screen
    [[maybe_unused]] auto written = ::write(STDOUT_FILENO, leave.data(), leave.size());
    tcsetattr(STDIN_FILENO, TCSANOW, &before);
}

static void end_by_signal(int signal) {
    restore();
    if (signal == SIGINT)
        _exit(0); // ctrl-c is a way to end, no failure
    std::signal(signal, SIG_DFL);
    raise(signal);
}

static void resized(int) {} // poll() ends, and the screen is drawn anew

class screen {
  public:
    screen() {
        if (tcgetattr(STDIN_FILENO, &before) != 0)
            throw failure(exit_code::usage, "--watch needs a terminal to read from",
                          "Use --watch --json where there is none.");
        struct sigaction action {};
        sigemptyset(&action.sa_mask);
        action.sa_handler = end_by_signal;
        for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT})
            sigaction(signal, &action, nullptr);
        action.sa_handler = resized;
        action.sa_flags = SA_RESTART;
        sigaction(SIGWINCH, &action, nullptr);
        termios raw = before;
        raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
        raw.c_cc[VMIN] = 0;
        raw.c_cc[VTIME] = 0;
        raw.c_cc[VSUSP] = _POSIX_VDISABLE; // a stopped program would leave the terminal to the shell as it is
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
        write("\033[?1049h\033[?25l");
    }
    ~screen() { restore(); }
    screen(const screen &) = delete;
    screen &operator=(const screen &) = delete;

    // Draws over what is there, so that nothing flickers.
    void draw(const std::string &text) {
        auto size = terminal_size();
        std::string frame = "\033[H";
        std::size_t line = 0;
        for (std::size_t from = 0; from < text.size() && line + 1 < size.rows; ++line) {
            auto end = std::min(text.find('\n', from), text.size());
            frame.append(text, from, end - from).append("\033[K\n");
            from = end + 1;
        }
        write(frame + "\033[J");
    }

    enum class event { quit, resized, time };
    event wait(std::chrono::steady_clock::time_point until) {
        for (;;) {
            auto left = std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
            pollfd input{STDIN_FILENO, POLLIN, 0};
            int ready = poll(&input, 1, static_cast<int>(std::max<std::int64_t>(0, left)));
            if (ready < 0)
                return event::resized;
            if (ready == 0)
                return event::time;
            char key = 0;
            if (read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q')
                return event::quit; // also when the terminal is gone
        }
    }
};

static std::string title(const json &document, double interval) {
    char text[64];
    std::snprintf(text, sizeof text, "every %g s, q ends", interval);
    return "database " + plain(document.at("database")) + ", Redis " + plain(document.at("redis")) + "   " + text + "   " +
           plain(document.at("at")).substr(0, 19) + "Z";
}

static exit_code watch_lines(context &context, double interval) {
    for (;;) {
        json document = look(context);
        write(line_of(document));
        auto pause = std::chrono::duration<double>(interval);
        poll(nullptr, 0, static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(pause).count()));
    }
}

exit_code watch(context &context, double interval) {
    using clock = std::chrono::steady_clock;
    if (context.common().json)
        return watch_lines(context, interval);
    if (!is_terminal(stdout))
        throw failure(exit_code::usage, "--watch needs a terminal", "Use --watch --json where there is none.");

    json document = look(context); // what cannot work at all is said where it can be read
    screen screen;
    history past;
    bool colours = shows_colours(stdout);
    std::string trouble;
    auto looked = clock::now();
    past.add(document, 0);
    for (auto next = looked;;) {
        auto columns = terminal_size().columns;
        screen.draw(in(colour::dim, cut(title(document, interval), columns), colours) + "\n\n" +
                    render(document, &past, colours, columns) +
                    (trouble.empty() ? "" : "\n" + in(colour::bad, cut(shown(trouble), columns), colours) + "\n"));
        auto event =
            screen.wait(next + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(interval)));
        if (event == screen::event::quit)
            return exit_code::ok;
        if (event == screen::event::resized)
            continue;
        next = clock::now();
        try {
            document = look(context);
            auto now = clock::now();
            past.add(document, std::chrono::duration<double>(now - looked).count());
            looked = now;
            trouble.clear();
        } catch (const std::exception &error) {
            trouble = error.what(); // tried again; what was seen last stays on the screen
            context.forget_database();
        }
    }
}

} // namespace outbox::ctl
