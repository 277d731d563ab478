"""The words of a POSIX shell: quotes, escapes and expansions, read character by character. Sans-IO.

How: a Cursor walks the text once. Everything that is quoted or escaped becomes plain text; whatever the shell puts in
only when it runs (``$x``, ``$(..)``, ``*``, ``{a,b}``) makes the word one of unknown text. The commands inside of
substitutions are read by the grammar (shell_grammar.py), which extends this class.

There are many shells, and the gateway is not told which one reads the line. What sh, bash, dash, ksh, zsh and busybox
read in the same way is read here; what they do not raises Unreadable, or is noted as a doubt: both make the whole
line opaque. So what is not known here is never taken for harmless.

Left out: csh, and most of what only fish reads otherwise. Specification: POSIX.1-2024 XCU 2.2, 2.6; bash 5.2 3.1.2.4,
3.5; zsh 5.9 (zshexpn) where it differs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from proxy.policy.shell_names import sets_safely

# Substitutions inside of substitutions, shells started by shells: nobody writes more than four or five.
DEPTH_LIMIT: Final = 24
# Commands of one line. A line of 128 KiB of real work has a few hundred.
COMMANDS_LIMIT: Final = 2_000

_BARE: Final = re.compile(r"[A-Za-z0-9_./:%@+,-]+")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PARAMETER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-]")
_ASSIGNED: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\[[0-9]+\])?\+?\Z")
# Numbers only: bash runs the substitutions in the subscripts that a variable's *text* holds (x='a[$(rm)]'; $((x))).
_ARITHMETIC: Final = re.compile(r"\$\(\(([0-9\s+*/%()<>&|^~!?:=-]*)\)\)")
_SUBSTRING: Final = re.compile(r":\s*(?:-?[0-9]+|\(-[0-9]+\))(?::-?[0-9]+)?\}")
_OPERATOR: Final = re.compile(r":?[-+?=]|##?|%%?|//?|\^\^?|,,?")
_ESCAPES: Final = {
    "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", "'": "'", '"': '"', "?": "?",
}  # fmt: skip
_NUMBERED: Final = re.compile(r"x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{1,4})|U([0-9A-Fa-f]{1,8})|([0-7]{1,3})")

BLANKS: Final = " \t"
ENDS: Final = frozenset(" \t\n;&|<>()")  # what ends a word, unquoted


class Unreadable(Exception):
    """The text is not what these shells read alike. why is a short English phrase."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Word:
    """One word. text is None where it is known only when it runs.

    plain: nothing in it is quoted, escaped or expanded. splits: it may become several words, or none. assigns: the
    variable that it sets where it stands before the program; value: the text behind the equals sign, if known.
    """

    text: str | None
    plain: bool = True
    splits: bool = False
    assigns: str | None = None
    value: str | None = None


@dataclass(slots=True)
class Simple:
    """A simple command as the grammar finds it: its words, and whether its input comes from the text itself."""

    words: list[Word]


@dataclass(slots=True)
class Findings:
    """What has been found in one line so far, shared by all cursors on it and on the texts inside of it."""

    commands: list[Simple] = field(default_factory=list)
    why: str = ""
    reads: dict[str, None] = field(default_factory=dict)
    writes: dict[str, None] = field(default_factory=dict)

    def doubt(self, why: str) -> None:
        """Note why the line is opaque; the first reason is kept."""
        self.why = self.why or why

    def add(self, command: Simple) -> None:
        """Note a simple command. Raises Unreadable beyond COMMANDS_LIMIT."""
        if len(self.commands) >= COMMANDS_LIMIT:
            raise Unreadable(f"it has more than {COMMANDS_LIMIT} commands")
        self.commands.append(command)


class Cursor:
    """A place in a text, and the reading of words from there on."""

    def __init__(self, text: str, found: Findings, depth: int = 0) -> None:
        if depth > DEPTH_LIMIT:
            raise Unreadable("commands are nested too deeply")
        self.text = text
        self.place = 0
        self.found = found
        self.depth = depth

    def substitution(self) -> None:
        """Read the commands up to the closing parenthesis, and it: the grammar's part."""
        raise NotImplementedError

    def inner(self, text: str) -> None:
        """Read a whole text of commands of its own: the grammar's part."""
        raise NotImplementedError

    def peek(self) -> str:
        """The next character, '' at the end; a backslash before a line's end vanishes, with the line's end."""
        while self.text.startswith("\\\n", self.place):
            self.place += 2
        return self.text[self.place : self.place + 1]

    def word(self) -> Word | None:
        """Read one word, None where there is none. Raises Unreadable."""
        begin = self.place
        parts = _Parts()
        while True:
            char = self.peek()
            if char in "<>" and char and self.text[self.place + 1 : self.place + 2] == "(":
                self.place += 2
                self.substitution()
                parts.unknown(splits=False)
                continue
            if not char or char in ENDS:
                break
            self._piece(char, parts)
        return None if self.place == begin or not parts.begun else parts.word()

    def _piece(self, char: str, parts: _Parts) -> None:
        bare = _BARE.match(self.text, self.place)
        if bare is not None:
            self.place = bare.end()
            parts.bare(bare[0])
        elif char == "'":
            parts.quoted(self._single())
        elif char == '"':
            self.place += 1
            parts.quoted("")
            self._double(parts)
        elif char == "\\":
            escaped = self.text[self.place + 1 : self.place + 2]
            if not escaped:
                raise Unreadable("it ends in a backslash")
            self.place += 2
            parts.quoted(escaped)
        elif char == "$":
            self._dollar(parts, quoted=False)
        elif char == "`":
            self._backquoted(quoted=False)
            parts.unknown(splits=True)
        else:
            self._history(char)
            self.place += 1
            parts.bare(char)

    def _single(self) -> str:
        end = self.text.find("'", self.place + 1)
        if end < 0:
            raise Unreadable("a quote is not closed")
        text = self.text[self.place + 1 : end]
        if (len(text) - len(text.rstrip("\\"))) % 2:
            self.found.doubt("a backslash before a closing quote: shells differ about it")  # fish goes on
        self.place = end + 1
        return text

    def _double(self, parts: _Parts) -> None:
        """Read what stands between double quotes, and the closing one."""
        while True:
            char = self.peek()
            self.place += 1
            if not char:
                raise Unreadable("a quote is not closed")
            if char == '"':
                return
            if char == "\\":
                escaped = self.text[self.place : self.place + 1]
                self.place += 1
                parts.quoted(escaped if escaped and escaped in '$`"\\' else "\\" + escaped)
            elif char == "$":
                self.place -= 1
                self._dollar(parts, quoted=True)
            elif char == "`":
                self.place -= 1
                self._backquoted(quoted=True)
                parts.unknown(splits=False)
            else:
                self.place -= 1
                self._history(char)
                self.place += 1
                parts.quoted(char)

    def _history(self, char: str) -> None:
        """An interactive bash or zsh puts in an earlier line for an unquoted '!'; not before a blank or '='."""
        if char == "!" and self.text[self.place + 1 : self.place + 2] not in ("", " ", "\t", "\n", "=", '"', ")", ";"):
            self.found.doubt("an exclamation mark, which a shell may replace by an earlier line")

    # -- expansions -------------------------------------------------------------------------------------

    def _dollar(self, parts: _Parts, quoted: bool) -> None:
        begin = self.place
        self.place += 1
        char = self.peek()
        if char == "(":
            self._parenthesis(begin)
            parts.unknown(splits=not quoted)
        elif char == "{":
            self.place += 1
            parts.unknown(splits=self._braces(quoted) or not quoted)
        elif char == "[":
            raise Unreadable("arithmetic in brackets, which not every shell knows")
        elif char == "'" and not quoted:
            self.place += 1
            parts.quoted(self._escaped())
        elif char == '"' and not quoted:
            raise Unreadable("a text that is translated")
        else:
            named = _NAME.match(self.text, self.place)
            if named is not None:
                self.place = named.end()
                parts.unknown(splits=not quoted)
            elif char and char in "0123456789@*#?$!-":
                self.place += 1
                parts.unknown(splits=char == "@" or not quoted)
            elif quoted or not char or char in ENDS:
                parts.quoted("$")
            else:
                parts.unknown(splits=True)  # zsh knows $=x, $~x, $^x

    def _parenthesis(self, begin: int) -> None:
        if self.text.startswith("((", self.place):
            numbers = _ARITHMETIC.match(self.text, begin)
            if numbers is None or numbers[1].count("(") != numbers[1].count(")"):
                raise Unreadable("arithmetic with more than numbers in it")
            self.place = numbers.end()
            return
        self.place += 1
        self.substitution()

    def _braces(self, quoted: bool) -> bool:
        """Read a parameter in braces; return whether it is several words even in quotes."""
        start = self.place
        length = self.text.startswith("#", start) and not self.text.startswith("#}", start)
        named = _PARAMETER.match(self.text, start + 1 if length else start)
        if named is None:
            raise Unreadable("an expansion that not every shell knows")
        name, self.place = named[0], named.end()
        subscript = re.compile(r"\[([0-9]+|[@*])\]").match(self.text, self.place)
        if subscript is not None:
            self.place = subscript.end()
        many = name == "@" or (subscript is not None and subscript[1] == "@")
        if self.text.startswith("}", self.place):
            self.place += 1
            return many
        substring = _SUBSTRING.match(self.text, self.place)
        if substring is not None and not length:
            self.place = substring.end()
            return many
        operator = _OPERATOR.match(self.text, self.place)
        if operator is None or length:
            raise Unreadable("an expansion that not every shell knows")
        self.place = operator.end()
        if operator[0].endswith("=") and not sets_safely(name):
            self.found.doubt(f"it sets {name}, which may change what programs do")
        self._operand(quoted)
        return many

    def _operand(self, quoted: bool) -> None:
        """Read the word behind an operator, up to the closing brace, and it."""
        parts = _Parts()
        while True:
            char = self.peek()
            if not char:
                raise Unreadable("a brace is not closed")
            if char == "}":
                self.place += 1
                break
            if char == "{" or (char == "'" and quoted):
                raise Unreadable("quotes or braces within an expansion, which shells read differently")
            self._piece(char, parts)
        if parts.known and runs_later(parts.text):
            self.found.doubt("a text that a shell may run later")

    def _backquoted(self, quoted: bool) -> None:
        """Read a command in backquotes. Source: POSIX 2.6.3, bash 3.5.4."""
        found: list[str] = []
        place = self.place + 1
        while True:
            char = self.text[place : place + 1]
            if not char:
                raise Unreadable("a backquote is not closed")
            if char == "`":
                break
            if char == '"' and quoted:
                raise Unreadable("quotes within backquotes within quotes, which shells read differently")
            if char == "\\":
                following = self.text[place + 1 : place + 2]
                drops = following and following in ('$`\\"' if quoted else "$`\\")
                found.append(following if drops else char + following)
                place += 2
            else:
                found.append(char)
                place += 1
        self.place = place + 1
        self.inner("".join(found))

    def _escaped(self) -> str:
        """Read the rest of $'...'. Source: bash 3.1.2.4; dash knows it not, and takes the dollar for itself."""
        found: list[str] = []
        while True:
            char = self.text[self.place : self.place + 1]
            self.place += 1
            if not char:
                raise Unreadable("a quote is not closed")
            if char == "'":
                return "".join(found)
            if char != "\\":
                found.append(char)
                continue
            char = self.text[self.place : self.place + 1]
            numbered = _NUMBERED.match(self.text, self.place)
            if char == "'":
                raise Unreadable("an escaped quote, which shells read differently")
            if numbered is not None:
                self.place = numbered.end()
                code = next(int(digits, base) for digits, base in zip(numbered.groups(), (16, 16, 16, 8), strict=True)
                            if digits)  # fmt: skip
                if code == 0 or code > 0x10FFFF or (code > 0x7F and numbered[0][0] not in "uU"):
                    raise Unreadable("a byte that is no character")
                found.append(chr(code))
            elif char and char in _ESCAPES:
                self.place += 1
                found.append(_ESCAPES[char])
            else:
                raise Unreadable("an escape that not every shell knows")

    def expansions(self) -> None:
        """Read a here-document's body: expansions count, quotes do not. Source: POSIX 2.7.4."""
        parts = _Parts()
        while self.place < len(self.text):
            char = self.text[self.place]
            if char == "\\":
                self.place += 2
            elif char == "$":
                self._dollar(parts, quoted=True)
            elif char == "`":
                self._backquoted(quoted=True)
            else:
                following = re.compile(r"[\\$`]").search(self.text, self.place)
                self.place = following.start() if following else len(self.text)


def _expands(bare: str) -> bool:
    """Tell whether the unquoted part of a word may be a pattern of file names, or several words in braces."""
    if "*" in bare or "?" in bare or -1 < bare.find("[") < bare.rfind("]"):
        return True
    begin, end = bare.find("{"), bare.rfind("}")
    return -1 < begin < end and ("," in bare[begin:end] or ".." in bare[begin:end])


def runs_later(text: str) -> bool:
    """Tell whether a quoted text holds a substitution: some builtins and arithmetic run it when it is used."""
    return "$(" in text or "`" in text or "${" in text


class _Parts:
    """The pieces of a word that is being read."""

    __slots__ = ("_bare", "_equals", "_texts", "begun", "known", "plain", "splits")

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._bare: list[str] = []  # the same, with what is quoted or unknown as NUL
        self._equals: tuple[str, int] | None = None
        self.begun = False
        self.known = True
        self.plain = True
        self.splits = False

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def bare(self, text: str) -> None:
        if text == "=" and self._equals is None and self.plain:
            found = _ASSIGNED.match("".join(self._bare))
            if found is not None:
                self._equals = (found[1], len(self._texts) + 1)
            else:
                self._equals = ("", 0)  # a later equals sign makes no assignment either
        self.begun = True
        self._texts.append(text)
        self._bare.append(text)

    def quoted(self, text: str) -> None:
        self.begun, self.plain = True, False
        self._texts.append(text)
        self._bare.append("\0")

    def unknown(self, splits: bool) -> None:
        self.begun, self.plain, self.known = True, False, False
        self.splits = self.splits or splits
        self._bare.append("\0")
        self._texts.append("")

    def word(self) -> Word:
        name, begin = self._equals or ("", 0)
        value = "".join(self._texts[begin:]) if name and self.known else None
        bare = "".join(self._bare)
        # A word may be a file's name pattern, or several words: known only when it runs.
        if _expands(bare):
            return Word(None, False, True, name or None, value)
        text = self.text if self.known else None
        return Word(text, self.plain, self.splits, name or None, value)
