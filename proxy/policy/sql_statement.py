"""From one statement of a parse tree to a Statement: queries, and everything else by its node's entry.

A query (SELECT, INSERT, UPDATE, DELETE, MERGE) has the gravest kind of what the walker found in it. Where a SELECT's
WITH updates or deletes, ``where`` is that of the weakest of them. Other statements have a handler in
sql_utility.py, or none: then the tree is swept for tables, and for expressions, whose functions count where the
statement runs them at once (CREATE INDEX, ALTER TABLE) and are only named where it does not (a DEFAULT, a view).

A node without an entry is "unknown" and opaque. So is a tree that does not have the shape that is known, or is
nested too deeply: anything that goes wrong here fails closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from proxy.core.events import Kind
from proxy.core.statement import ColumnRef, OutputColumn, Statement
from proxy.policy.sql_expression import EXPRESSIONS
from proxy.policy.sql_facts import Facts, Stream, is_mark, outputs_of
from proxy.policy.sql_modify import modify
from proxy.policy.sql_query import Walker
from proxy.policy.sql_scope import Flow, Item, Node, Relation, Scope, gravest, star_of
from proxy.policy.sql_verbs import ADMIN_OBJECTS, STATEMENTS, UNKNOWN, object_name
from proxy.policy.sql_where import constant_text, is_value

QUERIES: Final = frozenset(("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"))

# Statements that run the expressions in them at once, over the rows that are there.
_RUN_AT_ONCE: Final = frozenset(("IndexStmt", "AlterTableStmt", "AlterDomainStmt"))
# What these nodes name is looked at, not changed.
_READ_UNDER: Final = frozenset(("TableLikeClause", "pktable", "inhRelations", "LockStmt", "CreateStatsStmt"))

Handler = Callable[["Maker", Node], Statement]


class Maker:
    """Makes Statements of the nodes of one statement's text."""

    def __init__(self, text: str, also_pure: frozenset[str], handlers: dict[str, Handler]) -> None:
        self.text = text
        self.also_pure = also_pure
        self._handlers = handlers

    def statement(self, node: Node) -> Statement:
        """Make the Statement of one statement node, {"SelectStmt": {...}}."""
        ((tag, body),) = node.items()
        if tag in QUERIES:
            return self._query(tag, node)
        if tag not in STATEMENTS:
            return self.unknown(f"statement {tag} is not known")
        handler = self._handlers.get(tag)
        return handler(self, body) if handler is not None else self.plain(tag, body)

    def unknown(self, reason: str, verb: str = UNKNOWN) -> Statement:
        """A statement of which nothing is known but its text."""
        return Statement(
            verb, "unknown", self.text, opaque=True, opaque_reason=reason, literal_free=False, kinds=("unknown",)
        )

    def walker(self, facts: Facts) -> Walker:
        """A walker that fills these facts."""
        return Walker(facts, self.also_pure, modify)

    def make(
        self,
        verb: str,
        facts: Facts,
        outputs: tuple[OutputColumn, ...] | None = (),
        outputs_exact: bool = True,
        **fields: Any,
    ) -> Statement:
        """Make a Statement of facts; its kind is the gravest of facts.kinds. Any: the fields are Statement's own."""
        kinds = tuple(facts.kinds)
        more: dict[str, object] = fields.pop("more", {})
        if facts.type_casts:
            more["casts"] = tuple(facts.type_casts)
        if facts.locks:
            more["locks"] = True
        if facts.keeps_calls:
            more["keeps_calls"] = True  # an unknown function, in what the statement only stores
        if facts.attributes:
            more["attributes"] = tuple(facts.attributes)
        if len(facts.settings) > 1:
            more["settings"] = tuple(facts.settings)
        setting = fields.pop("setting", None)
        if setting is None and facts.settings:
            setting = min(facts.settings, key=lambda each: _SETTINGS_FIRST.get(each[0], 9))
        columns = tuple(facts.columns)
        if any(map(is_mark, columns)):
            columns = tuple(column for column in columns if not is_mark(column))
        return Statement(
            verb=verb,
            kind=gravest(kinds),
            text=self.text,
            tables_read=tuple(facts.read),
            tables_written=tuple(facts.written),
            columns=columns,
            functions=tuple(facts.functions),
            outputs=outputs,
            outputs_exact=outputs_exact,
            setting=setting,
            moves_data=fields.pop("moves_data", facts.moves),
            moved=tuple(column for column in facts.moved if not is_mark(column)),
            columns_written=tuple(facts.columns_written),
            opaque=bool(facts.opaque_reason),
            opaque_reason=facts.opaque_reason,
            literal_free=fields.pop("literal_free", False),
            kinds=kinds,
            more=more,
            **fields,
        )

    def _query(self, tag: str, node: Node) -> Statement:
        facts = Facts()
        body = node[tag]
        scope = Scope(None)
        items = self.walker(facts).query(node, scope)
        verb = STATEMENTS[tag][0]
        fields: dict[str, Any] = {}
        if any(each != "present" for each in facts.wheres):
            fields["more"] = {"unrestricted": True}  # an UPDATE or DELETE of all rows, also one in a WITH
        if tag == "SelectStmt":
            if "intoClause" in body:
                verb = "SELECT INTO"
                items = ()
            if not facts.wheres and "larg" not in body and "valuesLists" not in body:
                facts.where(body)
            limit = body.get("limitCount")
            if limit is not None and is_value(limit):
                facts.literal = True
                text = constant_text(limit) or ""
                fields["limit"] = int(text) if text.isdigit() else None
        outputs, outputs_exact = outputs_of(items)
        return self.make(
            verb,
            facts,
            outputs,
            outputs_exact,
            where=weakest(facts.wheres),
            literal_free=not facts.literal,
            **fields,
        )

    # -- everything else --------------------------------------------------------------------------------

    def plain(
        self, tag: str, body: Node, verb: str | None = None, kind: Kind | None = None, **fields: Any
    ) -> Statement:
        """A utility statement without a handler of its own: its entry, and what a sweep finds in it."""
        entry_verb, entry_kind = STATEMENTS[tag]
        facts = Facts()
        facts.kinds[kind or entry_kind] = None
        if verb is None:
            verb = entry_verb
            if "?" in verb:
                what = object_name(
                    body.get("objtype")
                    or body.get("removeType")
                    or body.get("renameType")
                    or body.get("objectType")
                    or body.get("kind")
                )
                verb = verb.replace("?", what)
                if what in ADMIN_OBJECTS and tag != "DropStmt":
                    facts.kinds["admin"] = None
        self.sweep(tag, body, facts)
        return self.make(verb, facts, **fields)

    def sweep(self, tag: str, body: Node, facts: Facts) -> None:
        """Find the tables, queries and expressions of a utility statement."""
        aside = Facts()  # of what the statement only stores
        scope = Scope(None)
        relation = body.get("relation") or body.get("table") or body.get("base", {}).get("relation")
        if relation is not None and "relname" in relation:
            name = self.walker(aside).range_name(relation)
            names = (
                (relation["relname"], "new", "old") if tag in ("RuleStmt", "CreateTrigStmt") else (relation["relname"],)
            )
            scope.relations = [Relation(each, (star_of(name),), name) for each in names]
        _Sweep(self, facts, facts if tag in _RUN_AT_ONCE else aside, scope).under(body, tag in _READ_UNDER)
        facts.keeps_calls = aside.calls_unknown
        facts.read.update(aside.read)
        facts.written.update(aside.written)
        facts.columns.update(aside.columns)
        facts.functions.update(aside.functions)


class _Sweep:
    """Goes through a utility statement. Queries and expressions are walked into found."""

    def __init__(self, maker: Maker, facts: Facts, found: Facts, scope: Scope) -> None:
        self._facts = facts
        self._found = found
        self._walker = maker.walker(found)
        self._run = maker.walker(facts)
        self._scope = scope

    def under(self, value: Any, reads: bool) -> None:
        if value.__class__ is list:
            for each in value:
                self.under(each, reads)
        elif value.__class__ is dict:
            if "relname" in value:
                tables = self._facts.read if reads else self._facts.written
                tables[self._walker.range_name(value)] = None
                return
            for key, each in value.items():
                if key in QUERIES:
                    self._walker.query({key: each}, self._scope)
                elif key in EXPRESSIONS:
                    self._walker.expression({key: each}, self._scope, Stream())
                elif key == "partbound":  # FOR VALUES IN (f()) runs f
                    self._run.children(each, self._scope, Stream())
                elif each.__class__ is list or each.__class__ is dict:
                    if key in STATEMENTS:  # inside CREATE SCHEMA
                        self._facts.kinds[STATEMENTS[key][1]] = None
                    self.under(each, reads or key in _READ_UNDER)


# Where several settings are changed, the one that matters most stands for all.
_SETTINGS_FIRST: Final = {
    name: place
    for place, name in enumerate(
        ("standard_conforming_strings", "client_encoding", "all", "session_authorization", "role", "search_path")
    )
}


def weakest(
    wheres: list[Literal["none", "always_true", "present"]],
) -> Literal["none", "always_true", "present"] | None:
    """The WHERE that holds back least."""
    for each in ("none", "always_true", "present"):
        if each in wheres:
            return each
    return None


def whole_table(table: str, columns: tuple[str, ...]) -> tuple[Item, ...]:
    """The columns of a table as a result: all, or those that are named."""
    if not columns:
        return (star_of(table),)
    return tuple(Item(name, Flow((ColumnRef(table, name),), True)) for name in columns)
