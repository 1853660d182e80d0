// What the library does about signals, which are the program's own: as little as can be.
#pragma once

#include <csignal>

#include <pthread.h>

namespace outbox::detail {

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
