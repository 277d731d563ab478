"""What an SFTP channel remembers: files behind handles, requests on their way, real names of directories, sizes.

Specification: none; these are the gate's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from protocols.ssh import sftp_wire as wire
from protocols.ssh.sftp_commands import Place, real_name
from protocols.ssh.sftp_wire import HeadRule, Operation, Request
from protocols.ssh.transfers import Reorder, Transfer, is_recorded
from proxy.core.events import Result
from proxy.core.session import Permit
from proxy.terminal.content import Settings

PARENT_SECONDS: Final = 1.0  # how long a directory's real name is believed: ours
PARENTS_LIMIT: Final = 256  # directories whose real name is remembered: ours
SIZES_LIMIT: Final = 256  # files whose size is remembered from STAT to OPEN: ours

# What the gate asks of a place: the real name of its directory, its own, or whether there is something of its name.
Lookup = Literal["parent", "whole", "exists"]
# The gate's own request for it.
LOOKUP: Final = Operation(wire.REALPATH, "realpath of the gate", "p")


@dataclass(slots=True)
class File:
    """What a handle of the target stands for. names: the objects of the command that opened it."""

    verb: str
    names: tuple[str, ...]
    permit: Permit
    transfer: Transfer | None  # None: a directory
    taped: bool = True
    entries: int = 0  # of a directory, that were listed

    def result(self, flow: int, now: float, closed: bool, error: str) -> Result:
        """How it ended: it was closed, or lost with its channel."""
        if self.transfer is not None:
            result = self.transfer.result(self.verb, now, closed, error)
            self.transfer.drop()
            return result
        details: dict[str, object] = {"flow": flow, "path": self.names[0], "complete": closed}
        said = {"message": error} if error else None
        return Result(f"{self.verb} {self.names[0]}", row_count=self.entries, error=said, details=details)


@dataclass(slots=True)
class Job:
    """A request on its way to its decision, or allowed and on its way to its reply. names: as in command()."""

    request: Request
    data: bytes
    places: list[Place] = field(default_factory=list)
    names: list[list[str]] = field(default_factory=list)
    missing: int = 0  # answers to look-ups
    lost: int = 0  # the status of a path that cannot be resolved: then the request is answered so, and never sent

    def learn(self, what: Lookup, place: Place, answer: bytes | None, status: int) -> bool:
        """Take what the target says of a place (read_answer()); return whether to ask if there is anything at all."""
        if what == "parent":
            place.real_parent = answer
        elif what == "whole":
            place.real_whole = answer
        if answer is not None or place.loose or self.lost:
            return False
        if what == "whole" and place.parent is not None and status == wire.FX_NO_SUCH_FILE:
            return True  # what is not there leads nowhere
        if what != "exists" or status != wire.FX_NO_SUCH_FILE:
            self.lost = status or wire.FX_NO_SUCH_FILE
        return False


@dataclass(slots=True)
class Sent:
    """A request that the target has not answered yet."""

    operation: Operation
    permit: Permit | None = None
    file: File | None = None
    offset: int = 0
    size: int = 0
    job: Job | None = None
    lookup: tuple[Lookup, Place | None] | None = None  # of a LOOKUP: what it asks, for which place (None: home)


def read_answer(what: Lookup, code: int, fields: wire.Fields) -> tuple[bytes | None, int]:
    """Read the answer to a request of the gate: a real name, or None and the status (0: it is there).

    Raises Malformed.
    """
    if code == wire.STATUS:
        return None, fields.u32() or wire.FX_FAILURE
    if what == "exists" and code == wire.ATTRS:
        return None, wire.FX_OK
    if what == "exists" or code != wire.NAME or fields.u32() != 1:
        raise wire.Malformed("a wrong answer to a request of the gate")
    return real_name(fields.string()), wire.FX_FAILURE


class Known:
    """What the target has said of directories and files, as long as it is believed."""

    __slots__ = ("_parents", "_sizes")

    def __init__(self) -> None:
        self._parents: dict[bytes, tuple[bytes, float]] = {}
        self._sizes: dict[str, int] = {}

    def parent(self, path: bytes, now: float) -> bytes | None:
        """The real name of a directory, None if it has to be asked for."""
        known = self._parents.get(path)
        return known[0] if known is not None and now - known[1] <= PARENT_SECONDS else None

    def learn_parent(self, path: bytes, real: bytes, now: float) -> None:
        """The target has said it."""
        if len(self._parents) >= PARENTS_LIMIT:
            self._parents.clear()
        self._parents[path] = (real, now)

    def forget_parents(self) -> None:
        """Something moves."""
        self._parents.clear()

    def size(self, name: str) -> int | None:
        """The size of a file, if it was told."""
        return self._sizes.get(name)

    def learn_size(self, name: str, size: int) -> None:
        """The target has said it."""
        if len(self._sizes) >= SIZES_LIMIT:
            self._sizes.clear()
        self._sizes[name] = size


def opened(sent: Sent, settings: Settings, reorder: Reorder, known: Known, now: float) -> File:
    """Return what the handle stands for that an allowed OPEN or OPENDIR was answered with."""
    assert sent.job is not None and sent.permit is not None
    names = tuple(sent.job.names[0])
    file = File(sent.permit.command.verb, names, sent.permit, None)
    if sent.operation.code == wire.OPEN:
        flags = sent.job.request.numbers[0]
        whole = bool(flags & wire.FXF_TRUNC or (flags & wire.FXF_CREAT and flags & wire.FXF_EXCL))
        file.taped = is_recorded(settings, names)
        file.transfer = Transfer(names[0], settings.flow, reorder, now, whole, bool(flags & wire.FXF_APPEND))
        file.transfer.size = known.size(names[-1])
    return file


def cut(sent: Sent, files: Mapping[bytes, File], code: int) -> None:
    """Note that an allowed FSETSTAT has given an open file a size."""
    request = sent.job.request if sent.job is not None else None
    if request is None or sent.operation.code != wire.FSETSTAT or code != wire.FX_OK or request.attributes is None:
        return
    file, size = files.get(request.handles[0]), request.attributes.size
    if file is not None and file.transfer is not None and size is not None:
        file.transfer.cut(size)


def reply_head(asked: Mapping[int, Sent]) -> HeadRule:
    """Return the rule for the target's packets: what of each has to be whole; it depends on what was asked."""

    def head(buffer: bytes | bytearray, at: int, have: int, total: int) -> int:
        code = buffer[at + 4]
        if code == wire.DATA:
            return wire.COUNTED_BYTES
        if code in (wire.NAME, wire.EXTENDED_REPLY):
            sent = asked.get(wire.U32.unpack_from(buffer, at + 5)[0])
            if sent is not None and sent.operation.code == wire.READDIR:
                return wire.COUNTED_BYTES
            if sent is not None and sent.operation.name not in ("limits@openssh.com", LOOKUP.name):
                return wire.IDENTIFIED.size
        return 0

    return head
