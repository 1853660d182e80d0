// What the library does about signals, which are the program's own: as little as can be.
#pragma once

#include <cerrno>
#include <csignal>

#include <pthread.h>

namespace outbox::detail {

// hiredis writes to sockets that the server may have closed; the SIGPIPE of that must not end the program, and what the
// program does about signals is not ours to change. So it is blocked here, and the one that we caused is taken away.
class no_sigpipe {
  public:
    no_sigpipe() noexcept {
        sigemptyset(&sigpipe_);
        sigaddset(&sigpipe_, SIGPIPE);
        sigset_t before;
        sigpending(&before);
        was_pending_ = sigismember(&before, SIGPIPE) == 1;
        pthread_sigmask(SIG_BLOCK, &sigpipe_, &mask_);
    }

    ~no_sigpipe() {
        int error = errno;
        timespec now{};
        if (!was_pending_)
            while (sigtimedwait(&sigpipe_, nullptr, &now) < 0 && errno == EINTR)
                continue;
        pthread_sigmask(SIG_SETMASK, &mask_, nullptr);
        errno = error;
    }

    no_sigpipe(const no_sigpipe &) = delete;
    no_sigpipe &operator=(const no_sigpipe &) = delete;

  private:
    sigset_t sigpipe_, mask_;
    bool was_pending_;
};

// Threads made while one lives get no signals, but those that they cause themselves: a crash is the program's to handle.
class no_signals {
  public:
    no_signals() noexcept {
        sigset_t signals;
        sigfillset(&signals);
        for (int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGPROF})
            sigdelset(&signals, own);
        pthread_sigmask(SIG_BLOCK, &signals, &before_);
    }
    ~no_signals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

    no_signals(const no_signals &) = delete;
    no_signals &operator=(const no_signals &) = delete;

  private:
    sigset_t before_;
};

} // namespace outbox::detail
