"""What SFTP and scp have in common: their verbs, the record of one file's transfer, the steps of a Content.

A Transfer counts and hashes what passes of one file, in either direction. The SHA-256 is given only if the bytes came
as one sequence from the file's first byte on; pieces that overtake others (pipelined reads answered in any order) wait
in a reorder buffer that all transfers of a channel share. What was written twice, or not from the start, has no hash,
but its size and its ranges.

What is read twice keeps the hash if the second reading is seen to be the same as the first, by a second hash that
follows the first one. paramiko reads so by accident: when its prefetching thread falls behind, it asks for the rest of
the file in small reads, and the thread goes on all the same. The same is shown only where the second reading begins
at one of the last borders of the first (or at the start of the file), and ends at one or catches up with it.

Left out: the hash of a file that is changed in its middle: only its target could tell; and of one that is read twice
in any other way.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from proxy.core.errors import Refused
from proxy.core.events import Kind, Result
from proxy.core.text import harmless
from proxy.terminal.content import Settings, Step, ToTarget, ToUser

REORDER_BYTES_LIMIT: Final = 8 * 1024 * 1024  # 64 requests of 128 KiB, more than clients keep under way: ours
REORDER_PIECES_LIMIT: Final = 1024  # 8 MiB in messages of 8 KiB; bounds the cost of small ones: ours
MARKS_LIMIT: Final = 128  # of a file: 1 MiB of paramiko's small reads, 4 MiB of its large ones: ours
CHANNEL_MARKS_LIMIT: Final = 4096  # of all files of a channel: 32 at full length, about 1.3 MB (measured): ours
RANGES_LIMIT: Final = 256  # ranges of a file that are kept apart: ours
RANGES_SHOWN: Final = 32  # of these on the tape: ours
NOTES_LIMIT: Final = 4096  # bytes on stderr in all: a client that does not read it has its window eaten by them: ours

_ODD: Final = re.compile(r"""[\s'"\\(),>]""")

FILE_VERBS: Final[Mapping[str, Kind]] = {
    "file-read": "read",
    "file-write": "write",
    "file-list": "read",
    "file-stat": "read",
    "file-readlink": "read",
    "file-remove": "delete",
    "file-rmdir": "delete",
    "file-rename": "write",
    "file-mkdir": "write",
    "file-setstat": "write",
    "file-link": "write",
    "file-copy": "write",
    "file-statvfs": "read",
}


@dataclass(slots=True)
class Reorder:
    """What is left of a channel's reorder buffer, and of the marks of what was read."""

    left_bytes: int = REORDER_BYTES_LIMIT
    left_pieces: int = REORDER_PIECES_LIMIT
    left_marks: int = CHANNEL_MARKS_LIMIT


class Course:
    """The bytes of one file in one direction, as they pass. repeats: what passes twice may be the same (it is read)."""

    __slots__ = (
        "_again", "_again_next", "_hash", "_marks", "_reorder", "_repeats", "_run", "_runs", "_same", "_waiting",
        "next", "total",
    )  # fmt: skip

    def __init__(self, reorder: Reorder, repeats: bool = False) -> None:
        self.total = 0
        self.next = 0  # where the sequence from the first byte on has come to
        self._hash = hashlib.sha256()
        self._reorder: Reorder | None = reorder  # None: the hash is lost
        self._waiting: dict[int, bytes] = {}
        self._repeats = repeats
        self._marks: dict[int, hashlib._Hash] = {}  # the hash as it was at these offsets, oldest first
        self._again: hashlib._Hash | None = None  # of the file up to _again_next, as it was read the second time
        self._again_next = 0
        self._same = True  # all that came twice was the same
        self._run = [0, 0]
        self._runs: list[list[int]] | None = []  # besides the last; None: too many to tell

    def add(self, offset: int, data: memoryview) -> None:
        """Take the bytes at this offset of the file."""
        size = len(data)
        self.total += size
        if self._reorder is not None and size and not self._take(offset, data):
            self.lose()
        if offset == self._run[1]:
            self._run[1] += size
        else:
            self._begin_run(offset, offset + size)

    def lose(self) -> None:
        """What passes is no longer, or never was, the file from its start: there will be no hash."""
        if self._reorder is None:
            return
        for piece in self._waiting.values():
            self._give_back(piece)
        self._waiting.clear()
        self._reorder.left_marks += len(self._marks)
        self._marks.clear()
        self._again = None
        self._reorder = None

    def end(self) -> str | None:
        """No more will come: return the SHA-256 in hex of the file from its start, None if it had none."""
        if self._waiting or not self._same:
            self.lose()  # a piece is missing before these; or nobody knows what was read twice
        return self._hash.hexdigest() if self._reorder is not None else None

    @property
    def ranges(self) -> list[list[int]] | None:
        """What passed, as [start, end) in order; None if these were too many."""
        if self._runs is None:
            return None
        return [run for run in _merged([*self._runs, self._run]) if run[0] < run[1]]

    def _take(self, offset: int, data: memoryview) -> bool:
        """Hash the bytes now or later; False if that cannot be."""
        if offset < self.next:
            return self._repeats and self._repeat(offset, data)
        if offset > self.next:
            return self._keep(offset, data)
        self._advance(data)
        return not self._waiting or self._catch_up()

    def _advance(self, data: memoryview | bytes) -> None:
        if self._repeats:
            self._mark()
        self._hash.update(data)
        self.next += len(data)

    def _mark(self) -> None:
        """Remember the hash as it is here, in place of the oldest where there are too many."""
        reorder = self._reorder
        assert reorder is not None
        if self._marks and (len(self._marks) >= MARKS_LIMIT or not reorder.left_marks):
            del self._marks[next(iter(self._marks))]
            reorder.left_marks += 1
        if reorder.left_marks:
            self._marks[self.next] = self._hash.copy()
            reorder.left_marks -= 1

    def _repeat(self, offset: int, data: memoryview) -> bool:
        """Hash what came before already, beside the first time; False if it differs, or cannot be compared."""
        if self._again is None or offset != self._again_next:
            begin = hashlib.sha256() if offset == 0 else self._marks.get(offset)
            if begin is None or not self._same:
                return False
            self._again, self._again_next = begin.copy(), offset
        known = min(len(data), self.next - offset)
        self._again.update(data[:known])
        self._again_next += known
        ahead = self._again_next == self.next
        first = self._hash if ahead else self._marks.get(self._again_next)
        self._same = first is not None and first.digest() == self._again.digest()
        if first is not None and not self._same:
            return False
        if not ahead:
            return True
        self._again = None  # from here on there is one reading again
        return known == len(data) or self._take(self.next, data[known:])

    def _keep(self, offset: int, data: memoryview) -> bool:
        reorder = self._reorder
        assert reorder is not None
        if offset in self._waiting:
            return False
        if len(data) > reorder.left_bytes or not reorder.left_pieces:
            return False
        reorder.left_bytes -= len(data)
        reorder.left_pieces -= 1
        self._waiting[offset] = bytes(data)
        return True

    def _catch_up(self) -> bool:
        """Hash the pieces whose turn it is; False if something came twice."""
        while (piece := self._waiting.pop(self.next, None)) is not None:
            self._advance(piece)
            self._give_back(piece)
        return not self._waiting or min(self._waiting) > self.next

    def _give_back(self, piece: bytes) -> None:
        assert self._reorder is not None
        self._reorder.left_bytes += len(piece)
        self._reorder.left_pieces += 1

    def _begin_run(self, start: int, end: int) -> None:
        if self._runs is None:
            return
        self._runs.append(self._run)
        self._run = [start, end]
        if len(self._runs) >= RANGES_LIMIT:
            self._runs = _merged(self._runs)
            if len(self._runs) >= RANGES_LIMIT // 2:
                self._runs = None


def _merged(runs: list[list[int]]) -> list[list[int]]:
    merged: list[list[int]] = []
    for start, end in sorted(runs):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


class Transfer:
    """One open file: what was read from it and written to it.

    whole: what is written is all that the file will hold (it was emptied, made new, or cut there). appends: the target
    puts everything at the end, wherever the user says.
    """

    __slots__ = ("_ended_at", "_failed", "_flow", "_reorder", "_started", "path", "read", "size", "whole", "wrote")

    def __init__(self, path: str, flow: int, reorder: Reorder, started: float, whole: bool, appends: bool) -> None:
        self.path = path
        self.size: int | None = None  # as the target told it
        self.whole = whole
        self.read: Course | None = None
        self.wrote: Course | None = None
        self._flow = flow
        self._reorder = reorder
        self._started = started
        self._ended_at: int | None = None
        self._failed = 0  # bytes that the target did not take
        if appends:
            self.wrote = Course(reorder)
            self.wrote.lose()

    def took(self, offset: int, data: memoryview) -> None:
        """The user gets these bytes of the file."""
        if self.read is None:
            self.read = Course(self._reorder, repeats=True)
        self.read.add(offset, data)

    def gave(self, offset: int, data: memoryview) -> None:
        """The user sends these bytes for the file."""
        if self.wrote is None:
            self.wrote = Course(self._reorder)
        self.wrote.add(offset, data)

    def eof(self, offset: int) -> None:
        """The target says that the file ends at or before this offset."""
        self._ended_at = offset if self._ended_at is None else min(self._ended_at, offset)

    def cut(self, size: int) -> None:
        """The target has made the file this long (scp does so at its end): all of it is what was written, or is not."""
        self.whole = size == (self.wrote.next if self.wrote is not None else 0)

    def failed(self, size: int) -> None:
        """The target did not take so many bytes."""
        self._failed += size
        if self.wrote is not None:
            self.wrote.lose()

    def spoiled(self) -> None:
        """The side that gives the file says that these are not its bytes."""
        self.size = None
        for course in (self.read, self.wrote):
            if course is not None:
                course.lose()

    def result(self, verb: str, now: float, closed: bool, error: str = "") -> Result:
        """How it ended. closed: the target has closed the file and complains of nothing."""
        upload = self.wrote is not None or (verb == "file-write" and self.read is None)
        course = (self.wrote if upload else self.read) or Course(self._reorder)
        digest = course.end()
        size = course.total - (self._failed if upload else 0)
        if upload:
            complete = closed and digest is not None and self.whole and not self._failed
        else:
            ended = self._ended_at is not None and self._ended_at <= course.next
            complete = digest is not None and (ended or course.next == self.size)
        details: dict[str, object] = {
            "flow": self._flow,
            "path": self.path,
            "direction": "upload" if upload else "download",
            "size": size,
            "seconds": round(now - self._started, 6),
            "complete": complete,
            "in_order": digest is not None,
        }
        if digest is not None:
            details["sha256"] = digest
            if course.total > course.next:
                details["repeated"] = course.total - course.next  # bytes that came again, the same
        elif course.ranges is not None:
            details["ranges"] = course.ranges[:RANGES_SHOWN]
        if upload and self.read is not None:
            self.read.end()
            details["also_read"] = self.read.total
        if self._failed:
            details["failed"] = self._failed
        said = {"message": error} if error else None
        return Result(f"{verb} {self.path}", size_bytes=size, error=said, details=details)

    def drop(self) -> None:
        """Give the reorder buffer back what it holds of this file."""
        for course in (self.read, self.wrote):
            if course is not None:
                course.lose()


class NoTerminal:
    """What a Content of files does not need."""

    def resized(self, columns: int, rows: int) -> None:
        """There is no terminal here."""

    def tick(self, now: float) -> list[Step]:
        """Nothing here waits for a time."""
        return []


class Steps:
    """The steps of one call. What passes through untouched is joined as long as it lies together in the input.

    What passes to the user is a protocol's, so no mask looks at it.
    """

    __slots__ = ("_end", "_run", "_source", "_start", "_steps")

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._source = b""
        self._start = self._end = 0
        self._run: tuple[bool, bool] | None = None  # up, taped

    def up(self, source: bytes, start: int, end: int, taped: bool) -> None:
        """Bytes of the user that pass to the target."""
        self._pass((True, taped), source, start, end)

    def down(self, source: bytes, start: int, end: int, taped: bool) -> None:
        """Bytes of the target that pass to the user."""
        self._pass((False, taped), source, start, end)

    def add(self, step: Step) -> None:
        """Any other step."""
        self._flush()
        self._steps.append(step)

    def take(self) -> list[Step]:
        """Return all steps, and begin anew."""
        self._flush()
        steps, self._steps = self._steps, []
        return steps

    def _pass(self, run: tuple[bool, bool], source: bytes, start: int, end: int) -> None:
        if start == end:
            return
        if self._run == run and self._source is source and self._end == start:
            self._end = end
            return
        self._flush()
        self._run, self._source, self._start, self._end = run, source, start, end

    def _flush(self) -> None:
        if self._run is None:
            return
        up, taped = self._run
        source = self._source
        data = source if self._end - self._start == len(source) else source[self._start : self._end]
        self._steps.append(ToTarget(data, taped=taped) if up else ToUser(data, taped=taped, masked=False))
        self._run = None
        self._source = b""


class Notes:
    """Lines for the user on stderr, as long as they do no harm."""

    def __init__(self) -> None:
        self._left = NOTES_LIMIT

    def line(self, text: str) -> list[Step]:
        """Return the steps that show the line."""
        line = text if text.startswith("gatecast: ") else f"gatecast: {text}"
        data = f"{harmless(line)}\n".encode("utf-8", "replace")
        if len(data) > self._left:
            return []
        self._left -= len(data)
        return [ToUser(data, "err", by_gate=True, masked=False)]


def refusal(refused: Refused) -> str:
    """What a user is told of a refusal."""
    text = f'gatecast: denied by rule "{refused.deny.rule}": {refused.deny.reason}'
    return harmless(f"{text} (approval {refused.approval})" if refused.approval else text)


def shown(path: str) -> str:
    """A path for people to read: quoted where it would be read wrongly otherwise."""
    text = harmless(path)
    return shlex.quote(text) if not text or _ODD.search(text) else text


def is_recorded(settings: Settings, paths: tuple[str, ...]) -> bool:
    """Whether the content of this file belongs on the tape."""
    return any(fnmatchcase(path, glob) for glob in settings.record_contents for path in paths)
