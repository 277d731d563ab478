"""What one SQL statement touches, as read from its text alone: a value shared by SQL-speaking protocols.

proxy/policy/sql.py makes these for PostgreSQL. Names are as written, folded as the server folds them (unquoted
lower-cased): "schema.table" where the text has a schema, "table" where it has none; the protocol resolves the
latter against the session's search_path and the target's catalogue (``named``). What could not be told is
opaque, and opaque never counts as a read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from proxy.core.events import Kind


@dataclass(frozen=True, slots=True)
class ColumnRef:
    """A column named in the text: table is the relation's name as written ("schema.table" or "table"), resolved
    through aliases, CTEs and sub-selects where the text alone tells; None where it could be any table in scope.
    name "*" stands for all columns of the table (or of every table in scope)."""

    table: str | None
    name: str


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """Where one column of a result comes from. bare: the value passes unchanged from the one column of sources.

    opaque: a sub-expression hides its sources (a function that is not known to compute from its arguments
    alone, dynamic SQL, a cursor of unknown text), so any table may be behind it.
    """

    name: str
    sources: tuple[ColumnRef, ...]
    bare: bool = False
    opaque: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """A COPY statement: columns () = all, in the relation's order; inner query in Statement.inner."""

    direction: Literal["in", "out"]
    relation: str | None
    columns: tuple[str, ...]
    endpoint: Literal["client", "file", "program"]
    format: Literal["text", "csv", "binary", "unknown"]
    delimiter: str
    null: str
    header: bool
    quote: str
    escape: str
    force_quote: bool
    encoding: str | None


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a text. See proxy/policy/sql.py for how each field is found.

    verb: SELECT, INSERT, ..., 'UNPARSABLE' (error tells why). where: 'none' | 'always_true' | 'present', for
    statements that can have one. outputs: None where the result's columns are not known from the text (SELECT *
    has one OutputColumn named "*" a star, of unknown width: then outputs_exact is False).
    control: transaction control. name: of the prepared statement, cursor, savepoint, channel or setting that it
    makes, uses or drops. inner: the statement inside PREPARE, DECLARE, EXPLAIN, COPY (query), CREATE TABLE AS,
    CREATE VIEW. moves_data: it stores what it reads (INSERT..SELECT, CREATE TABLE AS, SELECT INTO, UPDATE from
    columns, MERGE, materialized view, COPY to a file or program). literal_free: the facts do not depend on any literal,
    so that another text of the same normalised form has the same facts. key: equal and not 0 in two Statements whose
    every field but text is equal (SqlReader numbers them), so that what is derived from them can be cached.
    kinds: every kind found in it, kind being the gravest. columns: those read; columns_written: those that INSERT,
    UPDATE, MERGE or COPY name as their place. moved: the columns whose values it stores, if moves_data.
    """

    verb: str
    kind: Kind
    text: str
    tables_read: tuple[str, ...] = ()
    tables_written: tuple[str, ...] = ()
    columns: tuple[ColumnRef, ...] = ()
    functions: tuple[str, ...] = ()
    where: Literal["none", "always_true", "present"] | None = None
    outputs: tuple[OutputColumn, ...] | None = None
    outputs_exact: bool = False
    control: (
        Literal["begin", "commit", "rollback", "savepoint", "release", "rollback_to", "prepare_transaction"] | None
    ) = None
    name: str | None = None
    setting: tuple[str, str | None] | None = None
    copy: Copy | None = None
    inner: Statement | None = None
    moves_data: bool = False
    opaque: bool = False
    opaque_reason: str = ""
    limit: int | None = None
    literal_free: bool = True
    key: int = 0
    error: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[Kind, ...] = ()
    columns_written: tuple[ColumnRef, ...] = ()
    moved: tuple[ColumnRef, ...] = ()
