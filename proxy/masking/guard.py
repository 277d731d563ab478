"""Refuses commands that would carry masked values to where no mask stands: laundering.

What is refused while column masks apply (each with a reason that says what to do instead):

- storing what it reads from a masked column: CREATE TABLE AS, SELECT INTO, INSERT .. SELECT, UPDATE and MERGE from
  columns, materialized views, COPY to a file or program. What is stored is Statement.moved, so that predicates do
  not count; where that is empty every column read counts.
- CREATE VIEW over masked columns, although the catalogue would follow it: a view made and read in one transaction
  is seen by no other connection.
- other definitions on a masked table (ALTER, RENAME, triggers, rules, policies): they move or rename the column.
  Tables, indexes, statistics, schemas, types, comments and rights are free; so is dropping.
- functions, procedures, foreign tables and servers, extensions, publications, subscriptions: doors of their own.
- DO and CALL, and text that cannot be read: nobody knows what they do. A SELECT of an unknown function passes, with its
  result masked: functions that exist were made by who may see the data.
- definitions that keep a call of an unknown function (a default, a generated column, an index), and new names for
  schemas, under which no mask would know its columns.
- built-in functions that read files, pages, the write-ahead log or large objects, reach other servers or run SQL text;
  those that carry a value elsewhere (pg_notify, set_config, setseed, ...), if the statement touches a masked column.
- the planner's statistics, which hold sample values, and TOAST tables, which hold slices of any.

EXPLAIN passes: a plan shows the literals of its own text and numbers of rows; EXPLAIN ANALYZE runs its statement, so
that is looked at in the same way. Under any mask, replication is refused: its stream passes no mask.

Under detectors, which look at text as it streams by (SSH, exec), what is not text is refused: files that are copied
out of a target, connections that are forwarded. Their bytes are packets of another protocol, often compressed or
encrypted, and a replaced value would break them. Uploads pass, and so do names and attributes of files.

What is written to Kubernetes under masks is writing.py's.

Left out: oracles (WHERE, errors, timing, row counts), pg_stat_activity and pg_stat_statements (texts of others, not
columns): rules are for these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from proxy.core.events import Command
from proxy.core.statement import ColumnRef, Statement
from proxy.core.verdict import Deny
from proxy.masking.touch import Columns, Resolved, hidden, nested, references, resolved_of, tables_of, touches

STATISTICS: Final = frozenset(
    ["pg_statistic", "pg_stats", "pg_statistic_ext_data", "pg_stats_ext", "pg_stats_ext_exprs", "pg_largeobject"]
)
# Functions that read what no lineage can follow.
DOORS: Final = frozenset(
    [
        "pg_read_file",
        "pg_read_binary_file",
        "pg_ls_dir",
        "pg_file_read",
        "lo_get",
        "loread",
        "lo_open",
        "lo_export",
        "lo_import",
        "be_lo_export",
        "get_raw_page",
        "heap_page_items",
        "heap_page_item_attrs",
        "bt_page_items",
        "tuple_data_split",
        "pg_get_wal_records_info",
        "pg_get_wal_record_info",
        "pg_get_wal_block_info",
        "pg_logical_slot_get_changes",
        "pg_logical_slot_peek_changes",
        "pg_logical_slot_get_binary_changes",
        "pg_logical_slot_peek_binary_changes",
        "dblink",
        "dblink_exec",
        "dblink_open",
        "dblink_fetch",
        "dblink_send_query",
        "dblink_get_result",
        "dblink_connect",
        "dblink_connect_u",
        # Those that run SQL text, in which nobody has looked for carriers.
        "query_to_xml",
        "query_to_xmlschema",
        "query_to_xml_and_xmlschema",
        "cursor_to_xml",
        "cursor_to_xmlschema",
        "ts_stat",
        "ts_rewrite",
        "crosstab",
        "crosstab2",
        "crosstab3",
        "crosstab4",
        "connectby",
        "xpath_table",
    ]
)
# Functions that leave a value where it can be read without its column.
CARRIERS: Final = frozenset(
    [
        "pg_notify",
        "set_config",
        "setval",
        "setseed",
        "pg_logical_emit_message",
        "pg_create_restore_point",
        "pg_backup_start",
        "pg_start_backup",
        "pg_create_physical_replication_slot",
        "pg_create_logical_replication_slot",
        "pg_copy_physical_replication_slot",
        "pg_copy_logical_replication_slot",
        "pg_replication_origin_create",
        "lo_creat",
        "lo_create",
        "lo_truncate",
        "lo_truncate64",
        "lo_unlink",
        "lo_from_bytea",
        "lo_put",
        "lowrite",
        "pg_file_write",
        "pg_file_rename",
        "pg_advisory_lock",
        "pg_advisory_lock_shared",
        "pg_advisory_xact_lock",
        "pg_advisory_xact_lock_shared",
        "pg_try_advisory_lock",
        "pg_try_advisory_lock_shared",
        "pg_try_advisory_xact_lock",
        "pg_try_advisory_xact_lock_shared",
    ]
)
# Definitions are known by the words that their verb begins with.
_CODE: Final = (
    "CREATE FUNCTION", "CREATE PROCEDURE", "CREATE AGGREGATE", "CREATE EVENT TRIGGER", "CREATE EXTENSION",
    "CREATE FOREIGN", "CREATE SERVER", "CREATE USER MAPPING", "CREATE PUBLICATION", "CREATE SUBSCRIPTION",
    "CREATE LANGUAGE", "CREATE OPERATOR", "CREATE CAST", "CREATE TRANSFORM", "CREATE ACCESS METHOD",
    "ALTER FUNCTION", "ALTER PROCEDURE", "ALTER ROUTINE", "ALTER PUBLICATION", "ALTER SUBSCRIPTION",
    "ALTER SERVER", "ALTER FOREIGN", "ALTER USER MAPPING", "ALTER EXTENSION",
    "IMPORT FOREIGN SCHEMA", "LOAD", "DO", "CALL",
)  # fmt: skip
_FREE: Final = (
    "CREATE INDEX", "CREATE STATISTICS", "CREATE SEQUENCE", "CREATE TYPE", "CREATE DOMAIN",
    "CREATE ROLE", "CREATE USER", "CREATE GROUP", "CREATE DATABASE", "CREATE TABLESPACE", "CREATE COLLATION",
    "COMMENT", "GRANT", "REVOKE", "VACUUM", "ANALYZE", "REINDEX", "CLUSTER", "CHECKPOINT", "LOCK", "REFRESH",
    "DROP", "TRUNCATE", "ALTER ROLE", "ALTER SYSTEM", "ALTER DATABASE", "ALTER SEQUENCE", "ALTER INDEX", "SECURITY",
)  # fmt: skip
_TOAST: Final = re.compile(r"pg_toast_\d+(_index)?")
_UPDATING: Final = ("UPDATE", "MERGE", "DELETE")
# Verbs whose answers pass no mask, and what these are. A command that has such answers beside others (an exec that is a
# transfer) says so itself: facts["unmaskable"].
_COPIED: Final = "a copied file"
_FORWARDED: Final = "a forwarded connection"
_UNMASKABLE: Final = {
    "file-read": _COPIED,
    "direct-tcpip": _FORWARDED,
    "direct-streamlocal": _FORWARDED,
    "forwarded-tcpip": _FORWARDED,
    "forwarded-streamlocal": _FORWARDED,
    "tcpip-forward": _FORWARDED,
    "streamlocal-forward": _FORWARDED,
    "tun": _FORWARDED,
    "x11": "what is drawn on a display",
    # Of Kubernetes.
    "copy-out": _COPIED,
    "portforward": _FORWARDED,
    "connect": _FORWARDED,
}


def replication(command: Command, rule: str) -> Deny | None:
    """Refuse what streams past every mask."""
    if command.facts.get("replication") and command.kind not in ("read", "delete"):
        return Deny(rule, "replication carries masked values unmasked; it needs a rule without masks")
    return None


def unmaskable(command: Command, rule: str) -> Deny | None:
    """Refuse what no detector can look into."""
    for each in (command, *command.parts):
        what = _COPIED if each.facts.get("unmaskable") else _UNMASKABLE.get(each.verb)
        if what is not None:
            return Deny(rule, f'rule "{rule}" masks what this target gives out, and {what} cannot be masked')
    return None


def laundering(columns: Columns, command: Command, rule: str) -> Deny | None:
    """Refuse what would carry the covered columns' values past their mask."""
    found = command.facts.get("statements")
    statements: Sequence[Statement] = found if isinstance(found, tuple) else ()
    if not statements:
        if command.kind == "unknown" or command.facts.get("opaque"):
            return Deny(rule, f"{command.verb} cannot be read, so masked columns cannot be kept masked in it")
        return None
    if command.kind == "unknown" and hidden(command):
        return Deny(rule, "what this runs is not known here, so masked columns cannot be kept masked in it")
    resolved = resolved_of(command)
    moving = any(each.moves_data for statement in statements for each in nested(statement))
    for statement in statements:
        if statement.verb == "EXPLAIN" and statement.more.get("runs") is False:
            continue
        for each in nested(statement):
            reason = _reason(columns, each, statement, resolved)
            if reason is None and each.verb == "EXECUTE" and (moving or each is statement):
                # Where the protocol knows what the name stands for, it puts that in EXECUTE's place.
                reason = (
                    "it runs a prepared statement that is not known here or stores its result; write the query itself"
                )
            if reason is not None:
                return Deny(rule, reason)
    return None


def _reason(columns: Columns, each: Statement, outer: Statement, resolved: Resolved) -> str | None:
    """Say why this statement (one level of outer) may not run, None if it may."""
    if _begins(each.verb, _CODE):
        return f"{each.verb} can do what no mask sees, and columns are masked here; it needs a rule without masks"
    if each.kind == "unknown":
        return "a statement that cannot be read may carry masked columns past their mask"
    if _begins(each.verb, ("CREATE", "ALTER")) and (each.opaque or each.more.get("keeps_calls")):
        return f"{each.verb} would keep a call of a function that nobody knows here; it needs a rule without masks"
    if each.verb == "ALTER SCHEMA":
        return "ALTER SCHEMA could give masked columns another name; it needs a rule without masks"
    for name in _last_parts(tables_of(each), resolved):
        if name in STATISTICS or _TOAST.fullmatch(name):
            return f"{name} holds values of masked columns; read the table itself"
    functions = {name.rpartition(".")[2].lower() for name in each.functions}
    for name in sorted(functions & DOORS):
        return f"{name}() reads past the masks; read the table itself"
    carriers = sorted(functions & CARRIERS)
    if carriers and touches(columns, each, resolved):
        return f"{carriers[0]}() would carry a masked column to where it is not masked"
    if each.copy is not None and each.copy.direction == "out" and each.copy.endpoint != "client":
        if touches(columns, outer, resolved):
            return "COPY to a file or program would store a masked column; use COPY TO STDOUT"
    elif each.moves_data and not each.verb.startswith("REFRESH"):
        if _moves(columns, each, resolved):
            return f"{each.verb} would store values of a masked column where they are not masked; leave that column out"
    elif each.verb.startswith(("CREATE VIEW", "CREATE RECURSIVE VIEW", "CREATE OR REPLACE VIEW")):
        if _moves(columns, each, resolved):
            return "a view over a masked column would show it under another name; leave that column out"
    elif each.kind in ("define", "admin") and not _begins(each.verb, _FREE) and each.verb != "CREATE TABLE":
        # By table, not by column: which columns a definition moves or renames is not read.
        covered = any(columns.cover_relation(name, resolved) for name in tables_of(each))
        return f"{each.verb} could rename or move masked columns; it needs a rule without masks" if covered else None
    return None


def _moves(columns: Columns, statement: Statement, resolved: Resolved) -> bool:
    """Tell whether values of covered columns may be among those that a statement stores."""
    parts = tuple(nested(statement))
    if any(each.opaque or each.kind == "unknown" for each in parts):
        return True
    moved = tuple(ref for each in parts for ref in each.moved)
    if moved:
        return references(columns, moved, tables_of(statement), resolved)
    # Without a list of what is stored: every column that is read. The target's own columns do not count in an INSERT.
    updating = statement.verb.startswith(_UPDATING)
    tables = tuple(
        dict.fromkeys(
            name for each in parts for name in (*each.tables_read, *(each.tables_written if updating else ()))
        )
    )
    refs = tuple(ref for each in parts for ref in _references_of(each))
    if not refs:
        return any(each.outputs is None for each in parts) and any(
            columns.cover_relation(name, resolved) for name in tables
        )
    return references(columns, tuple(ref for ref in refs if ref.table is None or ref.table in tables), tables, resolved)


def _references_of(statement: Statement) -> Iterator[ColumnRef]:
    yield from statement.columns
    for output in statement.outputs or ():
        yield from output.sources


def _last_parts(names: Sequence[str], resolved: Resolved) -> Iterator[str]:
    """The bare names of relations, as written and as resolved."""
    for name in names:
        for each in (name, *resolved.get(name)):
            yield each.rpartition(".")[2]


def _begins(verb: str, words: Sequence[str]) -> bool:
    return any(verb == word or verb.startswith(word + " ") for word in words)
