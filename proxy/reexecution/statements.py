"""What the text of a statement tells about comparing two runs of it, read by PostgreSQL's own parser.

Does the order of its rows count (an ORDER BY at the top), and by which columns? Which columns hold what no second
run repeats (now(), random(), nextval(), ...), and what else in it, so that its rows need not be the same? Functions of
the database itself are taken for repeatable: a text does not tell, and a difference in them should be seen.

Left out: defaults, triggers, views and functions that call such functions inside.
Source: PostgreSQL 18 docs 9.9.5, 9.3, 9.17, 9.27, 7.5; pgparse gives the trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import pgparse

Node = dict[str, Any]  # a parse tree as pgparse gives it

TEXT_LIMIT: Final = 256 * 1024  # as much as a tape keeps of a command's text
CACHED_TEXTS: Final = 512

_NAMES: Final = """
    now transaction_timestamp statement_timestamp clock_timestamp timeofday random random_normal setseed
    gen_random_uuid uuidv4 uuidv7 uuid_generate_v1 uuid_generate_v1mc uuid_generate_v4 gen_random_bytes gen_salt
    nextval currval lastval setval txid_current txid_current_if_assigned txid_current_snapshot
    pg_current_xact_id pg_current_xact_id_if_assigned pg_current_snapshot pg_snapshot_xmin pg_snapshot_xmax
    txid_snapshot_xmin pg_backend_pid pg_postmaster_start_time pg_conf_load_time inet_client_addr
    inet_client_port inet_server_addr inet_server_port pg_current_wal_lsn pg_current_wal_insert_lsn
    pg_current_wal_flush_lsn pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_stat_get_activity pg_lock_status
    pg_blocking_pids pg_my_temp_schema pg_export_snapshot pg_relation_size pg_total_relation_size pg_table_size
    pg_indexes_size pg_database_size pg_relation_filepath pg_relation_filenode pg_try_advisory_lock
    pg_try_advisory_xact_lock pg_cancel_backend pg_terminate_backend lo_creat lo_create lo_from_bytea lo_import
    lo_open current_database current_catalog version
"""
VOLATILE: Final = frozenset(_NAMES.split())
# current_date, current_timestamp, localtime, ...; who runs it and where is the sandbox's own, too.
_VALUE_NAMES: Final = "SVFOP_"
_QUERIES: Final = ("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt")


@dataclass(frozen=True, slots=True)
class Facts:
    """What one statement's text tells. order: None = does not count; () = by what is not in the result, so whole rows;
    else the columns, as positions from 0 or names. volatile: columns as positions (negative from the end) or names.
    unsure: why its rows may differ all the same. limited: LIMIT without ORDER BY."""

    verb: str = ""
    order: tuple[int | str, ...] | None = None
    volatile: tuple[int | str, ...] = ()
    unsure: str = ""
    limited: bool = False


@lru_cache(CACHED_TEXTS)
def read_facts(text: str) -> tuple[Facts, ...]:
    """Read the statements of a text; () where it cannot be read, and then nothing is known of it."""
    if len(text) >= TEXT_LIMIT or "\0" in text:
        return ()
    try:
        return tuple(_facts(node["stmt"]) for node in pgparse.parse(text))
    except Exception:  # whatever the parser has against it: nothing is known, and all differences count
        return ()


def _facts(statement: Node) -> Facts:
    verb, body = next(iter(statement.items()))
    match verb:
        case "ExplainStmt":
            return Facts(verb, unsure="costs and times of a plan")
        case "FetchStmt" | "ExecuteStmt":
            return Facts(verb)
        case "VariableShowStmt":
            return Facts(verb)
        case "CopyStmt":
            query = body.get("query")
            inner = _facts(query) if query and not body.get("is_from") else Facts(verb)
            return Facts(verb, () if inner.order is not None else None, inner.volatile, inner.unsure, inner.limited)
        case "DeclareCursorStmt" | "PrepareStmt" | "CreateTableAsStmt" | "ViewStmt":
            return Facts(verb)
        case _ if verb not in _QUERIES:
            return Facts(verb)
    targets = _targets(body)
    where = {name: value for name, value in body.items() if name not in ("targetList", "returningList")}
    if verb in ("InsertStmt", "UpdateStmt", "MergeStmt"):
        where = {"rest": where, "set": body.get("targetList", ())} if verb != "InsertStmt" else where
    elsewhere = sorted(set(_volatile_in(where)))
    unsure = f"its rows depend on {', '.join(elsewhere)}" if elsewhere else _catalogue(body)
    order = None
    if verb == "SelectStmt" and "sortClause" in body:
        order = _order(body["sortClause"], targets)
    limited = "limitCount" in body and order is None and verb == "SelectStmt"
    return Facts(verb, order, _volatile_columns(targets), unsure, limited)


def _targets(body: Node) -> Sequence[Node]:
    """The target list of the result: of a set operation its first part's, whose names count."""
    while "larg" in body:
        body = body["larg"]
    if "returningList" in body:
        return list(body["returningList"])
    if "returningClause" in body:  # PostgreSQL 18's tree
        return list(body["returningClause"].get("exprs", ()))
    return list(body.get("targetList", ())) if "relation" not in body else []


def _volatile_columns(targets: Sequence[Node]) -> tuple[int | str, ...]:
    stars = [place for place, node in enumerate(targets) if _is_star(node)]
    found: list[int | str] = []
    for place, node in enumerate(targets):
        if not any(True for _ in _volatile_in(node)):
            continue
        if not stars or place < stars[0]:
            found.append(place)
        elif place > stars[-1]:
            found.append(place - len(targets))
        else:
            found.append(_name(node))
    return tuple(found)


def _order(clauses: Sequence[Node], targets: Sequence[Node]) -> tuple[int | str, ...]:
    """The columns that an ORDER BY sorts by; () if any of its keys is not in the result."""
    starred = any(_is_star(node) for node in targets)
    keys: list[int | str] = []
    for clause in clauses:
        node = clause["SortBy"]["node"]
        if "A_Const" in node:
            place = node["A_Const"].get("ival", {}).get("ival")
            if not isinstance(place, int):
                return ()
            keys.append(place - 1)
            continue
        names = _column(node)
        if not names:
            return ()
        match = [place for place, target in enumerate(targets) if _stands_for(target, names)]
        if match and not starred:
            keys.append(match[0])
        elif match or starred or not targets:
            keys.append(names[-1])
        else:
            return ()
    return tuple(keys)


def _stands_for(target: Node, names: list[str]) -> bool:
    """Whether a target is what the names of an ORDER BY mean: its own name, or the very column."""
    if len(names) == 1 and _name(target) == names[0]:
        return True
    return _column(target["ResTarget"].get("val", {})) == names


def _name(target: Node) -> str:
    body = target["ResTarget"]
    if "name" in body:
        return str(body["name"])
    value = body.get("val", {})
    if "FuncCall" in value:
        return str(value["FuncCall"]["funcname"][-1]["String"]["sval"])
    names = _column(value)
    return names[-1] if names else "?column?"


def _column(node: Node) -> list[str]:
    fields = node.get("ColumnRef", {}).get("fields", ())
    return [str(field["String"]["sval"]) for field in fields if "String" in field] if fields else []


def _is_star(target: Node) -> bool:
    fields = target["ResTarget"].get("val", {}).get("ColumnRef", {}).get("fields", ())
    return any("A_Star" in field for field in fields)


def _volatile_in(node: Any) -> Iterator[str]:
    """Walk a tree, without recursion: yield the names of what no second run repeats."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, dict):
            call = each.get("FuncCall")
            if call is not None:
                name = call["funcname"][-1].get("String", {}).get("sval", "")
                if name in VOLATILE:
                    yield f"{name}()"
            value = each.get("SQLValueFunction")
            if value is not None:
                yield str(value.get("op", "")).removeprefix(_VALUE_NAMES).lower()
            if "TableSampleClause" in each or "RangeTableSample" in each:
                yield "TABLESAMPLE"
            waiting += each.values()


def _catalogue(body: Node) -> str:
    """Why a statement that reads the catalogue may differ: identifiers in it, and what other sessions do."""
    waiting: list[Any] = [body]
    found = ""
    while waiting:
        each = waiting.pop()
        if isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, dict):
            relation = each.get("RangeVar") or each.get("relation")
            if isinstance(relation, dict) and str(relation.get("relname", "")).startswith("pg_"):
                found = f"it reads {relation['relname']}, which is each database's own"
            waiting += each.values()
    return found
