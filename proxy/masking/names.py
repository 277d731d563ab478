"""Column patterns of masks against the names of columns and relations.

A pattern is ``schema.table.column`` or ``table.column`` (any schema); each part is a shell pattern (``*``, ``?``,
``[abc]``), matched on its own and by case, as the server folds names: unquoted ones are in lower case. Double quotes
are not part of a pattern.

A name that holds dots itself cannot be told from a longer path, so such a name matches if any way to read it does: what
is unclear is masked.

Specification: fnmatch.fnmatchcase of the standard library, part by part.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Final

PATTERN_LIMIT: Final = 256  # bytes: three names of PostgreSQL's NAMEDATALEN (64), with room for brackets

# A DNS name of 253 characters for the group of a resource, and a path of as many.
FIELD_LIMIT: Final = 512

Test = re.Pattern[str]


@dataclass(frozen=True, slots=True)
class ColumnPattern:
    """One compiled pattern."""

    schema: Test
    table: Test
    column: Test

    def covers(self, origin: str) -> bool:
        """Tell whether ``schema.table.column`` (or ``table.column``) is covered; a last part ``*`` is any column."""
        parts = origin.split(".")
        for schema, table, column in _readings(parts):
            if self.covers_relation(schema, table) and (column == "*" or self.column.match(column)):
                return True
        return False

    def covers_table(self, name: str) -> bool:
        """Tell whether some column of ``schema.table`` (or ``table``) may be covered."""
        parts = name.split(".")
        if len(parts) == 1:
            return self.table.match(name) is not None
        return any(self.covers_relation(".".join(parts[:at]), ".".join(parts[at:])) for at in range(1, len(parts)))

    def covers_relation(self, schema: str | None, table: str) -> bool:
        """The same with the schema apart; None is an unknown schema, which may be any."""
        if self.table.match(table) is None:
            return False
        return schema is None or self.schema.match(schema) is not None

    def covers_column(self, column: str) -> bool:
        """Tell whether a column of that name is covered; ``*`` is all columns."""
        return column == "*" or self.column.match(column) is not None


def _readings(parts: list[str]) -> list[tuple[str | None, str, str]]:
    """All ways to read a dotted name as schema, table and column."""
    if len(parts) <= 2:
        return [(None, parts[0], parts[-1] if len(parts) == 2 else "*")]
    return [
        (".".join(parts[:one]), ".".join(parts[one:two]), ".".join(parts[two:]))
        for one in range(1, len(parts) - 1)
        for two in range(one + 1, len(parts))
    ]


def compile_pattern(pattern: str) -> ColumnPattern:
    """Compile a pattern that check_pattern found nothing wrong with."""
    parts = pattern.split(".")
    schema, table, column = parts if len(parts) == 3 else ("*", *parts)
    return ColumnPattern(*(re.compile(fnmatch.translate(part)) for part in (schema, table, column)))


def check_pattern(pattern: str) -> str | None:
    """Return what is wrong with a column pattern, None if nothing is."""
    parts = pattern.split(".")
    if len(pattern.encode("utf-8", "replace")) > PATTERN_LIMIT:
        return f"the column pattern is longer than {PATTERN_LIMIT} bytes"
    if '"' in pattern:
        return f"column pattern {pattern!r}: write names without quotes; use ? for a dot in a name"
    if len(parts) == 1:
        return f"column pattern {pattern!r} has no table; write '*.*.{pattern}' for a column of any table"
    if len(parts) > 3 or not all(part.strip() for part in parts):
        return f"column pattern {pattern!r} is not schema.table.column or table.column"
    return None


def check_field(pattern: str) -> str | None:
    """Return what is wrong with a field pattern, None if nothing is."""
    resource, colon, path = pattern.partition(":")
    if len(pattern) > FIELD_LIMIT:
        return f"the field pattern is longer than {FIELD_LIMIT} characters"
    if not colon or not resource.strip() or not path.strip():
        return f"the field {pattern!r} is not resource:path, like secrets:data.* or *:spec.*env.*PASSWORD*"
    if resource != resource.lower():
        return f"the field {pattern!r}: a resource is written in lower case and plural, like deployments.apps"
    if re.search(r"\[\d*\]|\.\.|\A[./$]|\.\Z|\s\Z|\A\s", path):
        return f"the field {pattern!r}: a path is like spec.containers.env.NAME, without the indexes of lists"
    return None
