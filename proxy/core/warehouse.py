"""What a text of BigQuery SQL does, as read from the text alone: values shared by the gate and the analysis.

proxy/policy/bigquery.py makes these; bigquery_rewrite.py those of rewritten texts. A name is resolved as far as the
text tells: against the project and dataset that the request gives (or ``SET @@dataset_id`` changes), never against what
exists. What could not be told is opaque, and opaque never counts as a read. Column names are compared in lower case, as
BigQuery does; names of datasets and tables are as written.

Left out, because text alone does not tell it: what a view or a routine reads; whether a name without a dataset is a
temporary table that an earlier job of the same session made (``Statement.bare_tables`` lists such names); labels.

Source: bigquery note, sections 4, 9, 11 and 12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from proxy.core.events import Kind

Verb = Literal[
    "read_rows", "write_rows", "destroy", "define", "grant", "export", "call", "inspect", "session", "UNKNOWN"
]
KIND_OF: Final[dict[Verb, Kind]] = {
    "read_rows": "read",
    "write_rows": "write",
    "destroy": "delete",
    "define": "define",
    "grant": "admin",
    "export": "transfer",
    "call": "execute",
    "inspect": "read",
    "session": "session",
    "UNKNOWN": "unknown",
}
# From the lightest to the gravest: a statement with several effects has the verb of the gravest.
GRAVITY: Final[tuple[Verb, ...]] = (
    "session",
    "inspect",
    "read_rows",
    "write_rows",
    "define",
    "destroy",
    "export",
    "call",
    "grant",
    "UNKNOWN",
)

Where = Literal["none", "always_true", "present"]

# Datasets that are no dataset: temporary tables of the script or session, and names that nothing resolves.
TEMPORARY: Final = "_SESSION"
UNRESOLVED: Final = ""

_SUFFIXED: Final = re.compile(r"^(.+)_\d+$")
_ANONYMOUS: Final = re.compile(r"^f\d+_$")


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A table, or another object of a dataset. table may end in ``*``: a wildcard table, or all of a dataset.

    dataset is TEMPORARY for a temporary table, UNRESOLVED where no default is known; a region ("region-us") or a
    dataset before a table "INFORMATION_SCHEMA.JOBS".
    """

    project: str
    dataset: str
    table: str

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"

    @property
    def is_pattern(self) -> bool:
        """Whether this stands for several tables: a wildcard table."""
        return "*" in self.table

    @property
    def is_metadata(self) -> bool:
        """Whether this is a view on metadata, not on rows."""
        upper = self.table.upper()
        return upper.startswith("INFORMATION_SCHEMA.") or upper in ("__TABLES__", "__TABLES_SUMMARY__")


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """A place that values come from: a column or nested field of a table. path () is the whole row, as a STRUCT."""

    table: TableName
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ResultColumn:
    """Where one column (or field of a STRUCT) of a result comes from.

    bare: the value passes unchanged from one of the origins, so that its field ``zip`` comes from the origin's field
    ``zip``. taint: why the text does not tell; then the value may hold anything of all that the text reads, or of
    anything at all. fields: of a STRUCT that the text builds; its names may be "".
    """

    name: str
    origins: tuple[Origin, ...] = ()
    bare: bool = False
    taint: str = ""
    fields: tuple[ResultColumn, ...] = ()

    def field(self, name: str) -> ResultColumn:
        """Return the field of a STRUCT (or of the STRUCTs in an ARRAY), as this column's value passes."""
        wanted = name.lower()
        if self.bare:
            return ResultColumn(name, tuple(Origin(o.table, (*o.path, wanted)) for o in self.origins), True, self.taint)
        named = [field for field in self.fields if field.name.lower() == wanted and field.name]
        if len(named) == 1 and not self.taint:
            return named[0]
        return ResultColumn(name, self.origins, False, self.taint)  # nothing finer is known: all of the whole


@dataclass(frozen=True, slots=True)
class StarColumns:
    """The columns of a ``*`` over something whose columns the text does not tell."""

    table: TableName
    path: tuple[str, ...] = ()
    excepted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outputs:
    """The columns of a result. stars: what ``*`` adds, at places that only the result tells. taint: of all of them."""

    columns: tuple[ResultColumn, ...] = ()
    stars: tuple[StarColumns, ...] = ()
    also: tuple[Origin, ...] = ()
    taint: str = ""

    def resolve(self, names: Iterable[str]) -> tuple[ResultColumn, ...]:
        """Tell for each column name of the real result where it comes from; never less than it does.

        A name is looked for among the named columns and the stars alike, as places in a row with a star are unknown;
        so is "id_1", which BigQuery makes of a second "id". A name that nothing explains is tainted.
        """
        return tuple(self._resolve(name) for name in names)

    def _resolve(self, name: str) -> ResultColumn:
        wanted = name.lower()
        names = {wanted}
        if found := _SUFFIXED.match(wanted):
            names.add(found[1])
        anonymous = _ANONYMOUS.match(wanted) is not None
        hits = [c for c in self.columns if c.name.lower() in names or (anonymous and _ANONYMOUS.match(c.name))]
        origins = [
            Origin(star.table, (*star.path, each))
            for star in self.stars
            for each in sorted(names)
            if each not in star.excepted
        ]
        if not hits and not origins:
            return ResultColumn(name, self.also, False, self.taint or "the text does not tell of this column")
        if len(hits) == 1 and not origins and not self.also and not self.taint:
            return ResultColumn(name, hits[0].origins, hits[0].bare, hits[0].taint, hits[0].fields)
        every = dict.fromkeys([*(o for hit in hits for o in hit.origins), *origins, *self.also])
        bare = all(hit.bare for hit in hits) and not self.also
        taint = self.taint or next((hit.taint for hit in hits if hit.taint), "")
        return ResultColumn(name, tuple(every), bare, taint)


@dataclass(frozen=True, slots=True)
class Effect:
    """One thing that a statement does. objects may be empty where it has none (a transaction) or nobody can tell."""

    verb: Verb
    objects: tuple[TableName, ...] = ()
    object_type: str = "table"
    where: Where | None = None

    @property
    def kind(self) -> Kind:
        return KIND_OF[self.verb]


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a text, or one expression of a script's control flow (word "IF", "WHILE", ...).

    word: how it begins ("SELECT", "CREATE TABLE", "CONDITION"). verb and kind: of the gravest of effects.
    where: for DELETE, UPDATE and MERGE. routines: functions and procedures that are not BigQuery's own.
    doors: ways out of BigQuery ("EXTERNAL_QUERY", "LOAD DATA", "REMOTE FUNCTION"). uris: where to or from.
    outputs: of the result, or of the rows that it stores (moves_data); None where it has none. filters: the columns
    that choose, group or order rows (an oracle on them). bare_tables: names written without a dataset.
    opaque: something is hidden; then one of effects is UNKNOWN, or a call of what nobody has read.
    declared: it is in the body of a procedure that is made here, and runs only when that is called.
    """

    word: str
    verb: Verb
    kind: Kind
    text: str
    effects: tuple[Effect, ...]
    tables_read: tuple[TableName, ...] = ()
    tables_written: tuple[TableName, ...] = ()
    where: Where | None = None
    functions: tuple[str, ...] = ()
    routines: tuple[str, ...] = ()
    doors: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    outputs: Outputs | None = None
    moves_data: bool = False
    filters: tuple[Origin, ...] = ()
    bare_tables: tuple[str, ...] = ()
    opaque: bool = False
    why: str = ""
    declared: bool = False


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that a text does. control: the words of its control flow, in their order ("BEGIN", "IF", "LOOP", ...).

    opaque with no statements: nothing is known of the text, so nothing of it may pass unseen.
    """

    statements: tuple[Statement, ...] = ()
    control: tuple[str, ...] = ()
    opaque: bool = False
    why: str = ""

    @property
    def effects(self) -> tuple[Effect, ...]:
        """Every effect of every statement, each once."""
        return tuple(dict.fromkeys(effect for statement in self.statements for effect in statement.effects))

    @property
    def tables_read(self) -> tuple[TableName, ...]:
        return tuple(dict.fromkeys(table for statement in self.statements for table in statement.tables_read))

    @property
    def tables_written(self) -> tuple[TableName, ...]:
        return tuple(dict.fromkeys(table for statement in self.statements for table in statement.tables_written))


# What an expression of a Replacement calls the row of the table that it stands in.
SCANNED_ROW: Final = "gatecast_row"


@dataclass(frozen=True, slots=True)
class Replacement:
    """One column of a table, as a scan of it is to show it. All columns are given, in the order of the table.

    expression: SQL that names columns as fields of SCANNED_ROW; "" shows the column as it is.
    """

    column: str
    expression: str = ""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A text whose scans of some tables were replaced. tables: full names of those; with none, text is as it came.

    why: what was left as it is, and for which reason; "" where nothing was.
    """

    text: str
    tables: tuple[str, ...] = ()
    why: str = ""


class TableField(Protocol):
    """A field of a table's schema; see protocols/bigquery/schema.py, which makes them."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def fields(self) -> Sequence[TableField]: ...


@dataclass(frozen=True, slots=True)
class AnalysisLimits:
    """What a text may cost. trusted_routines ("project.dataset.name") are vouched for by an operator: they read nothing
    that their arguments do not give them, and do not make a text opaque."""

    text_bytes: int = 256 * 1024  # bigquery note 12; BigQuery itself takes 1 MB of unresolved SQL
    bracket_depth: int = 64  # the pure parser's stack ends between 60 and 100 (bigquery note 12)
    tokens: int = 100_000  # an IN list of 20,000 numbers is 40,000 tokens, 0.7 s
    statements: int = 2_000  # a migration; BigQuery's console takes scripts of about that
    trusted_routines: frozenset[str] = frozenset()


def gravest(verbs: Sequence[Verb]) -> Verb:
    """Return the gravest of some verbs; UNKNOWN where there is none."""
    return max(verbs, key=GRAVITY.index, default="UNKNOWN")


def unknown(text: str, why: str) -> Analysis:
    """The analysis of what nobody could read."""
    effect = Effect("UNKNOWN")
    return Analysis((Statement("UNKNOWN", "UNKNOWN", "unknown", text, (effect,), opaque=True, why=why),), (), True, why)
