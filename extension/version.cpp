#include "extension/version.hpp"

#include "extension/storage.hpp"

#include <cstdio>

namespace outbox::version {

fit compare(const char *of_database) {
    if (strcmp(of_database, of_library) == 0)
        return fit::same;
    int major, minor, own_major, own_minor, end = 0;
    bool number = sscanf(of_database, "%d.%d%n", &major, &minor, &end) == 2 && of_database[end] == '\0';
    if (!number || sscanf(of_library, "%d.%d", &own_major, &own_minor) != 2)
        return fit::newer; // nothing that this library could know
    return major < own_major || (major == own_major && minor < own_minor) ? fit::older : fit::newer;
}

// There is no cache for it in the server before version 18, and no function.
void read(Oid extension, char (&into)[max_length]) {
    Relation table = table_open(ExtensionRelationId, AccessShareLock);
    ScanKeyData key;
    ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(extension));
    SysScanDesc scan = systable_beginscan(table, ExtensionOidIndexId, true, nullptr, 1, &key);
    HeapTuple tuple = systable_getnext(scan);
    bool null = true;
    Datum value = HeapTupleIsValid(tuple) ? heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(table), &null) : 0;
    strlcpy(into, null ? "" : TextDatumGetCString(value), sizeof into);
    systable_endscan(scan);
    table_close(table, AccessShareLock);
}

const char *message(const char *of_database) {
    return psprintf("this database has version %s of outbox, and the server has the library of version %s", of_database, of_library);
}

const char *hint(fit database) {
    return database == fit::older ? "Run ALTER EXTENSION outbox UPDATE."
                                  : "Restart the server with the newer library installed.";
}

void refuse(fit database, const char *of_database) {
    ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("%s", message(of_database)),
            errhint("%s", hint(database)));
    pg_unreachable();
}

void require_same() {
    const storage::relations &relations = storage::require();
    if (relations.fit != fit::same)
        refuse(relations.fit, relations.version);
}

extern "C" {

// First of all that an update does. The server may still have the library of before, and then nothing shall change. And as in DROP
// EXTENSION, the extension itself is locked before any table: so the worker is in no transaction, and begins none, until the end.
PG_FUNCTION_INFO_V1(outbox_begin_update);
PGDLLEXPORT Datum outbox_begin_update(PG_FUNCTION_ARGS) {
    char *to = text_to_cstring(PG_GETARG_TEXT_PP(0));
    if (strcmp(to, of_library) != 0)
        ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                errmsg("the server has the library of outbox %s, and not of %s", of_library, to),
                errhint("Install the packages of that version and restart the server before ALTER EXTENSION outbox UPDATE."));
    LockDatabaseObject(ExtensionRelationId, get_extension_oid("outbox", false), 0, AccessExclusiveLock);
    PG_RETURN_VOID();
}
}

} // namespace outbox::version
