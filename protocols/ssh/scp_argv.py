"""The command line of the old scp at a target: ``scp -t path`` takes files, ``scp -f path...`` gives them.

A shell of the target reads it, so it is read here as a POSIX shell reads words: quotes, backslashes, `~`, wildcards.
What only that shell can know (variables, substitutions, braces, a second command) makes the path opaque: what is
copied there is decided as something that nobody can read, and passes only by a rule that names its verb.

The protocol has no way to ask where a login's directory is or what a link points to. A path is made absolute and
shortened as text; one that counts from the login's directory has two names, in the usual place of that directory
(`/home/LOGIN`, `/root`) and as `~/path`, and both are objects.

Specification: none; scp.c of OpenSSH (tsource, sink, getopt), POSIX.1 XCU 2.2 and 2.6.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from dataclasses import dataclass
from typing import Final, Literal

# Options of scp as it is run at a target; -E (extended attributes) and the like belong to other scps.
FLAGS: Final = frozenset("rpdvq")
_BREAKS: Final = frozenset(";&|<>()$`\n{")
_WILDCARDS: Final = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Path:
    """A path of the command line. text: without quotes. pattern: of its last part. names: what it may stand for.

    opaque: only the target's shell knows what it stands for.
    """

    text: str
    names: tuple[str, ...]
    pattern: re.Pattern[str] | None
    opaque: bool

    def named(self, name: str) -> tuple[str, ...] | None:
        """What a file called name, that the target offers for this path, may be; None if it cannot be of this path."""
        if self.opaque:
            return tuple(_join(each, name) for each in self.names)
        if self.pattern is None:  # the login's directory, or the root: its name is not told by the path
            return self.names
        if not self.pattern.fullmatch(name):
            return None
        return tuple(_join(posixpath.dirname(each), name) for each in self.names)


@dataclass(frozen=True, slots=True)
class ScpCall:
    """A call of scp at the target. mode: "to" takes files of the user (-t), "from" gives files (-f)."""

    mode: Literal["to", "from"]
    paths: tuple[Path, ...]
    recursive: bool = False
    preserve: bool = False
    directory: bool = False  # -d: the path has to be a directory


@dataclass(frozen=True, slots=True)
class _Word:
    """A word: its characters, each with whether it was quoted."""

    chars: tuple[tuple[str, bool], ...]
    opaque: bool = False

    @property
    def text(self) -> str:
        return "".join(char for char, _ in self.chars)


def read_scp(argv: str, login: str) -> ScpCall | None:
    """Read a command line; None if it is not scp with -t or -f."""
    words = _words(argv)
    if not words or words[0].opaque or words[0].text.rpartition("/")[2] != "scp":
        return None
    flags: set[str] = set()
    rest = words[1:]
    while rest and not rest[0].opaque:
        text = rest[0].text
        if not text.startswith("-") or text == "-":
            break
        rest = rest[1:]
        if text == "--":
            break
        flags |= set(text[1:])
    if not rest or not flags <= FLAGS | {"t", "f"} or len(flags & {"t", "f"}) != 1:
        return None
    mode: Literal["to", "from"] = "to" if "t" in flags else "from"
    if mode == "to" and len(rest) != 1 and not rest[-1].opaque:
        return None  # scp itself refuses it
    paths = tuple(_path(word, login, mode) for word in rest)
    return ScpCall(mode, paths, "r" in flags, "p" in flags, "d" in flags)


def _words(argv: str) -> list[_Word]:
    """Split a line into words. From where only a shell knows more, the rest is one opaque word."""
    words: list[_Word] = []
    chars: list[tuple[str, bool]] = []
    begun = False
    start = at = 0
    while at < len(argv):
        char = argv[at]
        if char in " \t":
            if begun:
                words.append(_Word(tuple(chars)))
            chars, begun = [], False
            at += 1
            continue
        if not begun:
            start, begun = at, True
        quoted, at_next = _unit(argv, at)
        if quoted is None or (char == "#" and at == start):  # a comment
            rest = argv[start:].replace("'", "").replace('"', "")
            return [*words, _Word(tuple((each, True) for each in rest), opaque=True)]
        chars += quoted
        at = at_next
    return [*words, _Word(tuple(chars))] if begun else words


def _unit(argv: str, at: int) -> tuple[list[tuple[str, bool]] | None, int]:
    """Read one character or quoted string: its characters and where it ends; None where a shell is needed."""
    char = argv[at]
    if char == "'":
        end = argv.find("'", at + 1)
        return (None, at) if end < 0 else ([(each, True) for each in argv[at + 1 : end]], end + 1)
    if char == '"':
        return _double_quoted(argv, at + 1)
    if char == "\\":
        if at + 1 == len(argv) or argv[at + 1] == "\n":
            return None, at
        return [(argv[at + 1], True)], at + 2
    return (None, at) if char in _BREAKS else ([(char, False)], at + 1)


def _double_quoted(argv: str, at: int) -> tuple[list[tuple[str, bool]] | None, int]:
    chars: list[tuple[str, bool]] = []
    while at < len(argv) and argv[at] != '"':
        char = argv[at]
        if char in "$`":
            return None, at
        if char == "\\" and argv[at + 1 : at + 2] in ("$", "`", '"', "\\"):
            at += 1
            char = argv[at]
        chars.append((char, True))
        at += 1
    return (chars, at + 1) if at < len(argv) else (None, at)


def _path(word: _Word, login: str, mode: Literal["to", "from"]) -> Path:
    text = word.text
    last = list(word.chars)
    while len(last) > 1 and last[-1][0] == "/":
        last.pop()
    slash = max((index for index, (char, _) in enumerate(last) if char == "/"), default=-1)
    wild = [not quoted and char in _WILDCARDS for char, quoted in last]
    # Where files are put must be known; where they are taken from, their own names tell the last part.
    opaque = word.opaque or any(wild[: slash + 1]) or (mode == "to" and any(wild))
    tilde = bool(word.chars) and word.chars[0] == ("~", False)
    names = _names(text, tilde, login)
    tail = last[slash + 1 :]
    name = "".join(char for char, _ in tail)
    if name in ("", ".", "..") or (tilde and slash < 0):
        return Path(text, names, None, opaque)
    glob = "".join(f"[{char}]" if quoted and char in _WILDCARDS else char for char, quoted in tail)
    return Path(text, names, re.compile(fnmatch.translate(glob)), opaque)


def _names(text: str, tilde: bool, login: str) -> tuple[str, ...]:
    if text.startswith("/"):
        return (_absolute(text),)
    who, _, rest = text[1:].partition("/") if tilde else ("", "", text)
    user = who or login
    home = "/root" if user == "root" else f"/home/{user}"
    short = posixpath.normpath(rest or ".")
    guess = _absolute(posixpath.join(home, short))
    if short == ".." or short.startswith("../"):
        return (guess,)
    return (guess, f"~{who}" if short == "." else f"~{who}/{short}")


def _absolute(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def _join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"
