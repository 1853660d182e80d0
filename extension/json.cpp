#include "extension/json.hpp"

#include "extension/pg.hpp"

namespace outbox {

static bool is_valid(const char *text) {
    int length = static_cast<int>(strlen(text));
    char *copy = pstrdup(text);
    // UTF-8 is assumed where there is no database yet (the postmaster reading its configuration).
    int encoding = GetDatabaseEncoding();
#if PG_VERSION_NUM >= 170000
    JsonLexContext *lex = makeJsonLexContextCstringLen(nullptr, copy, length, encoding, false);
#else
    JsonLexContext *lex = makeJsonLexContextCstringLen(copy, length, encoding, false);
#endif
    JsonSemAction nothing = {};
    return pg_parse_json(lex, &nothing) == JSON_SUCCESS;
}

bool is_flat_object(const char *text) {
    // In valid JSON, braces and brackets outside of strings are structure.
    int objects = 0;
    bool in_string = false;
    for (const char *c = text; *c; ++c) {
        if (in_string) {
            if (*c == '\\' && c[1])
                ++c;
            else if (*c == '"')
                in_string = false;
        } else if (*c == '"') {
            in_string = true;
        } else if (*c == '[') {
            return false;
        } else if (*c == '{' && ++objects > 1) {
            return false;
        }
    }
    return objects == 1 && is_valid(text);
}

} // namespace outbox
