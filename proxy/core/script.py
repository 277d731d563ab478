"""What a command line of a shell says, as far as it can be told without running it. Pure values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# Where a name without a path is looked for on any system: a program there may be called by its name alone.
SYSTEM_FOLDERS: Final = frozenset(
    ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/homebrew/bin", "/snap/bin")
)

# Stands for a word that is known only when it runs; a word that is really that is in quotes.
UNKNOWN_WORD: Final = "<?>"
_CLEAR: Final = re.compile(r"[\w@%+=:,./~^#-]+")


@dataclass(frozen=True, slots=True)
class Invocation:
    """One simple command of a line: its words without quotes, the program first; None = known only when it runs."""

    words: tuple[str | None, ...]

    @property
    def program(self) -> str | None:
        """The program's name as written."""
        return self.words[0] if self.words else None

    @property
    def line(self) -> str:
        """The words in one line, as rules compare them: the program without a system's folder, words in quotes
        where they hold more than letters, digits and ``_@%+=:,./~^#-``, UNKNOWN_WORD for those that are not known.
        """
        first, rest = self.words[:1], self.words[1:]
        return " ".join(_shown(word) for word in (*map(_short, first), *rest))


@dataclass(frozen=True, slots=True)
class Script:
    """A command line that was read.

    invocations: every simple command that it may run, those in pipelines, lists, substitutions and control structures
    too, and those behind sudo, env, nohup, xargs, find -exec, sh -c and the like where they are literal. opaque:
    something of it is decided only when it runs (a program's name from a variable, eval, a script from a pipe), or it
    could not be read whole; why says what. reads and writes are the files of literal redirections.
    """

    invocations: tuple[Invocation, ...] = ()
    opaque: bool = False
    why: str = ""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of the programs, each once, in order, as written."""
        return tuple(dict.fromkeys(each.program for each in self.invocations if each.program is not None))

    @property
    def names(self) -> tuple[str, ...]:
        """The programs as rules name them, each once: without the folder where that is one of the system's.

        A program elsewhere (./ls, /tmp/ls) has two names, its path and its last part: who allows ls has not allowed
        that one, and who denies rm has denied it.
        """
        found: dict[str, None] = {}
        for program in self.programs:
            if "/" in (short := _short(program) or ""):
                found[program] = None
            found[program.rpartition("/")[2] or short] = None
        return tuple(found)

    @property
    def commands(self) -> tuple[str, ...]:
        """Each invocation in one line, in order."""
        return tuple(each.line for each in self.invocations)


def _short(program: str | None) -> str | None:
    """A program's name without its folder, where that is one of the system's."""
    folder, _, name = (program or "").rpartition("/")
    return name if folder in SYSTEM_FOLDERS and name else program


def _shown(word: str | None) -> str:
    if word is None:
        return UNKNOWN_WORD
    return word if _CLEAR.fullmatch(word) else "'" + word.replace("'", "'\\''") + "'"
