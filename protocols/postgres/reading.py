"""From statements to Commands: what a rule may ask of a PostgreSQL command, with names resolved.

A name without a schema stands for every relation that it may mean: the first one on the search_path where that
is known, all of that name where it is not (a set search_path is not followed; every candidate must then be
allowed). EXECUTE and FETCH are decided as what they run. A text of several statements is a Command with parts.

Facts of a command, for rules and masks: statements, resolved and alike (what the names may mean: see meaning.py),
tables_read, tables_written, tables, beneath (tables behind views), columns, columns_written, kinds, functions, where,
where_missing, has_limit, limit, multi, control, opaque, opaque_reason, moves_data, setting (name, value), values (of
parameters, as display text), replication, cache_key (hashable: equal keys mean equal facts).

Source: postgres note 4, 9, 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Final, Protocol

from protocols.postgres.meaning import Names, meaning
from proxy.core.events import KINDS, Command, Kind
from proxy.core.statement import ColumnRef, Statement

PROTOCOL_NAME: Final = "postgres"
TEMPLATE_LIMIT: Final = 2048  # cached facts a connection's database; small values

_NUMBERS: Final = count(1)
# From harmless to grave: a text of several statements has the kind of its gravest.
_GRAVITY: Final[Mapping[str, int]] = {
    kind: place
    for place, kind in enumerate(
        ("session", "read", "transfer", "write", "execute", "define", "delete", "admin", "unknown")
    )
}
assert set(_GRAVITY) == set(KINDS)


class World(Names, Protocol):
    """What the target's catalogue tells without waiting."""

    @property
    def version(self) -> int:
        """Grows with every change of the snapshot."""

    def function_name(self, oid: int) -> str | None:
        """Return "schema.function", None where the oid is unknown."""


# Finds what EXECUTE name or FETCH name runs: None = nothing is known of that name.
Lookup = Callable[[str, str], Sequence[Statement] | None]


class CommandReader:
    """Makes Commands of statements for one target database; shared by its sessions, so that facts are cached."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._number = next(_NUMBERS)  # two databases may have the same versions, and mean different things
        self._templates: dict[tuple[Any, ...], Command] = {}

    def command(
        self,
        statements: Sequence[Statement],
        text: str,
        wire: bytes,
        lookup: Lookup,
        search_path: tuple[str, ...] | None,
        *,
        prepares: bool = False,
        rest_bytes: int = 0,
        values: tuple[str | None, ...] | None = None,
        unsure: bool = False,
    ) -> Command:
        """Return the Command of a text, ready to be decided.

        unsure: DDL of an open transaction may have changed what is behind names, unseen by the catalogue.
        """
        if len(statements) == 1:
            template = self._single(statements[0], lookup, search_path)
        elif not statements:
            template = Command(PROTOCOL_NAME, "EMPTY", "session", text, facts={"statements": (), "cache_key": "empty"})
        else:
            template = self._several(statements, lookup, search_path)
        facts = template.facts if values is None else {**template.facts, "values": values}
        parts = template.parts
        if unsure or (len(statements) > 1 and any(changes_catalogue(statement) for statement in statements[:-1])):
            facts = _unsure(facts)
            parts = tuple(replace(part, facts=_unsure(part.facts)) for part in parts)
        return Command(
            PROTOCOL_NAME,
            template.verb,
            template.kind,
            text,
            wire,
            template.objects,
            facts,
            True,
            parts,
            prepares,
            rest_bytes,
        )

    def function_name(self, oid: int) -> str | None:
        """The name of a function for FunctionCall, None where the catalogue does not know the oid."""
        return self._world.function_name(oid)

    def function_call(self, name: str, wire: bytes, rest_bytes: int) -> Command:
        """Return the Command of a FunctionCall message: as opaque as SELECT of that function would be."""
        statement = Statement(
            "FUNCTION_CALL",
            "execute",
            f"FunctionCall of {name}",
            functions=(name,),
            opaque=True,
            opaque_reason="a function called by its oid",
            literal_free=False,
        )
        template = self._read(statement, None, None)
        return Command(
            PROTOCOL_NAME, template.verb, template.kind, statement.text, wire, (), template.facts, rest_bytes=rest_bytes
        )

    def _several(self, statements: Sequence[Statement], lookup: Lookup, path: tuple[str, ...] | None) -> Command:
        made: dict[tuple[str, str], Sequence[Statement]] = {}

        def overlay(verb: str, name: str) -> Sequence[Statement] | None:
            return made.get((verb, name)) or lookup(verb, name)

        parts = []
        for statement in statements:
            parts.append(self._single(statement, overlay, path))
            if statement.inner is not None and statement.name is not None:
                if statement.verb == "PREPARE":
                    made["EXECUTE", statement.name] = (statement.inner,)
                elif statement.verb.startswith("DECLARE"):
                    made["FETCH", statement.name] = (statement.inner,)
        gravest = max(parts, key=lambda part: _GRAVITY[part.kind])
        objects = tuple(dict.fromkeys(name for part in parts for name in part.objects))
        facts: dict[str, Any] = {"statements": tuple(statements), "multi": True, **_meant_by_all(parts)}
        return Command(PROTOCOL_NAME, "MULTI", gravest.kind, "", b"", objects, facts, parts=tuple(parts))

    def _single(self, statement: Statement, lookup: Lookup, path: tuple[str, ...] | None) -> Command:
        hidden = _hidden(statement)
        if hidden is not None:
            return self._indirect(statement, hidden, lookup, path)
        key: tuple[Any, ...] | None = None
        if statement.key:
            key = (self._number, statement.key, path, self._world.version)
            template = self._templates.get(key)
            if template is not None:
                return template
        template = self._read(statement, path, key)
        if key is not None:
            if len(self._templates) >= TEMPLATE_LIMIT:
                self._templates.clear()
            self._templates[key] = template
        return template

    def _indirect(
        self, statement: Statement, hidden: tuple[str, str], lookup: Lookup, path: tuple[str, ...] | None
    ) -> Command:
        """EXECUTE and FETCH, alone or inside EXPLAIN or CREATE TABLE AS: decided with what they run."""
        outer = self._read(statement, path, None)
        inner = lookup(*hidden)
        if inner is None:
            facts = {**outer.facts, "opaque": True, "opaque_reason": f"{hidden[0]} of a name that is not known here"}
            return Command(PROTOCOL_NAME, statement.verb, "unknown", statement.text, b"", outer.objects, facts)
        ran = [self._single(each, _nothing, path) for each in inner]
        if statement.verb in ("EXECUTE", "FETCH", "MOVE"):
            first = ran[0] if len(ran) == 1 else self._several(inner, _nothing, path)
            text = f"{statement.text}\n-- runs: {'; '.join(each.text for each in inner)}"
            return Command(
                PROTOCOL_NAME, statement.verb, first.kind, text, b"", first.objects, first.facts, parts=first.parts
            )
        parts = (_without_opaque(outer), *ran)
        gravest = max(parts, key=lambda part: _GRAVITY[part.kind])
        facts = {**outer.facts, **_meant_by_all(parts)}
        facts["statements"] = (statement, *inner)
        objects = tuple(dict.fromkeys(name for part in parts for name in part.objects))
        return Command(PROTOCOL_NAME, statement.verb, gravest.kind, statement.text, b"", objects, facts, parts=parts)

    def _beneath(self, objects: tuple[str, ...]) -> tuple[str, ...]:
        """The tables behind the views among the objects: an allow of a view is enough, a deny of its table holds."""
        found = dict.fromkeys(base for name in objects for base in sorted(self._world.bases(name)))
        return tuple(base for base in found if base not in objects)

    def _read(self, statement: Statement, path: tuple[str, ...] | None, key: tuple[Any, ...] | None) -> Command:
        meant = meaning(self._world, statement, path)
        tables_read, tables_written = meant.read, meant.written
        objects = tuple(dict.fromkeys((*tables_written, *tables_read)))
        facts: dict[str, Any] = {
            "statements": (statement,),
            "resolved": meant.resolved,
            "alike": meant.alike,
            "tables_read": tables_read,
            "tables_written": tables_written,
            "tables": objects,
            "beneath": self._beneath(objects),
            "columns": _column_names(statement.columns),
            "functions": statement.functions,
            "where": statement.where or "",
            "where_missing": bool(statement.more.get("unrestricted")),
            "kinds": statement.kinds or (statement.kind,),
            "columns_written": _column_names(statement.columns_written),
            "has_limit": statement.limit is not None,
            "limit": statement.limit or 0,
            "multi": False,
            "control": statement.control is not None or statement.verb in _PLUMBING_VERBS,
            "opaque": statement.opaque,
            "opaque_reason": statement.opaque_reason,
            "moves_data": statement.moves_data,
            "setting": statement.setting or ("", None),
            "replication": bool(statement.more.get("replication")),
        }
        if key is not None:
            facts["cache_key"] = key
        return Command(PROTOCOL_NAME, statement.verb, statement.kind, statement.text, b"", objects, facts)


_DDL_VERBS: Final = ("CREATE", "ALTER", "DROP", "SELECT INTO", "REFRESH", "IMPORT", "DO", "CALL", "UNPARSABLE")
_PLUMBING_VERBS: Final = frozenset(("DEALLOCATE", "CLOSE", "UNLISTEN"))


def _hidden(statement: Statement) -> tuple[str, str] | None:
    """What a statement runs by name: ("EXECUTE" | "FETCH", name), also one level down."""
    for each in (statement, statement.inner):
        if each is not None and each.name is not None:
            if each.verb == "EXECUTE":
                return "EXECUTE", each.name
            if each.verb in ("FETCH", "MOVE"):
                return "FETCH", each.name
    return None


def runs_by_name(statements: Sequence[Statement]) -> bool:
    """Tell whether any of these runs what a name stands for: EXECUTE, FETCH."""
    return any(_hidden(statement) is not None for statement in statements)


def changes_catalogue(statement: Statement) -> bool:
    """Tell whether a statement may change what is behind a name: DDL, or code that nobody can see."""
    return statement.opaque or statement.verb.startswith(_DDL_VERBS)


def _unsure(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same facts, with every name standing for anything."""
    kept = {**facts, "resolved": dict.fromkeys(facts.get("resolved", ()), ())}
    kept.pop("cache_key", None)
    return kept


def _column_names(columns: Sequence[ColumnRef]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{each.table}.{each.name}" if each.table else each.name for each in columns))


def _meant_by_all(parts: Sequence[Command]) -> dict[str, Any]:
    """The names of all parts of a command: what may be anything in one of them may be in all."""
    found: dict[str, dict[str, tuple[str, ...]]] = {"resolved": {}, "alike": {}}
    for part in parts:
        for key, names in found.items():
            for name, meant in part.facts.get(key, {}).items():
                names[name] = meant if names.get(name, meant) else ()
    return found


def _nothing(verb: str, name: str) -> None:
    return None


def _without_opaque(command: Command) -> Command:
    """The outer statement alone: what it runs is decided beside it, so that it hides nothing."""
    kind: Kind = "define" if command.facts["moves_data"] else "read"
    facts = {**command.facts, "opaque": False}
    return Command(command.protocol, command.verb, kind, command.text, b"", command.objects, facts)


def wider_kind(one: Kind, two: Kind) -> Kind:
    """The graver of two kinds."""
    return one if _GRAVITY[one] >= _GRAVITY[two] else two
