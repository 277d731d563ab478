"""What the names in a statement may mean, so that rules and masks need not ask the catalogue themselves.

resolved: each written name -> every relation that it may mean, the relatives (parents, children, partitions) of those,
and the tables behind the views among them; () = it may be anything. alike: those of them that have the columns which
the text names, so that a mask may look at a column's name; of the others any column may be behind any name.

A name stands for anything if the catalogue does not know what it means, if a view behind it calls functions of users,
if ``relation.name`` is no column of it and so a function of its row, or if a column that is read is computed from
others of its table. Source: PostgreSQL 18 docs 5.4 (generated columns), 8.16.5 and 38.4.3 (functions as attributes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from proxy.core.statement import ColumnRef, Statement

# PREPARE, EXPLAIN, COPY and CREATE TABLE AS nest by one each.
DEPTH_LIMIT: Final = 16
# Every table has these; they hold no data.
SYSTEM_COLUMNS: Final = frozenset(("ctid", "xmin", "cmin", "xmax", "cmax", "tableoid"))


_PART: Final = re.compile(r'"(?:[^"]|"")*"|[^".]+')


@dataclass(frozen=True, slots=True)
class Known:
    """A relation by name: its columns (True: computed from others; None: they are not known), its relatives."""

    columns: Mapping[str, bool] | None
    relatives: tuple[str, ...] = ()


class Names(Protocol):
    """What the target's catalogue tells of names without waiting."""

    def resolve(self, name: str, search_path: tuple[str, ...] | None) -> tuple[str, ...]:
        """Return the relations ("schema.table") that a written name may mean."""

    def known(self, name: str) -> Known | None:
        """Return what there is to know of a relation ("schema.table"), None where it is not known."""

    def bases(self, name: str) -> frozenset[str]:
        """Return the tables behind a relation ("schema.table"), itself for a table."""

    def hides(self, name: str) -> bool:
        """Tell whether a view calls functions of users, so that any table may be behind it."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the names of one statement may mean. read, written: the relations themselves, without what is behind."""

    read: tuple[str, ...]
    written: tuple[str, ...]
    resolved: Mapping[str, tuple[str, ...]]
    alike: Mapping[str, tuple[str, ...]]


def meaning(world: Names, statement: Statement, path: tuple[str, ...] | None) -> Meaning:
    """Resolve every relation that a statement names."""
    read = {name: world.resolve(name, path) for name in statement.tables_read}
    written = {name: world.resolve(name, path) for name in statement.tables_written}
    resolved: dict[str, tuple[str, ...]] = {}
    alike: dict[str, tuple[str, ...]] = {}
    for name, found in {**read, **written}.items():
        knowns = [world.known(each) for each in found]
        relatives: list[str] = []
        for each, known in zip(found, knowns, strict=True):
            if known is None or world.hides(each) or _beyond_columns(statement, name, known):
                break
            relatives += known.relatives
        else:
            bases = (base for each in found for base in sorted(world.bases(each)))
            alike[name] = tuple(dict.fromkeys((*found, *relatives)))
            resolved[name] = tuple(dict.fromkeys((*alike[name], *bases)))
            continue
        resolved[name] = alike[name] = ()
    return Meaning(_each(read), _each(written), resolved, alike)


def _each(found: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for names in found.values() for each in names))


def _beyond_columns(statement: Statement, name: str, known: Known) -> bool:
    """Tell whether the text reads more of a relation than the columns it names."""
    if known.columns is None:
        return False
    for each in _nested(statement):
        for ref in each.more.get("attributes", ()):
            if ref.table == name and ref.name not in known.columns and ref.name not in SYSTEM_COLUMNS:
                return True
        if any(ref.table in (name, None) and known.columns.get(ref.name) for ref in _references(each)):
            return True
    return False


def _references(statement: Statement) -> Iterable[ColumnRef]:
    yield from statement.columns
    for output in statement.outputs or ():
        yield from output.sources


def _nested(statement: Statement) -> Iterator[Statement]:
    each: Statement | None = statement
    for _ in range(DEPTH_LIMIT):
        if each is None:
            return
        yield each
        each = each.inner


def parts_of(name: str) -> tuple[str, ...]:
    """Split a written name, ``public."Odd.Table"``, at its dots; quotes are taken off."""
    if '"' not in name:
        return tuple(name.split("."))
    parts = [quoted[1:-1].replace('""', '"') if quoted.startswith('"') else quoted for quoted in _PART.findall(name)]
    return tuple(parts) if parts else (name,)


def split_path(text: str) -> tuple[str, ...] | None:
    """Split a search_path as current_setting() shows it; None where it has quoting that is not plain."""
    parts = []
    for part in text.split(","):
        entry = part.strip()
        if entry.startswith('"'):
            if len(entry) < 2 or not entry.endswith('"') or '"' in entry[1:-1]:
                return None
            entry = entry[1:-1]
        else:
            entry = entry.lower()
        if entry:
            parts.append(entry)
    return tuple(parts)
