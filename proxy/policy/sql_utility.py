"""The statements that say more than their tables: sessions, prepared statements, cursors, COPY, EXPLAIN, DDL.

Each handler takes the Maker and the body of its node and makes the Statement. What runs hidden code (DO, CALL,
EXECUTE of a name, COPY with a program) is opaque and says so. PREPARE and DECLARE carry what they will run
in ``inner``, with its own slice of the text, so that EXECUTE and FETCH can be decided as that.

Source: PostgreSQL 18 docs, "SQL Commands", each page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import pgparse

from proxy.core.events import Kind
from proxy.core.statement import ColumnRef, OutputColumn, Statement
from proxy.policy.sql_copy import copy_options, flag
from proxy.policy.sql_facts import Facts, Stream, outputs_of
from proxy.policy.sql_scope import Node, Scope, dotted, gravest, table_name
from proxy.policy.sql_statement import Handler, Maker, whole_table
from proxy.policy.sql_verbs import ADMIN_OBJECTS, object_name
from proxy.policy.sql_where import constant_text

Control = Literal["begin", "commit", "rollback", "savepoint", "release", "rollback_to", "prepare_transaction"]

_TRANSACTIONS: Final[dict[str, tuple[str, Control | None]]] = {
    "TRANS_STMT_BEGIN": ("BEGIN", "begin"),
    "TRANS_STMT_START": ("BEGIN", "begin"),
    "TRANS_STMT_COMMIT": ("COMMIT", "commit"),
    "TRANS_STMT_ROLLBACK": ("ROLLBACK", "rollback"),
    "TRANS_STMT_SAVEPOINT": ("SAVEPOINT", "savepoint"),
    "TRANS_STMT_RELEASE": ("RELEASE", "release"),
    "TRANS_STMT_ROLLBACK_TO": ("ROLLBACK TO", "rollback_to"),
    "TRANS_STMT_PREPARE": ("PREPARE TRANSACTION", "prepare_transaction"),
    "TRANS_STMT_COMMIT_PREPARED": ("COMMIT PREPARED", None),
    "TRANS_STMT_ROLLBACK_PREPARED": ("ROLLBACK PREPARED", None),
}

# LOCK TABLE modes that only readers of the table need. Source: storage/lockdefs.h AccessShareLock, RowShareLock.
_MILD_LOCKS: Final = 2
# Settings that change who the session is.
_IDENTITY_SETTINGS: Final = frozenset(("role", "session_authorization"))
# How many places are tried as the beginning of an inner statement, and in how long a text.
_INNER_TRIES_LIMIT: Final = 8
_INNER_TEXT_LIMIT: Final = 64 * 1024


def _transaction(maker: Maker, body: Node) -> Statement:
    verb, control = _TRANSACTIONS.get(str(body["kind"]), ("UNKNOWN", None))
    if verb == "UNKNOWN":
        return maker.unknown("transaction statement is not known")
    name = body.get("savepoint_name") or body.get("gid")
    return _bare(maker, verb, "session", control=control, name=name)


def _bare(maker: Maker, verb: str, kind: Kind, **fields: Any) -> Statement:
    """A statement that touches no table."""
    facts = Facts()
    facts.kinds[kind] = None
    return maker.make(verb, facts, **fields)


# -- settings -----------------------------------------------------------------------------------------


def _setting_of(body: Node) -> tuple[str, str | None]:
    if body["kind"] == "VAR_RESET_ALL":
        return "all", None
    if body["kind"] == "VAR_SET_MULTI":
        for each in body.get("args", ()):
            if "DefElem" in each:
                return each["DefElem"]["defname"], constant_text(each["DefElem"].get("arg", {}))
        return str(body.get("name", "")).lower(), _values(body.get("args", ()))
    value = _values(body.get("args", ())) if body["kind"] == "VAR_SET_VALUE" else None
    return str(body["name"]).lower(), value


def _values(args: Sequence[Node]) -> str | None:
    texts = [constant_text(arg) for arg in args]
    return ", ".join(text for text in texts if text is not None) if any(text is not None for text in texts) else None


def _set(maker: Maker, body: Node) -> Statement:
    setting = _setting_of(body)
    verb = "RESET" if body["kind"] in ("VAR_RESET", "VAR_RESET_ALL") else "SET"
    kind: Kind = "admin" if setting[0] in _IDENTITY_SETTINGS else "session"
    more = {"local": True} if body.get("is_local") else {}
    return _bare(maker, verb, kind, setting=setting, name=setting[0], more=more)


def _stored_setting(verb: str) -> Handler:
    def handle(maker: Maker, body: Node) -> Statement:
        return _bare(maker, verb, "admin", more={"stored_setting": _setting_of(body["setstmt"])})

    return handle


def _show(maker: Maker, body: Node) -> Statement:
    name = str(body["name"]).lower()
    outputs = None if name == "all" else (OutputColumn(name, ()),)
    return _bare(maker, "SHOW", "read", name=name, outputs=outputs, outputs_exact=outputs is not None)


def _discard(maker: Maker, body: Node) -> Statement:
    everything = body.get("target", "DISCARD_ALL") == "DISCARD_ALL"
    return _bare(maker, "DISCARD", "session", setting=("all", None) if everything else None)


# -- names of the session -----------------------------------------------------------------------------


def _named(verb: str, kind: Kind, key: str) -> Handler:
    def handle(maker: Maker, body: Node) -> Statement:
        return _bare(maker, verb, kind, name=body.get(key))

    return handle


def _prepare(maker: Maker, body: Node) -> Statement:
    return _with_inner(maker, "PREPARE", body["query"], body["name"])


def _declare(maker: Maker, body: Node) -> Statement:
    return _with_inner(maker, "DECLARE", body["query"], body["portalname"])


def _with_inner(maker: Maker, verb: str, node: Node, name: str) -> Statement:
    inner = Maker(_inner_text(maker.text, node), maker.also_pure, HANDLERS).statement(node)
    return _around(maker, verb, inner, inner.kinds, name=name)


def _around(
    maker: Maker,
    verb: str,
    inner: Statement,
    kinds: Sequence[Kind],
    outputs: tuple[OutputColumn, ...] | None = (),
    **fields: Any,
) -> Statement:
    """A statement with the facts of the one inside it."""
    facts = Facts()
    facts.kinds.update(dict.fromkeys(kinds))
    facts.read.update(dict.fromkeys(inner.tables_read))
    facts.written.update(dict.fromkeys(inner.tables_written))
    facts.columns.update(dict.fromkeys(inner.columns))
    facts.columns_written.update(dict.fromkeys(inner.columns_written))
    facts.functions.update(dict.fromkeys(inner.functions))
    facts.moved.update(dict.fromkeys(inner.moved))
    fields.setdefault("moves_data", inner.moves_data)
    facts.opaque_reason = inner.opaque_reason
    if inner.more.get("unrestricted") and gravest(kinds) != "read":
        fields["more"] = {**fields.get("more", {}), "unrestricted": True}
    if inner.setting is not None:
        facts.settings.append(inner.setting)
    return maker.make(verb, facts, outputs, inner=inner, where=inner.where, limit=inner.limit, **fields)


def _inner_text(text: str, node: Node) -> str:
    """The slice of the inner statement: behind the AS or FOR after which the text parses to that very tree."""
    if len(text) > _INNER_TEXT_LIMIT:
        return text
    bare = _without_locations(node)
    for tries, match in enumerate(re.finditer(r"\b(?:as|for)\b", text, re.IGNORECASE)):
        if tries == _INNER_TRIES_LIMIT:
            break
        slice_ = text[match.end() :].strip()
        try:
            parsed = pgparse.parse(slice_)
        except (pgparse.PGQueryError, RecursionError):
            continue
        if len(parsed) == 1 and _without_locations(parsed[0]["stmt"]) == bare:
            return slice_
    return text


def _without_locations(value: Any) -> Any:
    if value.__class__ is list:
        return [_without_locations(each) for each in value]
    if value.__class__ is dict:
        return {key: _without_locations(each) for key, each in value.items() if not key.endswith("location")}
    return value


def _execute(maker: Maker, body: Node) -> Statement:
    facts = Facts()
    facts.kinds["execute"] = None
    maker.walker(facts).children(body.get("params", []), Scope(None), Stream())
    facts.opaque(f"runs the prepared statement {body['name']}")
    return maker.make("EXECUTE", facts, None, False, name=body["name"])


def _fetch(maker: Maker, body: Node) -> Statement:
    if body.get("ismove"):
        return _bare(maker, "MOVE", "read", name=body["portalname"])
    return _bare(maker, "FETCH", "read", name=body["portalname"], outputs=None, outputs_exact=False)


# -- hidden code --------------------------------------------------------------------------------------


def _do(maker: Maker, body: Node) -> Statement:
    language = "plpgsql"
    for each in body.get("args", ()):
        if each["DefElem"]["defname"] == "language":
            language = each["DefElem"]["arg"]["String"]["sval"]
    facts = Facts()
    facts.kinds["execute"] = None
    facts.opaque(f"DO runs code in {language}")
    return maker.make("DO", facts, more={"language": language})


def _call(maker: Maker, body: Node) -> Statement:
    facts = Facts()
    maker.walker(facts).function(body["funccall"], Scope(None), Stream())
    facts.kinds["execute"] = None
    facts.opaque("CALL runs a procedure")
    return maker.make("CALL", facts, None, False)


def _explain(maker: Maker, body: Node) -> Statement:
    inner = maker.statement(body["query"])
    runs = any(
        each["DefElem"]["defname"] == "analyze" and flag(each["DefElem"].get("arg")) for each in body.get("options", ())
    )
    kinds: tuple[Kind, ...] = inner.kinds if runs else ("read",)
    if inner.opaque and not runs:
        kinds = ("execute",)  # the planner runs functions that are declared immutable
    plan = OutputColumn("QUERY PLAN", inner.columns, opaque=inner.opaque)
    moves = inner.moves_data and runs
    return _around(maker, "EXPLAIN", inner, kinds, (plan,), moves_data=moves, name=inner.name, more={"runs": runs})


# -- COPY ---------------------------------------------------------------------------------------------


def _copy(maker: Maker, body: Node) -> Statement:
    facts = Facts()
    walker = maker.walker(facts)
    into = bool(body.get("is_from"))
    endpoint: Literal["client", "file", "program"] = "client"
    if "filename" in body:
        endpoint = "program" if body.get("is_program") else "file"
    columns = tuple(each["String"]["sval"] for each in body.get("attlist", ()))
    kind: Kind = "admin" if endpoint != "client" else "write" if into else "transfer"
    inner: Statement | None = None
    relation: str | None = None
    outputs: tuple[OutputColumn, ...] | None = ()
    outputs_exact = True
    if "relation" in body:
        relation = walker.range_name(body["relation"])
        (facts.written if into else facts.read)[relation] = None
        if into:
            facts.columns_written.update((ColumnRef(relation, name), None) for name in columns)
        else:
            items = whole_table(relation, columns)
            outputs, outputs_exact = outputs_of(items)
            facts.columns.update((source, None) for item in items for source in item.flow.sources)
        walker.aside(body.get("whereClause"), Scope(None))
    more: dict[str, object] = {}
    copy = copy_options(body, relation, columns, endpoint, into, more)
    if endpoint == "program":
        facts.opaque("COPY runs a program on the server")
    if "query" in body:
        inner = maker.statement(body["query"])
        outputs, outputs_exact = inner.outputs, inner.outputs_exact
        statement_kinds = (kind, *(each for each in inner.kinds if each != "read"))
        moves = inner.moves_data or endpoint != "client"
        return _around(
            maker,
            "COPY",
            inner,
            statement_kinds,
            outputs,
            outputs_exact=outputs_exact,
            copy=copy,
            moves_data=moves,
            more=more,
        )
    facts.kinds = {kind: None, **{each: None for each in facts.kinds if each != "read"}}
    if endpoint != "client" and not into:
        facts.moved.update(facts.columns)
        facts.moves = True
    return maker.make("COPY", facts, outputs, outputs_exact, copy=copy, more=more)


# -- objects ------------------------------------------------------------------------------------------


def _create_as(maker: Maker, body: Node) -> Statement:
    clause = body["into"]
    inner = maker.statement(body["query"])
    stores = not clause.get("skipData")
    verb = "CREATE MATERIALIZED VIEW" if body.get("objtype") == "OBJECT_MATVIEW" else "CREATE TABLE AS"
    kinds: tuple[Kind, ...] = ("define", *inner.kinds) if stores else ("define",)
    statement = _around(maker, verb, inner, kinds, moves_data=stores, name=inner.name)
    return _writing(statement, clause["rel"], inner if stores else None)


def _view(maker: Maker, body: Node) -> Statement:
    inner = maker.statement(body["query"])
    statement = _around(maker, "CREATE VIEW", inner, ("define",), moves_data=False)
    return _writing(statement, body["view"], None)


def _writing(statement: Statement, target: Node, moved_from: Statement | None) -> Statement:
    """Add the relation that is made, and the columns whose values it takes."""
    table = table_name(target.get("schemaname", ""), target["relname"])
    moved: tuple[ColumnRef, ...] = ()
    if moved_from is not None and moved_from.outputs is not None:
        moved = tuple(dict.fromkeys(source for output in moved_from.outputs for source in output.sources))
    written = tuple(dict.fromkeys((table, *statement.tables_written)))
    return replace(statement, tables_written=written, moved=tuple(dict.fromkeys((*statement.moved, *moved))))


_TABLE_LIKE: Final = frozenset(("TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE"))
# The object is a list of the table's name and then its own.
_ON_TABLE: Final = frozenset(
    ("OBJECT_TRIGGER", "OBJECT_RULE", "OBJECT_POLICY", "OBJECT_TABCONSTRAINT", "OBJECT_COLUMN")
)


def _drop(maker: Maker, body: Node) -> Statement:
    facts = Facts()
    facts.kinds["delete"] = None
    what = object_name(body["removeType"])
    if what in ADMIN_OBJECTS:
        facts.kinds["admin"] = None
    names = [_object_parts(each) for each in body.get("objects", ())]
    for parts in names:
        if what in _TABLE_LIKE:
            facts.written[_joined(parts)] = None
        elif body["removeType"] in _ON_TABLE:
            facts.written[_joined(parts[:-1])] = None
    more: dict[str, object] = {"objects": tuple(dotted(parts) for parts in names)}
    if body.get("behavior") == "DROP_CASCADE":
        more["cascade"] = True
    return maker.make(f"DROP {what}", facts, more=more)


def _about_object(tag: str, verb: str) -> Handler:
    """COMMENT and SECURITY LABEL: the object is a name, not a relation."""

    def handle(maker: Maker, body: Node) -> Statement:
        parts = _object_parts(body["object"]) if "object" in body else []
        more = {"objects": (dotted(parts),)}
        if body.get("objtype") in _ON_TABLE:
            parts = parts[:-1]
        table = object_name(body.get("objtype")) in _TABLE_LIKE or body.get("objtype") in _ON_TABLE
        statement = maker.plain(tag, {}, verb, more=more)
        return _writing_name(statement, _joined(parts)) if table else statement

    return handle


def _writing_name(statement: Statement, table: str) -> Statement:
    return replace(statement, tables_written=(*statement.tables_written, table))


def _object_parts(node: Node) -> list[str]:
    """The parts of an object's name, whichever way the parser wraps it."""
    ((tag, body),) = node.items()
    match tag:
        case "String":
            return [body.get("sval", "")]
        case "List":
            return [part for each in body.get("items", ()) for part in _object_parts(each)]
        case "ObjectWithArgs":
            return [part for each in body.get("objname", ()) for part in _object_parts(each)]
        case "TypeName":
            return [part for each in body.get("names", ()) for part in _object_parts(each)]
        case _:
            return []


def _joined(parts: Sequence[str]) -> str:
    return table_name(parts[-2] if len(parts) > 1 else "", parts[-1]) if parts else ""


def _create_function(maker: Maker, body: Node) -> Statement:
    parts = [each["String"]["sval"] for each in body["funcname"]]
    verb = "CREATE PROCEDURE" if body.get("is_procedure") else "CREATE FUNCTION"
    return maker.plain("CreateFunctionStmt", body, verb, more={"objects": (dotted(parts),)})


def _create_trigger(maker: Maker, body: Node) -> Statement:
    statement = maker.plain("CreateTrigStmt", body)
    return replace(
        statement, functions=(*statement.functions, ".".join(_object_parts({"List": {"items": body["funcname"]}})))
    )


def _rename(maker: Maker, body: Node) -> Statement:
    kind = body.get("relationType") if body.get("renameType") in _ON_TABLE and "relation" in body else None
    what = object_name(kind or body.get("renameType"))
    statement = maker.plain("RenameStmt", body, f"ALTER {what}", "admin" if what in ADMIN_OBJECTS else "define")
    objects = _object_parts(body["object"]) if "object" in body else []
    return replace(statement, more={**statement.more, "objects": (dotted(objects),)}) if objects else statement


def _grant(maker: Maker, body: Node) -> Statement:
    return maker.plain("GrantStmt", body, "GRANT" if body.get("is_grant") else "REVOKE")


def _grant_role(maker: Maker, body: Node) -> Statement:
    return maker.plain("GrantRoleStmt", body, "GRANT ROLE" if body.get("is_grant") else "REVOKE ROLE")


def _create_role(maker: Maker, body: Node) -> Statement:
    kinds = {"ROLESTMT_USER": "CREATE USER", "ROLESTMT_GROUP": "CREATE GROUP"}
    return maker.plain("CreateRoleStmt", {}, kinds.get(str(body.get("stmt_type")), "CREATE ROLE"))


def _vacuum(maker: Maker, body: Node) -> Statement:
    return maker.plain("VacuumStmt", body, "VACUUM" if body.get("is_vacuumcmd") else "ANALYZE")


def _lock(maker: Maker, body: Node) -> Statement:
    return maker.plain("LockStmt", body, kind="read" if int(body.get("mode", 8)) <= _MILD_LOCKS else "write")


def _refresh(maker: Maker, body: Node) -> Statement:
    return maker.plain("RefreshMatViewStmt", body, moves_data=not body.get("skipData"))


HANDLERS: Final[dict[str, Handler]] = {
    "TransactionStmt": _transaction,
    "VariableSetStmt": _set,
    "VariableShowStmt": _show,
    "AlterSystemStmt": _stored_setting("ALTER SYSTEM"),
    "AlterRoleSetStmt": _stored_setting("ALTER ROLE"),
    "AlterDatabaseSetStmt": _stored_setting("ALTER DATABASE"),
    "DiscardStmt": _discard,
    "ListenStmt": _named("LISTEN", "session", "conditionname"),
    "UnlistenStmt": _named("UNLISTEN", "session", "conditionname"),
    "NotifyStmt": _named("NOTIFY", "write", "conditionname"),
    "DeallocateStmt": _named("DEALLOCATE", "session", "name"),
    "ClosePortalStmt": _named("CLOSE", "session", "portalname"),
    "PrepareStmt": _prepare,
    "ExecuteStmt": _execute,
    "DeclareCursorStmt": _declare,
    "FetchStmt": _fetch,
    "DoStmt": _do,
    "CallStmt": _call,
    "ExplainStmt": _explain,
    "CopyStmt": _copy,
    "CreateTableAsStmt": _create_as,
    "ViewStmt": _view,
    "DropStmt": _drop,
    "CommentStmt": _about_object("CommentStmt", "COMMENT"),
    "SecLabelStmt": _about_object("SecLabelStmt", "SECURITY LABEL"),
    "CreateFunctionStmt": _create_function,
    "CreateTrigStmt": _create_trigger,
    "RenameStmt": _rename,
    "GrantStmt": _grant,
    "GrantRoleStmt": _grant_role,
    "CreateRoleStmt": _create_role,
    "VacuumStmt": _vacuum,
    "LockStmt": _lock,
    "RefreshMatViewStmt": _refresh,
}
