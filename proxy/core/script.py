"""What a command line of a shell says, as far as it can be told without running it. Pure values."""

from __future__ import annotations

from dataclasses import dataclass


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
