"""What a command line of a shell says, as far as it can be told without running it. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Where a name without a path is looked for on any system: a program there may be called by its name alone.
SYSTEM_FOLDERS: Final = frozenset(
    ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/homebrew/bin", "/snap/bin")
)


@dataclass(frozen=True, slots=True)
class Invocation:
    """One simple command of a line: its words without quotes, the program first; None = known only when it runs."""

    words: tuple[str | None, ...]

    @property
    def program(self) -> str | None:
        """The program's name as written."""
        return self.words[0] if self.words else None


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
            folder, slash, name = program.rpartition("/")
            if slash and folder not in SYSTEM_FOLDERS:
                found[program] = None
            found[name or program] = None
        return tuple(found)
