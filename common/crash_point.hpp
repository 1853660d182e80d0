// Named places where a process can be made to die, for the fault harness (test/faults). Without OUTBOX_CRASH_POINTS, as
// everybody builds it, a crash point is nothing at all.
//
// A file that holds "<name> <nth>" arms one: a server process looks for "outbox.crash_point" in its data directory, where it
// runs, a client for what OUTBOX_CRASH_POINT_FILE names. The process that comes by for the nth time since then unlinks the
// file and kills itself, so whoever armed it sees by its absence that the crash has come. Write it elsewhere and rename it: a
// process that comes by reads what is there.
#pragma once

#ifndef OUTBOX_CRASH_POINTS

#define OUTBOX_CRASH_POINT(name) static_cast<void>(0)

#else

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <string_view>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define OUTBOX_CRASH_POINT(name) ::outbox::crash_point(name)

namespace outbox {

inline void crash_point(std::string_view name) {
    static const char *const given = std::getenv("OUTBOX_CRASH_POINT_FILE");
    const char *path = given != nullptr ? given : "outbox.crash_point";
    const int error = errno; // which the code around may yet ask for
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        errno = error;
        return;
    }
    char text[128] = "";
    struct stat status = {};
    const bool read_it = read(file, text, sizeof text - 1) > 0 && fstat(file, &status) == 0;
    close(file);
    errno = error;
    std::string_view armed(text);
    const auto end = armed.find(' ');
    if (!read_it || armed.substr(0, end) != name)
        return;
    const long nth = end == armed.npos ? 1 : std::strtol(text + end, nullptr, 10);

    static std::mutex lock;
    static struct stat counted = {};
    static long count = 0;
    const std::lock_guard guard(lock);
    if (counted.st_ino != status.st_ino || counted.st_ctim.tv_sec != status.st_ctim.tv_sec ||
        counted.st_ctim.tv_nsec != status.st_ctim.tv_nsec)
        count = 0;
    counted = status;
    // of several processes that come by at once, one dies
    if (++count >= nth && unlink(path) == 0)
        kill(getpid(), SIGKILL);
    errno = error;
}

} // namespace outbox

#endif
