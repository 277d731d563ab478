"""What verification finds, and what it asks the node's log: the values that its parts share (verify.py tells more)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

VERIFIED: Final = "verified"
ALTERED: Final = "altered"
INCOMPLETE: Final = "incomplete"
UNKNOWN: Final = "unknown"

WEIGHTS: Final = (VERIFIED, INCOMPLETE, UNKNOWN, ALTERED)  # the heaviest of all that was found is said of the whole

# How far the content of a tape was looked into, in the order of how little that is.
CHECKED: Final = "checked"
ENCRYPTED_CONTENT: Final = "encrypted"  # to keys that were not given
ERASED: Final = "erased"  # its .keys file is not here: it was destroyed, or not copied with the tape
CONTENT: Final = (CHECKED, ENCRYPTED_CONTENT, ERASED)


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong with a tape, and where."""

    status: str
    file: str
    offset: int
    block: int | None
    reason: str


@dataclass(slots=True)
class TapeReport:
    """What was found about one tape."""

    sid: str
    path: str
    status: str = VERIFIED
    fault: Fault | None = None
    segments: int = 0
    blocks: int = 0
    records: int = 0
    commands: int = 0
    size_bytes: int = 0
    ended: str = ""
    keys: list[str] = field(default_factory=list)
    root: str = ""  # of the last segment, hex
    track: str = "main"
    content: str = CHECKED  # or what kept us from it
    node: str = ""
    log: str = ""  # the origin of the log that its header names
    logged: bool = False  # a node's log saw it begin
    gone: bool = False  # the fault is that its beginning is not here; what is left is in order
    ended_at: float = 0.0  # by its last seal, seconds since the epoch


class Saw(Protocol):
    """A SEAL entry of the node's log."""

    @property
    def root(self) -> bytes: ...
    @property
    def status(self) -> str: ...
    @property
    def at(self) -> int: ...


class Said(Protocol):
    """What the node's log says of one tape; verify_log.py has it. Entries are told by their numbers."""

    @property
    def h0(self) -> bytes: ...
    @property
    def opened(self) -> int: ...

    def heads(self, segment: int) -> Iterator[tuple[int, bytes, int]]:
        """(block seq, chain value, entry) of the segment's HEADs, by seq."""

    def seal(self, segment: int) -> Saw | None: ...

    def last(self) -> tuple[int, int]:
        """(segment, entry) of the highest segment that the log knows, (-1, -1) if it saw the tape begin only."""

    def retired(self, signer: str, sealed: int) -> bool:
        """Tell whether the key could not sign any more, or not yet, between the OPEN and entry number sealed."""
