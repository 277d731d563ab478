"""Tokens of BigQuery's SQL, by BigQuery's own lexical rules, which decide where a statement ends.

Comments do not nest; ``--`` and ``#`` end at a line feed or carriage return; strings are of one line or triple-quoted,
raw (r), bytes (b) or both; a name in backticks may hold dots. Outside of literals, comments and quoted names there is
ASCII only: BigQuery takes some other spaces too, so a text that has any is refused instead of read in one of two ways.

agrees() checks that another tokenizer (the parser's) saw the same: a difference is what an attacker looks for.

Left out: values of numbers; whether a word is reserved. Source: GoogleSQL for BigQuery, "Lexical structure and syntax";
bigquery note 12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

TokenKind = Literal["word", "quoted", "string", "number", "mark"]


class Unreadable(Exception):
    """The text is not BigQuery's SQL, or nothing that is read here; the text says why."""


class Token(NamedTuple):
    """A token. word: upper case of an unquoted word, the mark itself of a mark, "" of anything quoted or a number."""

    kind: TokenKind
    word: str
    text: str
    start: int
    end: int


_SKIPPED: Final = r"[ \t\r\n\f\v\b]+|--[^\r\n]*|#[^\r\n]*|/\*(?:[^*]|\*(?!/))*\*/"
_LINE: Final = r"(?:[^\\\r\n{q}]|\\(?:\r\n|[\s\S]))*"
_STRING: Final = (
    r"(?:[rR][bB]?|[bB][rR]?)?(?:"
    r"'''(?:[^\\']|\\[\s\S]|'(?!''))*'''"
    r'|"""(?:[^\\"]|\\[\s\S]|"(?!""))*"""' + f"|'{_LINE.format(q=chr(39))}'" + f'|"{_LINE.format(q=chr(34))}"' + r")"
)
_TOKEN: Final = re.compile(
    rf"(?P<skipped>{_SKIPPED})"
    rf"|(?P<string>{_STRING})"
    r"|(?P<quoted>`(?:[^\\`\r\n]|\\.)+`)"
    r"|(?P<number>(?:0[xX][0-9a-fA-F]+|[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?))"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<mark>\|>|\|\||<=|>=|<>|!=|=>|/(?!\*)|[-+*~&|^<>=!;:,.()\[\]{}@?$])"
)
_OPEN: Final = frozenset("([{")
_PAIRS: Final = {")": "(", "]": "[", "}": "{"}
_LEGACY: Final = re.compile(r"#\s*legacysql", re.IGNORECASE)
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"', "`": "`", "?": "?"}


def tokens_of(text: str, tokens_limit: int, depth_limit: int) -> list[Token]:
    """Read a text into tokens. Raises Unreadable."""
    found: list[Token] = []
    position = 0
    open_marks: list[str] = []
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(_strange(text, position))
        position = match.end()
        kind = match.lastgroup
        piece = match.group()
        if kind == "skipped":
            if piece[0] == "#" and _LEGACY.match(piece):
                raise Unreadable("legacy SQL is asked for (#legacySQL)")
            continue
        if kind == "mark":
            _nest(piece, open_marks, depth_limit)
        word = piece.upper() if kind == "word" else piece if kind == "mark" else ""
        found.append(Token(kind, word, piece, match.start(), position))  # type: ignore[arg-type]  # a named group
        if len(found) > tokens_limit:
            raise Unreadable(f"the text has more than {tokens_limit} tokens")
    if open_marks:
        raise Unreadable(f"a {open_marks[-1]!r} is never closed")
    return found


def _nest(mark: str, open_marks: list[str], depth_limit: int) -> None:
    if mark in _OPEN:
        open_marks.append(mark)
        if len(open_marks) > depth_limit:
            raise Unreadable(f"brackets are nested deeper than {depth_limit}")
    elif mark in _PAIRS and (not open_marks or open_marks.pop() != _PAIRS[mark]):
        raise Unreadable(f"a {mark!r} closes nothing")


def _strange(text: str, position: int) -> str:
    piece = text[position : position + 2]
    if piece == "/*":
        return "a comment is never closed"
    if piece[0] in "'\"`":
        return "a string or a quoted name is never closed"
    if not piece[0].isascii():
        return f"the character U+{ord(piece[0]):04X} is outside of any literal"
    return f"the character {piece[0]!r} is outside of any literal"


def agrees(tokens: Sequence[Token], others: Iterable[tuple[int, int]], offset: int = 0) -> bool:
    """Tell whether another tokenizer's tokens (start, end inclusive) are made of whole tokens of ours, all of them.

    It may join ours (``@@``, ``>>``, ``a-b``, numbers), but never split a literal or a quoted name, nor join one with
    others.
    """
    index = 0
    for start, end in others:
        if index >= len(tokens) or tokens[index].start - offset != start:
            return False
        first = index
        while index < len(tokens) and tokens[index].end - offset <= end + 1:
            index += 1
        if index == first or tokens[index - 1].end - offset != end + 1:
            return False
        if index - first > 1 and any(token.kind in ("string", "quoted") for token in tokens[first:index]):
            return False
    return index == len(tokens)


def string_value(token: Token) -> str | None:
    """Return what a string literal says; None where it has an escape that is not among the simple ones, or is bytes."""
    body = token.text
    prefix = body[: min(body.find(q) for q in "'\"" if q in body)].lower()
    body = body[len(prefix) :]
    width = 3 if body[:3] in ("'''", '"""') and len(body) >= 6 else 1
    body = body[width:-width]
    if "b" in prefix:
        return None
    if "r" in prefix or "\\" not in body:
        return body
    parts = body.split("\\")
    out = [parts[0]]
    index = 1
    while index < len(parts):
        part = parts[index]
        if not part:  # an escaped backslash: what follows it is plain
            out.append("\\")
            index += 1
            out.append(parts[index] if index < len(parts) else "")
        elif part[0] in _ESCAPES:
            out.append(_ESCAPES[part[0]] + part[1:])
        else:
            return None
        index += 1
    return "".join(out)


def name_value(token: Token) -> str:
    """Return the name that a word or a quoted name stands for. Raises Unreadable for one with an escape."""
    if token.kind != "quoted":
        return token.text
    if "\\" in token.text:
        raise Unreadable("a quoted name has an escape")
    return token.text[1:-1]
