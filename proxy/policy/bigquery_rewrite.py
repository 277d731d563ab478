"""Masks put into the text of a query of BigQuery, where it scans a table. rewrite() is pure and never raises.

``FROM d.t`` becomes ``FROM (SELECT gatecast_row.`id`, '[redacted]' AS `email` FROM d.t AS gatecast_row) AS `t` ``: all
columns by name, so that whole rows, TO_JSON(t) and stored results are known column by column to who reads the new text.
Only those places of the text change; comments and all else stay as they came.

How: the text is read as bigquery.py does, with a reader that notes where tables are scanned. What was noted is found
again among our own tokens, and its name must be the one that was read. The new text is analysed, and must do what the
old one does: the same statements, effects and tables. What it must not do is decided elsewhere, on the new text and
with the same masks: a scan that is left, or a mistake here, shows nothing that lineage would not show.

A text is left whole where a masked value could choose what is changed: UPDATE, DELETE, MERGE and all that is neither a
query, INSERT, CREATE TABLE nor EXPORT; and where it writes a table that is to be replaced, whose values would be lost.
A scan is left where a query in brackets cannot stand in its place: FOR SYSTEM_TIME, TABLESAMPLE, PIVOT, pipes, TABLE
arguments, pseudo columns, columns named by the table's full name. Views, routines, EXECUTE IMMEDIATE are not entered.

Source: bigquery note 9, layer 2; GoogleSQL, "Query syntax", FROM clause.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlglot import exp

from proxy.core.warehouse import (
    SCANNED_ROW,
    Analysis,
    AnalysisLimits,
    Outputs,
    Replacement,
    Rewritten,
    Statement,
    TableName,
)
from proxy.policy.bigquery import DEFAULT_LIMITS, analyse
from proxy.policy.bigquery_draft import Draft, Script
from proxy.policy.bigquery_lex import Token, Unreadable, name_value, tokens_of
from proxy.policy.bigquery_names import Names
from proxy.policy.bigquery_query import QueryReader
from proxy.policy.bigquery_script import Piece, Splitter
from proxy.policy.bigquery_statements import READERS

# Statements in which masked values choose nothing but what is shown, or stored in a place of its own.
_ENTERED: Final = frozenset({"SELECT", "INSERT", "CREATE TABLE", "EXPORT DATA", "DECLARE", "SET", "ASSERT"})
# Others that may stand beside them: they change nothing that was there before, whatever was read.
_BESIDE: Final = frozenset({"BEGIN", "COMMIT", "ROLLBACK", "RAISE", "BREAK", "LEAVE", "CONTINUE", "ITERATE", "RETURN",
                            "CREATE FUNCTION", "CREATE AGGREGATE FUNCTION"})  # fmt: skip
# Words of control flow, as Piece has them: conditions are entered.
_CONTROL: Final = frozenset({"IF", "ELSEIF", "CASE", "WHEN", "WHILE", "REPEAT", "FOR"})
# Columns that a table has and SELECT * does not. Source: "Querying partitioned tables", "Querying wildcard tables",
# "External tables" (_FILE_NAME), "Work with change history".
_PSEUDO: Final = ("_PARTITIONTIME", "_PARTITIONDATE", "_TABLE_SUFFIX", "_FILE_NAME", "_CHANGE_", "_ROW_TIMESTAMP")
# Words of a statement in which no scan is replaced. Source: "VECTOR_SEARCH" takes the plainest of queries alone.
_BARRING: Final = {"|>": "pipes", "VECTOR_SEARCH": "VECTOR_SEARCH takes a query of a table alone"}
_PARTS: Final = {"this", "db", "catalog", "alias", "joins"}  # what a scan may have that a query in brackets may too
_BRACKETS: Final = 7  # length of "SELECT ", which Draft.expression puts before an expression


@dataclass(frozen=True, slots=True)
class _Scan:
    """A table that is scanned: tokens [first, last) are its name. alias: "" where it has none of its own."""

    table: TableName
    first: int
    last: int
    alias: str


# Scans of one statement: each looks through all of it for names. BigQuery takes 1,000 tables ("Quotas").
SCANS_LIMIT: Final = 200


@dataclass(slots=True)
class _Found:
    """What was noted of one text."""

    wanted: frozenset[str]
    scans: dict[int, _Scan] = field(default_factory=dict)  # by first token
    left: dict[str, None] = field(default_factory=dict)

    def leave(self, table: object, why: str) -> None:
        self.left[f"{table}: {why}"] = None


class _Reader(QueryReader):
    """Notes the tables in FROM items, beside what the analysis reads. begin: where the parsed text begins."""

    found: _Found
    tokens: Sequence[Token]
    begin: int
    barred: str

    def table(self, node: exp.Table, *, reads: bool = True) -> TableName:
        """The table that a node names; noted."""
        name = super().table(node, reads=reads)
        if str(name) in self.found.wanted:
            try:
                if len(self.found.scans) >= SCANS_LIMIT:
                    raise Unreadable(f"the statement has more than {SCANS_LIMIT} scans")
                scan = self._scan(node, name)
                self.found.scans[scan.first] = scan
            except Unreadable as error:
                self.found.leave(name, str(error))
        return name

    def _scan(self, node: exp.Table, name: TableName) -> _Scan:
        """Where a scan stands. Raises Unreadable where it cannot be replaced."""
        if self.barred:
            raise Unreadable(self.barred)
        if not _is_item(node):
            raise Unreadable("the table is an argument")
        if strange := sorted(key for key, value in node.args.items() if value and key not in _PARTS):
            raise Unreadable(f"the scan has what only a table may have ({strange[0]})")
        parts = self.name_of(node)
        if any(mark in part for part in parts for mark in "*$@"):
            raise Unreadable("the name has a decorator or a wildcard")
        first, last = self._place(node, parts)
        if self._is_referred_to_in_full(node, parts):
            raise Unreadable("its columns may be named by its full name")
        alias = node.args.get("alias")
        if alias is not None and alias.args.get("columns"):
            raise Unreadable("its columns have other names")
        return _Scan(name, first, last, alias.name if alias is not None else "")

    def _place(self, node: exp.Table, parts: Sequence[str]) -> tuple[int, int]:
        """The tokens of a name: around one that the parser tells of, and the same name in all."""
        starts = {
            found.meta["start"] + self.begin
            for part in node.parts
            for found in part.find_all(exp.Identifier)
            if "start" in found.meta
        }
        index = next((index for index, token in enumerate(self.tokens) if token.start in starts), None)
        if index is None:
            raise Unreadable("its place in the text cannot be told")
        first, last = index, index + 1
        while first and self._joins(first - 1):
            first -= 1
        while last < len(self.tokens) and self._joins(last - 1):
            last += 1
        tokens = self.tokens[first:last]
        said = "".join(name_value(token) for token in tokens)
        if said != ".".join(parts):
            raise Unreadable("its name in the text is not the one that was read")
        return first, last

    def _joins(self, index: int) -> bool:
        """Whether a token and the next one are of one path: a dot between, or a dash or digits without a space."""
        one, two = self.tokens[index], self.tokens[index + 1]
        if "." in (one.word, two.word):
            return all(each.word == "." or each.kind in ("word", "quoted", "number") for each in (one, two))
        plain = all(each.word == "-" or each.kind in ("word", "number") for each in (one, two))
        return plain and one.end == two.start

    def _is_referred_to_in_full(self, node: exp.Table, parts: Sequence[str]) -> bool:
        """Whether anything in the statement may be named from above the table: ``d.t.email`` for a scan of d.t."""
        above = {part.lower() for part in parts[:-1]} | ({".".join(parts).lower()} if len(parts) > 1 else set())
        above |= {".".join(parts[at:]).lower() for at in range(len(parts) - 1)}
        whole = [part.lower() for part in parts]
        for column in node.root().find_all(exp.Column):
            names = [part.name.lower() for part in column.parts]
            if len(names) > 1 and names[0] in above:
                return True
        tables = ([part.name.lower() for part in table.parts] for table in node.root().find_all(exp.Table))
        return any(len(names) > len(whole) and names[: len(whole)] == whole for names in tables)


class _Draft(Draft):
    """A statement whose reader notes scans."""

    def __init__(self, script: Script, tokens: Sequence[Token], found: _Found) -> None:
        Draft.__init__(self, script, tokens)
        reader = _Reader(script.names, script.variables, script.limits.trusted_routines)
        reader.found, reader.tokens, reader.begin = found, tokens, tokens[0].start
        reader.barred = next((_BARRING[token.word] for token in tokens if token.word in _BARRING), "")
        self.reader: _Reader = reader

    def query(self, tokens: Sequence[Token]) -> Outputs | None:
        """Read a query, whose positions count from its first token."""
        self.reader.begin = tokens[0].start if tokens else 0
        return Draft.query(self, tokens)

    def expression(self, tokens: Sequence[Token]) -> None:
        """Read an expression, whose positions count from the SELECT that is put before it."""
        self.reader.begin = tokens[0].start - _BRACKETS if tokens else 0
        Draft.expression(self, tokens)


def rewrite(
    text: str,
    project: str,
    dataset: str | None,
    scans: Mapping[str, tuple[Replacement, ...]],
    limits: AnalysisLimits = DEFAULT_LIMITS,
) -> Rewritten:
    """Replace the scans of some tables ("project.dataset.table") in a text. Never raises."""
    before = analyse(text, project, dataset, limits)
    if why := _unfit(before, scans):
        return Rewritten(text, why=why)
    try:
        found = _Found(frozenset(scans))
        tokens = _read(text, Names(project, dataset), limits, found)
        after = _spliced(text, tokens, found, scans, limits.text_bytes)
        if found.scans and not _same(before, analyse(after, project, dataset, limits)):
            return Rewritten(text, why="the rewritten text would not do the same")
    except Unreadable as error:
        return Rewritten(text, why=str(error))
    except Exception as error:  # fails closed: the text stays as it came, and is masked by its lineage
        return Rewritten(text, why=f"the text could not be rewritten ({type(error).__name__})")
    tables = tuple(dict.fromkeys(str(scan.table) for scan in found.scans.values()))
    return Rewritten(after if tables else text, tables, "; ".join(found.left))


def _unfit(analysis: Analysis, scans: Mapping[str, tuple[Replacement, ...]]) -> str:
    """Say why nothing of a text may be rewritten, "" if something may."""
    if analysis.opaque:
        return f"the text cannot be read: {analysis.why}"
    for each in analysis.statements:
        if each.word not in _ENTERED | _BESIDE | _CONTROL:
            return f"{each.word} could change more, or less, by masked values"
        if each.declared:
            return "a procedure is made"
    for name in analysis.tables_written:
        if str(name).lower() in {table.lower() for table in scans}:
            return f"{name} is written: masked values would take the place of its own"
    return ""


def _read(text: str, names: Names, limits: AnalysisLimits, found: _Found) -> list[Token]:
    """Read a text that the analysis could read, noting its scans. Raises Unreadable."""
    script = Script(text, limits, names)
    tokens = tokens_of(text, limits.tokens, limits.bracket_depth)
    if pseudo := next((t.text for t in tokens if t.text.strip("`").upper().startswith(_PSEUDO)), None):
        for table in found.wanted:
            found.leave(table, f"{pseudo} is a column of tables alone")
        return tokens
    splitter = Splitter(tokens, limits.statements)
    splitter.split()
    script.variables |= frozenset(splitter.variables)
    for piece in splitter.pieces:
        _read_piece(script, tokens, piece, found)
    return tokens


def _read_piece(script: Script, tokens: list[Token], piece: Piece, found: _Found) -> None:
    """Read a statement or a condition. What control flow makes of names is certain: else the text is opaque."""
    own = tokens[piece.first : piece.last]
    noted = _Found(found.wanted)
    draft = _Draft(script, own, noted)
    if piece.word:
        draft.expression(own)
    else:
        READERS[draft.word](draft)
    for scan in noted.scans.values():
        if not piece.word and draft.word not in _ENTERED:
            found.leave(scan.table, f"{draft.word} is not entered")
            continue
        first = piece.first + scan.first
        found.scans[first] = _Scan(scan.table, first, piece.first + scan.last, scan.alias)
    found.left |= noted.left


def _spliced(
    text: str, tokens: Sequence[Token], found: _Found, scans: Mapping[str, tuple[Replacement, ...]], size_limit: int
) -> str:
    """The text with queries in place of the names of tables. Raises Unreadable where it would be too long."""
    heads = {table: _head(scans[table]) for table in {str(scan.table) for scan in found.scans.values()}}
    if sum(len(heads[str(scan.table)]) for scan in found.scans.values()) > size_limit:
        raise Unreadable("the rewritten text would be too long")
    parts: list[str] = []
    at = 0
    for first in sorted(found.scans):
        scan = found.scans[first]
        start, end = tokens[scan.first].start, tokens[scan.last - 1].end
        alias = "" if scan.alias else f" AS {quoted(scan.table.table)}"
        parts += (text[at:start], heads[str(scan.table)], text[start:end], f" AS {SCANNED_ROW})", alias)
        at = end
    return "".join((*parts, text[at:]))


def _head(columns: Sequence[Replacement]) -> str:
    """What comes before a table's name, as the text has it, comments between its parts included."""
    shown = (
        f"{each.expression} AS {quoted(each.column)}" if each.expression else f"{SCANNED_ROW}.{quoted(each.column)}"
        for each in columns
    )
    return f"(SELECT {', '.join(shown)} FROM "  # noqa: S608  # quoted, and expressions of our own


def quoted(name: str) -> str:
    """A name in backticks. Raises Unreadable for one that cannot be written so."""
    if not name or not name.isprintable() or "`" in name or "\\" in name:
        raise Unreadable("a name cannot be quoted")
    return f"`{name}`"


def _is_item(node: exp.Table) -> bool:
    """Whether a table stands where a query in brackets may: in FROM, in JOIN, within brackets with JOIN."""
    parent = node.parent
    return isinstance(parent, exp.From | exp.Join) or (
        isinstance(parent, exp.Subquery) and bool(node.args.get("joins") or parent.args.get("joins"))
    )


def _same(before: Analysis, after: Analysis) -> bool:
    """Whether two texts do the same to the same tables, as far as decisions look at that."""
    if before.control != after.control or len(before.statements) != len(after.statements) or after.opaque:
        return False
    pairs = zip(before.statements, after.statements, strict=True)
    return all(list(_does(one)) == list(_does(two)) and set(one.functions) <= set(two.functions) for one, two in pairs)


def _does(each: Statement) -> Iterator[object]:
    yield from (each.word, each.verb, each.where, each.declared, each.opaque)
    yield set(each.effects)
    yield set(each.tables_read)
    yield set(each.tables_written)
    yield (set(each.routines), each.doors, each.uris, set(each.bare_tables))
