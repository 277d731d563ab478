"""Reading SQL: what each statement of a text does, on the parser of PostgreSQL itself (pgparse, libpg_query 17).

read_sql makes a Statement of each statement of a text and never raises. What does not parse is one UNPARSABLE
statement of kind "unknown"; a node that is not listed is "unknown" and opaque; an empty text, only semicolons or
comments are no statement at all. No rule allows the unknown unless it says so: the target may be newer than this
parser, whose grammar ends with PostgreSQL 17 (18's virtual columns and RETURNING WITH do not parse).

The parts: sql_verbs (what there is), sql_statement and sql_utility (one statement), sql_query and sql_modify (what
a query touches and where its columns come from), sql_scope (names), sql_where, sql_functions.

SqlReader is the same with a cache. First by text. Then by pgparse.normalize, which puts a parameter in the place of
every constant and leaves all else, comments included: equal normalised texts parse to the same tree but for constants
and parameters (and a sign). So a statement whose facts did not look at one (literal_free) serves every text of its
normalised form, with the text replaced. pgparse.fingerprint cannot be that key: it ignores the order of columns, the
aliases of tables, and the names of cursors and prepared statements, and is a hash that can be collided on purpose.
normalize takes the token behind a minus for the constant, though in ``-(1)`` it is a parenthesis: a text with such a
minus, or a ``--`` comment, is kept by its text alone.

Limits: a text with a NUL is refused (the parser would stop there, silently); so is one whose structure, literals
left out, is longer than STRUCTURE_LIMIT. Nesting of more than some 300 levels is unknown (the interpreter's stack);
10,000 parentheses are the parser's own clean error.

Left out, because the text alone does not tell: what a view, a trigger, a rule, a user's operator or cast runs; an
overload of a builtin's name; whether ``t.name`` is a column or a user's function of the row; search_path;
standard_conforming_strings=off (on is assumed; the protocol refuses turning it off).

Source: postgres note, section 10; PostgreSQL 17 src/backend/parser/gram.y.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from itertools import count
from typing import Any, Final, NamedTuple

import pgparse

from proxy.core.statement import Statement
from proxy.policy.sql_statement import Maker
from proxy.policy.sql_utility import HANDLERS
from proxy.policy.sql_verbs import UNPARSABLE, VERBS

__all__ = ["VERBS", "SqlReader", "read_sql"]

# Characters of a text without its literals: about 1.4 s of parsing on one core, during which nobody else is served.
STRUCTURE_LIMIT: Final = 2 * 1024 * 1024
# What is kept: a text of an application, not a bulk load; and about 16 MB of them.
CACHED_TEXT_LIMIT: Final = 16 * 1024
CACHED_TEXTS_LIMIT: Final = 4096
CACHED_CHARACTERS_LIMIT: Final = 8 * 1024 * 1024

_UNSAFE_MINUS: Final = re.compile(r"-\s*(?:[-(]|/\*)")
_NO_NAMES: Final[frozenset[str]] = frozenset()


def read_sql(text: str, also_pure: frozenset[str] = _NO_NAMES) -> tuple[Statement, ...]:
    """Read a text into its statements, () where it has none; never raises.

    also_pure are functions and operators that an operator vouches for, as they are written: "public.st_distance",
    "operator(<=>)".
    """
    if "\0" in text:
        return (_unparsable(text, "the text holds a NUL character"),)
    try:
        if len(text) > STRUCTURE_LIMIT and len(pgparse.normalize(text)) > STRUCTURE_LIMIT:
            return (_unparsable(text, "the statement is too large to be read"),)
        nodes = pgparse.parse(text)
    except pgparse.PGQueryError as error:
        return (_unparsable(text, str(error)),)
    except RecursionError:
        return (_unparsable(text, "the statement is nested too deeply to be read"),)
    except UnicodeEncodeError:
        return (_unparsable(text, "the text is not valid Unicode"),)
    except Exception as error:  # fails closed: whatever the parser does, the statement is unreadable
        return (_unparsable(text, f"the parser failed ({type(error).__name__})"),)
    if not nodes:
        return ()
    slices = _slices(text, nodes)
    return tuple(_read(node, slice_, also_pure) for node, slice_ in zip(nodes, slices, strict=True))


def _read(node: dict[str, Any], text: str, also_pure: frozenset[str]) -> Statement:
    maker = Maker(text, also_pure, HANDLERS)
    try:
        return maker.statement(node["stmt"])
    except RecursionError:
        return maker.unknown("the statement is nested too deeply to be read")
    except Exception as error:  # fails closed: a tree of another shape than known is an unknown statement
        return maker.unknown(f"the statement could not be read ({type(error).__name__})")


def _unparsable(text: str, error: str) -> Statement:
    return Statement(
        UNPARSABLE,
        "unknown",
        text,
        opaque=True,
        opaque_reason=error,
        literal_free=False,
        error=error,
        kinds=("unknown",),
    )


def _slices(text: str, nodes: list[dict[str, Any]]) -> list[str]:
    """The text of each statement. The parser counts bytes of UTF-8; length 0 means up to the end."""
    if text.isascii():
        return [
            text[start : start + length if length else None].strip()
            for start, length in ((node.get("stmt_location", 0), node.get("stmt_len", 0)) for node in nodes)
        ]
    data = text.encode()
    return [
        data[start : start + length if length else None].decode().strip()
        for start, length in ((node.get("stmt_location", 0), node.get("stmt_len", 0)) for node in nodes)
    ]


def _normal(text: str) -> str | None:
    """The text with parameters for its constants; None where it has no form that others can be told by."""
    if "-" in text and _UNSAFE_MINUS.search(text):
        return None
    try:
        normal: str = pgparse.normalize(text)
    except Exception:  # what cannot be normalised is read, and refused, by read_sql
        return None
    return normal


class _Template(NamedTuple):
    """A statement that serves every text of one normalised form: its own text is all but before and after."""

    before: int
    after: int
    statement: Statement


class SqlReader:
    """read_sql with a cache; call it. One event loop only."""

    def __init__(self, also_pure: Iterable[str] = ()) -> None:
        self._also_pure = frozenset(also_pure)
        self._texts: OrderedDict[str, tuple[Statement, ...]] = OrderedDict()
        self._characters = 0
        self._templates: OrderedDict[str, _Template] = OrderedDict()
        self._keys = count(1)

    def __call__(self, text: str) -> tuple[Statement, ...]:
        """Read a text into its statements; see read_sql."""
        found = self._texts.get(text)
        if found is not None:
            self._texts.move_to_end(text)
            return found
        if len(text) > CACHED_TEXT_LIMIT or "\0" in text:
            return self._numbered(read_sql(text, self._also_pure))
        normal = _normal(text)
        template = self._templates.get(normal) if normal is not None else None
        if normal is not None and template is not None:
            self._templates.move_to_end(normal)
            found = (_with_text(template.statement, text[template.before : len(text) - template.after]),)
        else:
            found = self._numbered(read_sql(text, self._also_pure))
            if normal is not None and len(found) == 1 and found[0].literal_free:
                self._keep_template(normal, text, found[0])
        self._keep_text(text, found)
        return found

    def _numbered(self, statements: tuple[Statement, ...]) -> tuple[Statement, ...]:
        return tuple(_with_text(statement, statement.text, next(self._keys)) for statement in statements)

    def _keep_text(self, text: str, statements: tuple[Statement, ...]) -> None:
        self._texts[text] = statements
        self._characters += len(text)
        while len(self._texts) > CACHED_TEXTS_LIMIT or self._characters > CACHED_CHARACTERS_LIMIT:
            oldest, _ = self._texts.popitem(last=False)
            self._characters -= len(oldest)

    def _keep_template(self, normal: str, text: str, statement: Statement) -> None:
        before = text.find(statement.text)
        if before != text.rfind(statement.text):
            return  # a comment quotes it: where it begins cannot be told by looking
        self._templates[normal] = _Template(before, len(text) - before - len(statement.text), statement)
        if len(self._templates) > CACHED_TEXTS_LIMIT:
            self._templates.popitem(last=False)


def _with_text(statement: Statement, text: str, key: int | None = None) -> Statement:
    """The same statement with another text; dataclasses.replace takes three times as long."""
    return Statement(
        statement.verb,
        statement.kind,
        text,
        statement.tables_read,
        statement.tables_written,
        statement.columns,
        statement.functions,
        statement.where,
        statement.outputs,
        statement.outputs_exact,
        statement.control,
        statement.name,
        statement.setting,
        statement.copy,
        statement.inner,
        statement.moves_data,
        statement.opaque,
        statement.opaque_reason,
        statement.limit,
        statement.literal_free,
        statement.key if key is None else key,
        statement.error,
        statement.more,
        statement.kinds,
        statement.columns_written,
        statement.moved,
    )
