"""The old scp protocol (``scp -O``): every file and directory that is copied is a Command, decided before it passes.

One side gives files, the other takes them and answers each line and each body with one byte: 0, or 1 and a text (this
one was skipped), or 2 and a text (the end). A file is a line ``C0644 SIZE NAME``, SIZE bytes and a 0; a directory
``D0755 0 NAME``, what is in it, and ``E``; ``T`` lines carry times. The gate lets one line pass at a time, and nothing
behind it before it is answered, whatever a side sends ahead: an answer that comes before its question would let a body
pass undecided.

Upload (the user gives, scp -t at the target takes): a C line is file-write, a D line file-mkdir; a refused one is
answered with 1 and the reason, and the user's scp goes on with the next. Whether the path of the command line is a
directory that files go into, or the file's own new name, only the target knows: both names are objects, but with -d or
a slash at its end. Download (scp -f gives, the user takes): file-read and file-list; a refused one is answered so
towards the target, which skips it, and the user is told with a 1 in its place. A name that is not of a path that was
asked for, or that would leave its directory, is refused (CVE-2019-6111), whoever sends it.

facts: path, paths, flags, via "scp", login, resolved False (scp_argv.py says why), opaque.

Specification: none; scp.c of OpenSSH (source, rsource, sink, response); ssh note 4 and 6.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

from protocols.ssh.scp_argv import ScpCall, read_scp
from protocols.ssh.transfers import FILE_VERBS, NoTerminal, Notes, Reorder, Steps, Transfer, is_recorded, refusal, shown
from proxy.core.errors import Refused
from proxy.core.events import Command, Result
from proxy.core.session import Permit
from proxy.terminal.content import Ask, Broken, Content, Done, Dropped, Settings, Step, ToTarget, ToUser

LINE_LIMIT: Final = 16 * 1024  # OpenSSH's sink reads lines into such a buffer (scp.c)
AHEAD_LIMIT: Final = 2 * 1024 * 1024  # what a side may send ahead of an answer: a window of OpenSSH
DEPTH_LIMIT: Final = 1024  # directories in one another; PATH_MAX allows 2,048 of one letter: ours
SIZE_DIGITS: Final = 19  # of 2^63 - 1, the largest off_t

_HEAD: Final = re.compile(rb"([CD])([0-7]{4}) ([0-9]{1,%d}) (.+)\n" % SIZE_DIGITS, re.DOTALL)
_TIMES: Final = re.compile(rb"T[0-9]{1,20} [0-9]{1,6} [0-9]{1,20} [0-9]{1,6}\n")


class _Wrong(Exception):
    """A side's bytes are no scp; the text says how."""


def scp_content(argv: str, settings: Settings) -> Content | None:
    """Return the Content of an exec of scp -t or -f, None if it is none."""
    call = read_scp(argv, settings.login)
    if call is None:
        return None
    return Upload(call, settings) if call.mode == "to" else Download(call, settings)


class _Inbox:
    """What one side has sent and nobody has looked at."""

    def __init__(self) -> None:
        self._sources: deque[bytes] = deque()
        self._at = 0
        self.size = 0

    def feed(self, data: bytes) -> None:
        if data:
            self._sources.append(data)
            self.size += len(data)

    def take(self, limit: int) -> tuple[bytes, int, int]:
        """Take up to limit bytes that lie together: where they are. There must be some."""
        source, at = self._sources[0], self._at
        end = min(len(source), at + limit)
        self._move(end)
        return source, at, end

    def answer(self) -> bytes | None:
        """Take a 0, or a line; None if it is not whole."""
        if self.size and self._sources[0][self._at] == 0:
            source, at, end = self.take(1)
            return source[at:end]
        return self.line()

    def line(self) -> bytes | None:
        """Take a line with its end; None if it is not whole."""
        found = -1
        seen = 0
        for index, source in enumerate(self._sources):
            start = self._at if index == 0 else 0
            found = source.find(b"\n", start)
            seen += (found + 1 if found >= 0 else len(source)) - start
            if found >= 0 or seen > LINE_LIMIT:
                break
        if seen > LINE_LIMIT:
            raise _Wrong("a line that is too long")
        if found < 0:
            return None
        line = bytearray()
        while len(line) < seen:
            source, at, end = self.take(seen - len(line))
            line += source[at:end]
        return bytes(line)

    def all(self) -> bytes:
        """Return all there is, without taking it."""
        return b"".join(self._sources)[self._at :]

    def skip(self, size: int) -> None:
        """Take up to size bytes, for nobody."""
        left = min(size, self.size)
        while left:
            _, start, end = self.take(left)
            left -= end - start

    def clear(self) -> None:
        self._sources.clear()
        self._at = self.size = 0

    def _move(self, to: int) -> None:
        self.size -= to - self._at
        if to == len(self._sources[0]):
            self._sources.popleft()
            self._at = 0
        else:
            self._at = to


@dataclass(slots=True)
class _Entry:
    """One line C or D: what it announces, under which names, and what became of it."""

    line: bytes
    directory: bool
    size: int
    names: tuple[str, ...]
    verb: str
    permit: Permit | None = None
    transfer: Transfer | None = None
    taped: bool = True
    error: str = ""


class _Scp(NoTerminal):
    """What both directions have in common: the giver's lines and bodies, the taker's answers."""

    upload: bool
    verbs: tuple[str, str]  # of a file, of a directory

    def __init__(self, call: ScpCall, settings: Settings) -> None:
        self._call = call
        self._settings = settings
        self._given = _Inbox()  # by the side that gives the files
        self._answers = _Inbox()  # by the other
        self._state: Literal["line", "body", "end", "broken"] = "line"
        self._left = 0  # of the body
        self._directories: list[tuple[str, ...]] = []
        self._entry: _Entry | None = None
        self._ask: Ask | None = None
        self._owed = 1  # answers that are to come: the taker begins with one
        self._reorder = Reorder()
        self._notes = Notes()
        self._steps = Steps()
        self._now = 0.0

    # -- Content --------------------------------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """How many bytes of the user wait here for something that the target, or the policy, has to say first."""
        if self._state == "broken":
            return 0
        if self.upload:
            return self._given.size if self._owed or self._ask is not None else 0
        return self._answers.size if not self._owed or self._ask is not None else 0

    def from_user(self, data: bytes, now: float) -> list[Step]:
        """Take data of the user."""
        return self._feed(self._given if self.upload else self._answers, data, now)

    def from_target(self, stream: Literal["out", "err"], data: bytes, now: float) -> list[Step]:
        """Take data of the target."""
        if stream == "err":
            return [ToUser(data, "err")]
        return self._feed(self._answers if self.upload else self._given, data, now)

    def allowed(self, ask: Ask, permit: Permit, now: float) -> list[Step]:
        """What the line announces may be copied. An upload's line is on its way; a download's is shown now."""
        entry = self._decided(ask, now)
        if entry is None:
            return []
        entry.permit = permit
        self._entry = entry
        self._owed += 1
        if not entry.directory:
            path = entry.names[0]
            entry.transfer = Transfer(path, self._settings.flow, self._reorder, now, whole=True, appends=False)
            entry.transfer.size = entry.size
            entry.taped = is_recorded(self._settings, entry.names)
        if not self.upload:
            self._pass(entry.line)
        return self._run()

    def refused(self, ask: Ask, refused: Refused, now: float) -> list[Step]:
        """It may not: the giver skips it."""
        entry = self._decided(ask, now)
        if entry is None:
            return []
        self._skip(f"{refusal(refused)}: {ask.command.text}")
        return self._run()

    def waiting(self, ask: Ask, text: str) -> list[Step]:
        """It is held for a human."""
        return self._notes.line(f"{text}: {ask.command.text}") if ask is self._ask else []

    def user_eof(self, now: float) -> list[Step]:
        """The user will send no more."""
        self._drop_rest()
        return self._steps.take()

    def target_eof(self, now: float) -> list[Step]:
        """The target will send no more: what it ended with may be an error of its shell."""
        rest = self._answers if self.upload else self._given
        if self._state == "line" and self._ask is None and (self.upload or not self._owed):
            self._steps.add(ToUser(rest.all()))  # text: a mask may look at it
        rest.clear()
        return self._steps.take()

    def ended(self, now: float) -> list[Step]:
        """The channel is closed: say how far the file came."""
        self._now = now
        self._steps.take()
        self._drop_rest()
        if self._entry is not None:
            self._finish("the channel was closed")
        self._state = "broken"
        return self._steps.take()

    # -- the conversation -----------------------------------------------------------------------------

    def _feed(self, inbox: _Inbox, data: bytes, now: float) -> list[Step]:
        if self._state == "broken":
            return [Dropped(data)] if inbox is self._of_user else []
        self._now = now
        inbox.feed(data)
        return self._run()

    @property
    def _of_user(self) -> _Inbox:
        return self._given if self.upload else self._answers

    def _drop_rest(self) -> None:
        """What the user has sent ahead goes nowhere; what of it is a file's content is not taped."""
        inbox = self._of_user
        entry = self._entry
        if self.upload and entry is not None and entry.permit is not None and not entry.taped:
            inbox.skip(self._left if self._state == "body" else entry.size if self._state == "line" else 0)
        self._steps.add(Dropped(inbox.all()))
        inbox.clear()

    def _run(self) -> list[Step]:
        """Let pass what may: answers that are owed, then what is given, as far as all before it is answered."""
        try:
            while self._ask is None and self._state != "broken" and (self._answered() or self._give()):
                pass
            if max(self._given.size, self._answers.size) > AHEAD_LIMIT:
                raise _Wrong("too much ahead of an answer")
        except _Wrong as wrong:
            self._drop_rest()
            self._state = "broken"
            self._given.clear()
            self._answers.clear()
            self._steps.add(Broken(f"gatecast: scp: {wrong}"))
        return self._steps.take()

    def _answered(self) -> bool:
        """Take one answer that is owed."""
        if not self._owed or not self._answers.size:
            return False
        answer = self._answers.answer()
        if answer is None:
            return False
        self._owed -= 1
        (self._steps.down if self.upload else self._steps.up)(answer, 0, len(answer), True)
        entry = self._entry
        if entry is None:
            return True
        error = "" if answer == b"\0" else answer.strip(b"\0\1\2\r\n").decode("utf-8", "backslashreplace")
        if answer != b"\0":
            self._finish(error or "refused")
        elif entry.directory:
            self._directories.append(entry.names)
            self._finish("")
        elif self._state == "line":
            self._state = "body" if entry.size else "end"
            self._left = entry.size
        else:  # the body was taken
            self._finish("")
        return True

    def _give(self) -> bool:
        """Take one line, or some of a body, of the side that gives."""
        if self._owed or not self._given.size:
            return False
        if self._state == "body":
            self._body()
            return True
        line = self._given.answer() if self._state == "end" else self._given.line()
        if line is None:
            return False
        if self._state == "end":
            self._body_ended(line)
        else:
            self._line(line)
        return True

    def _body(self) -> None:
        entry = self._entry
        assert entry is not None and entry.transfer is not None
        source, start, end = self._given.take(self._left)
        view = memoryview(source)[start:end]
        offset = entry.size - self._left
        if self.upload:
            entry.transfer.gave(offset, view)
            self._steps.up(source, start, end, entry.taped)
        else:
            entry.transfer.took(offset, view)
            self._steps.down(source, start, end, entry.taped)
        self._left -= end - start
        if not self._left:
            self._state = "end"

    def _body_ended(self, line: bytes) -> None:
        """Behind a body: 0, or why it is not what it should be."""
        entry = self._entry
        assert entry is not None and entry.transfer is not None
        if line[0] > 2:
            raise _Wrong("a body that is longer than its line said")
        if line != b"\0":
            entry.error = line.strip(b"\0\1\2\r\n").decode("utf-8", "backslashreplace") or "failed"
            entry.transfer.spoiled()
        self._owed += 1
        self._pass(line)

    def _line(self, line: bytes) -> None:
        if line[0] in (1, 2):  # an error of the giver: nobody answers it
            self._pass(line)
        elif line == b"E\n" and self._directories:
            self._directories.pop()
            self._owed += 1
            self._pass(line)
        elif _TIMES.fullmatch(line):
            self._owed += 1
            self._pass(line)
        else:
            self._announced(line)

    def _announced(self, line: bytes) -> None:
        match = _HEAD.fullmatch(line)
        if match is None:
            raise _Wrong("a line that nobody knows")
        kind, mode, size, raw = match.groups()
        directory = kind == b"D"
        if directory and len(self._directories) >= DEPTH_LIMIT:
            raise _Wrong("too many directories in one another")
        if b"/" in raw or b"\0" in raw or raw in (b".", b".."):
            self._unasked(line)
            self._skip("gatecast: unexpected filename")
            return
        names, opaque = self._names(raw.decode("utf-8", "backslashreplace"), directory)
        if not names:
            self._unasked(line)
            self._skip("gatecast: a file that was not asked for")
            return
        verb = self.verbs[directory]
        self._entry = _Entry(line, directory, int(size), names, verb)
        self._ask = Ask(self._command(self._entry, mode.decode(), opaque), line if self.upload else b"")
        self._steps.add(self._ask)

    def _unasked(self, line: bytes) -> None:
        """A line that is answered without a decision goes nowhere."""
        if self.upload:
            self._steps.add(Dropped(line))

    @abstractmethod
    def _names(self, name: str, directory: bool) -> tuple[tuple[str, ...], bool]:
        """What a file of this name may be at the target, and whether its path is opaque."""

    def _command(self, entry: _Entry, mode: str, opaque: bool) -> Command:
        text = f"{entry.verb} {shown(entry.names[0])}"
        if len(entry.names) > 1:
            text += f" (or {', '.join(shown(name) for name in entry.names[1:])})"
        if not entry.directory:
            text += f" ({entry.size} bytes)"
        facts: dict[str, object] = {
            "path": entry.names[0],
            "paths": entry.names,
            "via": "scp",
            "login": self._settings.login,
            "resolved": False,
            "mode": mode,
        }
        if not entry.directory:
            facts["flags"] = "write,create,truncate" if self.upload else "read"
        if opaque:
            facts["opaque"] = True
        kind = FILE_VERBS[entry.verb]
        return Command("ssh", entry.verb, kind, text, objects=entry.names, facts=facts, flow=self._settings.flow)

    def _decided(self, ask: Ask, now: float) -> _Entry | None:
        if ask is not self._ask or self._state == "broken":
            return None
        self._now = now
        entry, self._entry, self._ask = self._entry, None, None
        return entry

    def _pass(self, line: bytes) -> None:
        (self._steps.up if self.upload else self._steps.down)(line, 0, len(line), True)

    def _skip(self, text: str) -> None:
        """Answer the giver in the taker's place: this one is skipped. The user is told in either case."""
        answer = b"\1" + text.encode("utf-8", "replace") + b"\n"
        self._steps.add(ToUser(answer, by_gate=True, masked=False))
        if not self.upload:
            self._steps.add(ToTarget(answer, by_gate=True))

    def _finish(self, error: str) -> None:
        """What was announced has come to its end."""
        entry = self._entry
        assert entry is not None
        self._entry = None
        self._state = "line"
        error = error or entry.error
        if entry.permit is None:
            return
        if entry.transfer is not None:
            result = entry.transfer.result(entry.verb, self._now, not error, error)
            entry.transfer.drop()
        else:
            details = {"flow": self._settings.flow, "path": entry.names[0]}
            result = Result(error or "ok", details=details)
        self._steps.add(Done(entry.permit, result))


class Upload(_Scp):
    """scp -t: the user gives."""

    upload = True
    verbs = ("file-write", "file-mkdir")

    def _names(self, name: str, directory: bool) -> tuple[tuple[str, ...], bool]:
        path = self._call.paths[0]
        opaque = any(each.opaque for each in self._call.paths)
        if self._directories:
            return tuple(f"{each.rstrip('/')}/{name}" for each in self._directories[-1]), opaque
        inside = tuple(f"{each.rstrip('/')}/{name}" for each in path.names)
        if self._call.directory or path.text.endswith("/") or path.pattern is None:
            return inside, opaque
        return (*path.names, *inside), opaque


class Download(_Scp):
    """scp -f: the target gives."""

    upload = False
    verbs = ("file-read", "file-list")

    def _names(self, name: str, directory: bool) -> tuple[tuple[str, ...], bool]:
        paths = self._call.paths
        if self._directories:
            names = tuple(f"{each.rstrip('/')}/{name}" for each in self._directories[-1])
            return names, any(path.opaque for path in paths)
        names = ()
        opaque = False
        for path in paths:
            found = path.named(name)
            if found is not None:
                names += found
                opaque = opaque or path.opaque
        return tuple(dict.fromkeys(names)), opaque
