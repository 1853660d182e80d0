// The server itself logs settings as they change and statements that set them. A Redis URL in such a line loses its password
// before it is written.

#include "extension/log_mask.hpp"

#include "common/url.hpp"

#include "extension/guard.hpp"

namespace outbox {

static emit_log_hook_type previous_hook = nullptr;

static bool may_hold_password(const char *text) {
    return text && strstr(text, "://") && (strchr(text, '@') || strstr(text, "password=")) &&
           (strstr(text, "redis") || strstr(text, "unix"));
}

static char *masked(char *text) {
    if (!may_hold_password(text))
        return text;
    // In a buffer that malloc gave: this runs in the error's memory context, which must not grow while it is reported.
    static char *buffer = nullptr;
    bool done = cpp_call([&] {
        std::string result = mask_passwords(text);
        free(buffer);
        buffer = strdup(result.c_str());
        return buffer != nullptr;
    });
    return done ? pstrdup(buffer) : pstrdup("(not shown)");
}

static void on_log(ErrorData *error) {
    error->message = masked(error->message);
    error->detail = masked(error->detail);
    error->detail_log = masked(error->detail_log);
    error->context = masked(error->context);
    error->internalquery = masked(error->internalquery);
    if (may_hold_password(debug_query_string))
        error->hide_stmt = true;
    if (previous_hook)
        previous_hook(error);
}

void define_log_mask() {
    previous_hook = emit_log_hook;
    emit_log_hook = on_log;
}

} // namespace outbox
