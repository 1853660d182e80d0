// Preloaded into a server or a consumer of a round, so that its clock jumps, its disk is slow, full
// or broken, when and for as long as the round says so: in a file of six numbers that is mapped
// here, and that OUTBOX_SHIM names. Nobody else's clock or disk is touched, and nothing of it needs
// privileges.
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

namespace {

struct control {
    std::atomic<std::int64_t> clock_offset; // seconds
    std::atomic<std::int64_t> sync_errors;  // so many more calls fail with EIO
    std::atomic<std::int64_t> sync_delay;   // microseconds
    std::atomic<std::int64_t> full;         // no file grows
    std::atomic<std::int64_t> failed;       // calls that were made to fail
    std::atomic<std::int64_t> delayed;
};

control nothing;
control *shared = &nothing;

__attribute__((constructor)) void attach() {
    const char *path = std::getenv("OUTBOX_SHIM");
    const int file = path != nullptr ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *memory = mmap(nullptr, sizeof(control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory != MAP_FAILED)
        shared = static_cast<control *>(memory);
}

template <typename Function> Function *next(Function *, const char *name) {
    return reinterpret_cast<Function *>(dlsym(RTLD_NEXT, name));
}

bool fails() {
    if (shared->sync_delay > 0) {
        ++shared->delayed;
        usleep(static_cast<useconds_t>(shared->sync_delay.load()));
    }
    if (shared->sync_errors <= 0 || shared->sync_errors-- <= 0)
        return false;
    ++shared->failed;
    errno = EIO;
    return true;
}

bool is_full(int file, off_t end) {
    struct stat status = {};
    if (shared->full == 0 || fstat(file, &status) != 0 || !S_ISREG(status.st_mode) ||
        end <= status.st_size)
        return false;
    ++shared->failed;
    errno = ENOSPC;
    return true;
}

} // namespace

extern "C" {

int clock_gettime(clockid_t clock, struct timespec *now) {
    static const auto real = next(&clock_gettime, "clock_gettime");
    const int status = real(clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += shared->clock_offset;
    return status;
}

int gettimeofday(struct timeval *__restrict now, void *__restrict zone) {
    static const auto real = next(&gettimeofday, "gettimeofday");
    const int status = real(now, zone);
    if (status == 0)
        now->tv_sec += shared->clock_offset;
    return status;
}

time_t time(time_t *result) {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    if (result != nullptr)
        *result = now.tv_sec;
    return now.tv_sec;
}

int fsync(int file) {
    static const auto real = next(&fsync, "fsync");
    return fails() ? -1 : real(file);
}

int fdatasync(int file) {
    static const auto real = next(&fdatasync, "fdatasync");
    return fails() ? -1 : real(file);
}

ssize_t pwrite(int file, const void *bytes, size_t size, off_t at) {
    static const auto real = next(&pwrite, "pwrite");
    return is_full(file, at + static_cast<off_t>(size)) ? -1 : real(file, bytes, size, at);
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t at) {
    static const auto real = next(&pwrite64, "pwrite64");
    return is_full(file, at + static_cast<off_t>(size)) ? -1 : real(file, bytes, size, at);
}

ssize_t pwritev(int file, const struct iovec *pieces, int count, off_t at) {
    static const auto real = next(&pwritev, "pwritev");
    return is_full(file, at + 1) ? -1 : real(file, pieces, count, at);
}

ssize_t pwritev64(int file, const struct iovec *pieces, int count, off64_t at) {
    static const auto real = next(&pwritev64, "pwritev64");
    return is_full(file, at + 1) ? -1 : real(file, pieces, count, at);
}

int posix_fallocate(int file, off_t from, off_t size) {
    static const auto real = next(&posix_fallocate, "posix_fallocate");
    return is_full(file, from + size) ? ENOSPC : real(file, from, size);
}

int posix_fallocate64(int file, off64_t from, off64_t size) {
    static const auto real = next(&posix_fallocate64, "posix_fallocate64");
    return is_full(file, from + size) ? ENOSPC : real(file, from, size);
}

} // extern "C"
