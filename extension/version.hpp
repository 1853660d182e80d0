// The library of the server and the SQL of a database can be of different versions: the server is restarted with new packages
// first, and ALTER EXTENSION outbox UPDATE follows in each database. Until then services go on emitting through the old
// functions, and the worker waits.
#pragma once

#include "extension/pg.hpp"

namespace outbox::version {

constexpr const char *of_library = "1.1"; // as default_version in outbox.control

constexpr int max_length = 32;

// What the database has, seen from the library.
enum class fit { same, older, newer };
fit compare(const char *of_database);

// The one that is installed in this database.
void read(Oid extension, char (&into)[max_length]);

// Errors, for what does not work with the SQL of another version: the older one's functions that have to have this one's tables,
// and everything where the library is the older one.
void require_same();
[[noreturn]] void refuse(fit database, const char *of_database);

// An argument that is null, or that the function did not have in the version whose SQL calls it.
inline bool is_absent(FunctionCallInfo fcinfo, int number) { return number >= PG_NARGS() || PG_ARGISNULL(number); }

// What is said of it, and what to do.
const char *message(const char *of_database); // in the current memory context
const char *hint(fit database);

} // namespace outbox::version
