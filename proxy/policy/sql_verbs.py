"""Every statement of PostgreSQL 12 to 18: its verb and its kind, as a table by the parse tree's node.

Verbs are PostgreSQL's command tags where it has one (``DROP TABLE``, ``SELECT INTO``), or the word that begins the
statement (DECLARE, CLOSE, ROLLBACK TO). A verb that depends on the object's type has "?" for it in the table.

Kinds, where it is not obvious:
- delete: what destroys data or objects, DELETE, TRUNCATE, DROP. define: what makes or changes objects of a schema.
- admin: roles, privileges and row security; databases, tablespaces, languages, extensions, foreign servers,
  subscriptions, replication; maintenance (VACUUM, ANALYZE, REINDEX, CLUSTER, CHECKPOINT); LOAD; ALTER SYSTEM; files of
  the server (COPY to or from a file or program); SET ROLE and SET SESSION AUTHORIZATION.
- transfer: COPY TO STDOUT, in bulk and past every row limit. COPY FROM STDIN is a write.
- write: also NOTIFY (it reaches other sessions), LOCK above ROW SHARE, REFRESH MATERIALIZED VIEW.
- read: also SHOW, FETCH and MOVE (what the cursor runs was decided at DECLARE), EXPLAIN that does not run.
- session: what changes this session alone: transactions, SET, LISTEN, DISCARD, DEALLOCATE, CLOSE.
- execute: DO, CALL, EXECUTE, and any statement up to a write that calls a function which is not known.
PREPARE, DECLARE and EXPLAIN ANALYZE have the kind of what is in them.

Source: PostgreSQL 18 src/backend/parser/gram.y stmt, src/include/tcop/cmdtaglist.h.
"""

# ruff: noqa: SIM905 - lists of one name a line would be pages

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.core.events import Kind

UNPARSABLE: Final = "UNPARSABLE"
UNKNOWN: Final = "UNKNOWN"

# What a DROP, COMMENT, ALTER .. RENAME and so on is about. Source: nodes/parsenodes.h ObjectType.
OBJECTS: Final[Mapping[str, str]] = {
    "OBJECT_" + name.replace(" ", "_"): name
    for name in (
        "ACCESS METHOD,AGGREGATE,CAST,COLLATION,CONVERSION,DATABASE,DOMAIN,EXTENSION,FOREIGN SERVER,FOREIGN TABLE,"
        "FUNCTION,INDEX,LANGUAGE,OPERATOR,POLICY,PROCEDURE,PUBLICATION,ROLE,ROUTINE,RULE,SCHEMA,SEQUENCE,"
        "SUBSCRIPTION,TABLE,TABLESPACE,TRANSFORM,TRIGGER,TYPE,USER MAPPING,VIEW"
    ).split(",")
} | {
    "OBJECT_AMOP": "OPERATOR FAMILY",
    "OBJECT_AMPROC": "OPERATOR FAMILY",
    "OBJECT_ATTRIBUTE": "TYPE",
    "OBJECT_COLUMN": "TABLE",
    "OBJECT_DEFAULT": "TABLE",
    "OBJECT_DEFACL": "DEFAULT PRIVILEGES",
    "OBJECT_DOMCONSTRAINT": "DOMAIN",
    "OBJECT_EVENT_TRIGGER": "EVENT TRIGGER",
    "OBJECT_FDW": "FOREIGN DATA WRAPPER",
    "OBJECT_FOREIGN_SERVER": "SERVER",
    "OBJECT_LARGEOBJECT": "LARGE OBJECT",
    "OBJECT_MATVIEW": "MATERIALIZED VIEW",
    "OBJECT_OPCLASS": "OPERATOR CLASS",
    "OBJECT_OPFAMILY": "OPERATOR FAMILY",
    "OBJECT_PARAMETER_ACL": "PARAMETER",
    "OBJECT_PUBLICATION_NAMESPACE": "PUBLICATION",
    "OBJECT_PUBLICATION_REL": "PUBLICATION",
    "OBJECT_STATISTIC_EXT": "STATISTICS",
    "OBJECT_TABCONSTRAINT": "TABLE",
    "OBJECT_TSCONFIGURATION": "TEXT SEARCH CONFIGURATION",
    "OBJECT_TSDICTIONARY": "TEXT SEARCH DICTIONARY",
    "OBJECT_TSPARSER": "TEXT SEARCH PARSER",
    "OBJECT_TSTEMPLATE": "TEXT SEARCH TEMPLATE",
}

# Objects outside of any schema's data: to make, change or drop them is administration.
ADMIN_OBJECTS: Final = frozenset(
    (
        "ACCESS METHOD,DATABASE,DEFAULT PRIVILEGES,EVENT TRIGGER,EXTENSION,FOREIGN DATA WRAPPER,LANGUAGE,PARAMETER,"
        "POLICY,PUBLICATION,ROLE,SERVER,SUBSCRIPTION,TABLESPACE,USER MAPPING"
    ).split(",")
)

Entry = tuple[str, Kind]

STATEMENTS: Final[Mapping[str, Entry]] = {
    # queries and data: the kind is what the walker finds
    "SelectStmt": ("SELECT", "read"),
    "InsertStmt": ("INSERT", "write"),
    "UpdateStmt": ("UPDATE", "write"),
    "DeleteStmt": ("DELETE", "delete"),
    "MergeStmt": ("MERGE", "write"),
    "CopyStmt": ("COPY", "transfer"),
    "TruncateStmt": ("TRUNCATE TABLE", "delete"),
    "CallStmt": ("CALL", "execute"),
    "DoStmt": ("DO", "execute"),
    "ExplainStmt": ("EXPLAIN", "read"),
    "PrepareStmt": ("PREPARE", "unknown"),
    "ExecuteStmt": ("EXECUTE", "execute"),
    "DeallocateStmt": ("DEALLOCATE", "session"),
    "DeclareCursorStmt": ("DECLARE", "unknown"),
    "FetchStmt": ("FETCH", "read"),
    "ClosePortalStmt": ("CLOSE", "session"),
    "RefreshMatViewStmt": ("REFRESH MATERIALIZED VIEW", "write"),
    "LockStmt": ("LOCK TABLE", "write"),
    # the session
    "TransactionStmt": ("?", "session"),
    "VariableSetStmt": ("SET", "session"),
    "VariableShowStmt": ("SHOW", "read"),
    "ConstraintsSetStmt": ("SET CONSTRAINTS", "session"),
    "DiscardStmt": ("DISCARD", "session"),
    "ListenStmt": ("LISTEN", "session"),
    "UnlistenStmt": ("UNLISTEN", "session"),
    "NotifyStmt": ("NOTIFY", "write"),
    # objects of a schema
    "CreateStmt": ("CREATE TABLE", "define"),
    "CreateTableAsStmt": ("CREATE TABLE AS", "define"),
    "CreateForeignTableStmt": ("CREATE FOREIGN TABLE", "define"),
    "ViewStmt": ("CREATE VIEW", "define"),
    "IndexStmt": ("CREATE INDEX", "define"),
    "CreateSeqStmt": ("CREATE SEQUENCE", "define"),
    "CreateFunctionStmt": ("CREATE FUNCTION", "define"),
    "CreateTrigStmt": ("CREATE TRIGGER", "define"),
    "RuleStmt": ("CREATE RULE", "define"),
    "CreateSchemaStmt": ("CREATE SCHEMA", "define"),
    "CreateDomainStmt": ("CREATE DOMAIN", "define"),
    "CreateEnumStmt": ("CREATE TYPE", "define"),
    "CreateRangeStmt": ("CREATE TYPE", "define"),
    "CompositeTypeStmt": ("CREATE TYPE", "define"),
    "CreateCastStmt": ("CREATE CAST", "define"),
    "CreateConversionStmt": ("CREATE CONVERSION", "define"),
    "CreateOpClassStmt": ("CREATE OPERATOR CLASS", "define"),
    "CreateOpFamilyStmt": ("CREATE OPERATOR FAMILY", "define"),
    "CreateStatsStmt": ("CREATE STATISTICS", "define"),
    "CreateTransformStmt": ("CREATE TRANSFORM", "define"),
    "DefineStmt": ("CREATE ?", "define"),
    "AlterTableStmt": ("ALTER ?", "define"),
    "AlterCollationStmt": ("ALTER COLLATION", "define"),
    "AlterDomainStmt": ("ALTER DOMAIN", "define"),
    "AlterEnumStmt": ("ALTER TYPE", "define"),
    "AlterTypeStmt": ("ALTER TYPE", "define"),
    "AlterFunctionStmt": ("ALTER ?", "define"),
    "AlterObjectDependsStmt": ("ALTER ?", "define"),
    "AlterObjectSchemaStmt": ("ALTER ?", "define"),
    "AlterOperatorStmt": ("ALTER OPERATOR", "define"),
    "AlterOpFamilyStmt": ("ALTER OPERATOR FAMILY", "define"),
    "AlterSeqStmt": ("ALTER SEQUENCE", "define"),
    "AlterStatsStmt": ("ALTER STATISTICS", "define"),
    "AlterTSConfigurationStmt": ("ALTER TEXT SEARCH CONFIGURATION", "define"),
    "AlterTSDictionaryStmt": ("ALTER TEXT SEARCH DICTIONARY", "define"),
    "RenameStmt": ("ALTER ?", "define"),
    "CommentStmt": ("COMMENT", "define"),
    "DropStmt": ("DROP ?", "delete"),
    # administration
    "AlterOwnerStmt": ("ALTER ?", "admin"),
    "GrantStmt": ("GRANT", "admin"),
    "GrantRoleStmt": ("GRANT ROLE", "admin"),
    "AlterDefaultPrivilegesStmt": ("ALTER DEFAULT PRIVILEGES", "admin"),
    "CreateRoleStmt": ("CREATE ROLE", "admin"),
    "AlterRoleStmt": ("ALTER ROLE", "admin"),
    "AlterRoleSetStmt": ("ALTER ROLE", "admin"),
    "DropRoleStmt": ("DROP ROLE", "admin"),
    "DropOwnedStmt": ("DROP OWNED", "admin"),
    "ReassignOwnedStmt": ("REASSIGN OWNED", "admin"),
    "SecLabelStmt": ("SECURITY LABEL", "admin"),
    "CreatePolicyStmt": ("CREATE POLICY", "admin"),
    "AlterPolicyStmt": ("ALTER POLICY", "admin"),
    "CreatedbStmt": ("CREATE DATABASE", "admin"),
    "AlterDatabaseStmt": ("ALTER DATABASE", "admin"),
    "AlterDatabaseRefreshCollStmt": ("ALTER DATABASE", "admin"),
    "AlterDatabaseSetStmt": ("ALTER DATABASE", "admin"),
    "DropdbStmt": ("DROP DATABASE", "delete"),
    "CreateTableSpaceStmt": ("CREATE TABLESPACE", "admin"),
    "AlterTableSpaceOptionsStmt": ("ALTER TABLESPACE", "admin"),
    "AlterTableMoveAllStmt": ("ALTER TABLE", "admin"),
    "DropTableSpaceStmt": ("DROP TABLESPACE", "delete"),
    "CreateExtensionStmt": ("CREATE EXTENSION", "admin"),
    "AlterExtensionStmt": ("ALTER EXTENSION", "admin"),
    "AlterExtensionContentsStmt": ("ALTER EXTENSION", "admin"),
    "CreatePLangStmt": ("CREATE LANGUAGE", "admin"),
    "CreateAmStmt": ("CREATE ACCESS METHOD", "admin"),
    "CreateEventTrigStmt": ("CREATE EVENT TRIGGER", "admin"),
    "AlterEventTrigStmt": ("ALTER EVENT TRIGGER", "admin"),
    "CreateFdwStmt": ("CREATE FOREIGN DATA WRAPPER", "admin"),
    "AlterFdwStmt": ("ALTER FOREIGN DATA WRAPPER", "admin"),
    "CreateForeignServerStmt": ("CREATE SERVER", "admin"),
    "AlterForeignServerStmt": ("ALTER SERVER", "admin"),
    "CreateUserMappingStmt": ("CREATE USER MAPPING", "admin"),
    "AlterUserMappingStmt": ("ALTER USER MAPPING", "admin"),
    "DropUserMappingStmt": ("DROP USER MAPPING", "admin"),
    "ImportForeignSchemaStmt": ("IMPORT FOREIGN SCHEMA", "admin"),
    "CreatePublicationStmt": ("CREATE PUBLICATION", "admin"),
    "AlterPublicationStmt": ("ALTER PUBLICATION", "admin"),
    "CreateSubscriptionStmt": ("CREATE SUBSCRIPTION", "admin"),
    "AlterSubscriptionStmt": ("ALTER SUBSCRIPTION", "admin"),
    "DropSubscriptionStmt": ("DROP SUBSCRIPTION", "admin"),
    "AlterSystemStmt": ("ALTER SYSTEM", "admin"),
    "VacuumStmt": ("VACUUM", "admin"),
    "ClusterStmt": ("CLUSTER", "admin"),
    "ReindexStmt": ("REINDEX", "admin"),
    "CheckPointStmt": ("CHECKPOINT", "admin"),
    "LoadStmt": ("LOAD", "admin"),
}

# Verbs that a statement's own fields choose; sql_utility.py picks from them.
_CHOSEN: Final = (
    "SELECT INTO,CREATE MATERIALIZED VIEW,CREATE PROCEDURE,CREATE USER,CREATE GROUP,REVOKE,REVOKE ROLE,ANALYZE,RESET,"
    "MOVE,BEGIN,COMMIT,ROLLBACK,SAVEPOINT,RELEASE,ROLLBACK TO,PREPARE TRANSACTION,COMMIT PREPARED,"
    "ROLLBACK PREPARED,UNPARSABLE,UNKNOWN"
).split(",")

VERBS: Final[frozenset[str]] = frozenset(
    [
        verb.replace("?", name)
        for verb, _ in STATEMENTS.values()
        if verb != "?"
        for name in (OBJECTS.values() if "?" in verb else ("",))
    ]
    + _CHOSEN
)


def object_name(kind: object) -> str:
    """The word for an object's type, "OBJECT" for one that is not known."""
    return OBJECTS.get(str(kind), "OBJECT")
