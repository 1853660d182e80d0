// The bridges between PostgreSQL's errors and C++: the only place with PG_TRY or catch.
#pragma once

#include "extension/pg.hpp"

#include <exception>

namespace outbox {

// Calls C++ code that may throw, from PostgreSQL's world. The exception ends here and becomes an ERROR; its message is
// copied first, because ereport jumps and the exception object would never be destroyed.
template <typename Callee> auto cpp_call(Callee &&callee) -> decltype(callee()) {
    char message[512];
    try {
        return callee();
    } catch (const std::exception &failure) {
        strlcpy(message, failure.what(), sizeof message);
    } catch (...) {
        strlcpy(message, "unknown C++ exception", sizeof message);
    }
    ereport(ERROR, errcode(ERRCODE_INTERNAL_ERROR), errmsg_internal("%s", message));
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wclobbered" // PG_FINALLY's own variable, which it does not read after the jump

// Runs `body`, and `always` after it whether it returned or raised an ERROR, which then goes on.
template <typename Body, typename Always> void pg_finally(Body &&body, Always &&always) {
    PG_TRY();
    {
        body();
    }
    PG_FINALLY();
    {
        always();
    }
    PG_END_TRY();
}

// Runs `body` in a subtransaction. An ERROR that it raises ends there: what it did is rolled back, and `failed` gets the error. Both
// are called in the current memory context.
template <typename Body, typename Failed> void pg_subtransaction(Body &&body, Failed &&failed) {
    MemoryContext context = CurrentMemoryContext;
    ResourceOwner owner = CurrentResourceOwner;
    BeginInternalSubTransaction(nullptr);
    MemoryContextSwitchTo(context);
    PG_TRY();
    {
        body();
        ReleaseCurrentSubTransaction();
        MemoryContextSwitchTo(context);
        CurrentResourceOwner = owner;
    }
    PG_CATCH();
    {
        MemoryContextSwitchTo(context);
        ErrorData *error = CopyErrorData();
        FlushErrorState();
        RollbackAndReleaseCurrentSubTransaction();
        MemoryContextSwitchTo(context);
        CurrentResourceOwner = owner;
        failed(error);
    }
    PG_END_TRY();
}

#pragma GCC diagnostic pop

} // namespace outbox
