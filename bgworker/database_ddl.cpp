// Commands that need a database to themselves (DROP, RENAME, SET TABLESPACE, use as TEMPLATE) find a worker connected to it:
// stop it before, let it come back after. And COMMIT PREPARED, which calls no transaction callback, wakes the workers here.

#include "bgworker/database_ddl.hpp"

#include "bgworker/shared.hpp"
#include "extension/guard.hpp"
#include "extension/pg.hpp"
#include "extension/wake.hpp"

namespace outbox {

static ProcessUtility_hook_type previous_hook = nullptr;

static bool owns(Oid database) {
#if PG_VERSION_NUM >= 160000
    return object_ownercheck(DatabaseRelationId, database, GetUserId());
#else
    return pg_database_ownercheck(database, GetUserId());
#endif
}

static bool is_template(Oid database) {
    HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
    if (!HeapTupleIsValid(tuple))
        return false;
    bool result = reinterpret_cast<Form_pg_database>(GETSTRUCT(tuple))->datistemplate;
    ReleaseSysCache(tuple);
    return result;
}

// The database that the command needs for itself; invalid where there is none, or the user may not run the command anyway and
// shall not be able to disturb it.
static Oid exclusively_used(Node *command) {
    const char *name = nullptr;
    bool copied = false;
    switch (nodeTag(command)) {
    case T_DropdbStmt:
        name = castNode(DropdbStmt, command)->dbname;
        break;
    case T_RenameStmt:
        if (castNode(RenameStmt, command)->renameType == OBJECT_DATABASE)
            name = castNode(RenameStmt, command)->subname;
        break;
    case T_AlterDatabaseStmt: {
        ListCell *cell;
        foreach (cell, castNode(AlterDatabaseStmt, command)->options)
            if (strcmp(lfirst_node(DefElem, cell)->defname, "tablespace") == 0)
                name = castNode(AlterDatabaseStmt, command)->dbname;
        break;
    }
    case T_CreatedbStmt: {
        ListCell *cell;
        copied = true;
        foreach (cell, castNode(CreatedbStmt, command)->options) {
            auto *option = lfirst_node(DefElem, cell);
            if (strcmp(option->defname, "template") == 0 && option->arg)
                name = strVal(option->arg);
        }
        break;
    }
    default:
        break;
    }
    if (!name)
        return InvalidOid;
    Oid database = get_database_oid(name, true);
    if (!OidIsValid(database) || !(owns(database) || (copied && is_template(database))))
        return InvalidOid;
    return database;
}

static bool is_commit_prepared(Node *command) {
    return IsA(command, TransactionStmt) &&
           castNode(TransactionStmt, command)->kind == TRANS_STMT_COMMIT_PREPARED;
}

static void on_utility(PlannedStmt *statement, const char *text, bool read_only_tree,
                       ProcessUtilityContext context, ParamListInfo parameters,
                       QueryEnvironment *environment, DestReceiver *destination, QueryCompletion *completion) {
    auto proceed = [&] {
        (previous_hook ? previous_hook : standard_ProcessUtility)(statement, text, read_only_tree, context,
                                                                  parameters, environment, destination,
                                                                  completion);
    };
    Node *command = statement->utilityStmt;
    if (IsA(command, CreatedbStmt))
        look_at_commit();
    Oid database = IsTransactionState() ? exclusively_used(command) : InvalidOid;
    if (OidIsValid(database)) {
        pg_finally(
            [&] {
                shared::block(database);
                proceed();
            },
            [&] { shared::unblock(database); });
        return;
    }
    bool prepared = is_commit_prepared(command);
    proceed();
    if (prepared) {
        shared::wake_workers(MyDatabaseId);
        shared::expect_due(MyDatabaseId, 0); // what it has emitted is known to the one who prepared it
    }
}

void define_database_ddl() {
    previous_hook = ProcessUtility_hook;
    ProcessUtility_hook = on_utility;
}

} // namespace outbox
