"""Finds what is to go to the vault: a walk over the directory of tapes that costs little when nothing has changed.

A day's folder is listed only when its mtime has changed since the last time (a new file changes it; what is written
into a file does not, so files that were not finished yet are asked one by one). A file is finished when nobody holds
its lock (recorder.disk.is_live: the writer lets go of it when the file is synced and the log has let go of it), it
ends in a trailer that leads to an index, and it has a seal. It is not touched before it has been left alone for a few
seconds: a writer creates a file and locks it in two steps, and our own look at the lock must not come between them.

Of the node log, full tiles and entry bundles that the checkpoint stands on are taken up, which never change (C2SP
tlog-tiles); partial ones and the checkpoint itself are not: anchors take the latter elsewhere. What a session was (for
retention) is read from its segments' clear parts.
Deliberately left out: whether a tape is genuine. A damaged one is evidence, too, and goes to the vault as it is.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from recorder.disk import is_live, open_regular
from recorder.errors import FormatError
from recorder.format import (
    BLOCK_HEADER_BYTES,
    HEADER_LIMIT,
    SUFFIX,
    TRAILER_BYTES,
    Header,
    decode_block_header,
    decode_header,
    decode_trailer,
)
from recorder.merkle import TILE_WIDTH
from recorder.reader import Segment
from recorder.retention import SessionFacts
from recorder.ulid import is_ulid
from recorder.vault_state import Item, State, VaultState

SETTLE_SECONDS: Final = 5.0  # ours: see the module; far above the microseconds between create and lock
BATCH_LIMIT: Final = 100  # ours: files of one transaction; others who write to vault.db wait as long
RACY_SECONDS: Final = 2.0  # a folder that changed this lately is listed again: mtimes have a granularity
KEYS_LIMIT: Final = 64 * 1024  # walformat.py's
LOG_FOLDER: Final = "log"
CHECKPOINT_LIMIT: Final = 4096  # the size is on its second line; the first has at most 255 bytes

_TAPE: Final = re.compile(r"([0-9A-Z]{26})(\.original)?\.([0-9]{3,9})" + re.escape(SUFFIX))
_KEYS: Final = re.compile(r"([0-9A-Z]{26})(\.original)?\.keys")
_TILE: Final = re.compile(r"x?[0-9]{3}")
_NUMBER: Final = re.compile(r"[0-9]{2,4}")

Labels = Callable[[str], Mapping[str, str] | None]


@dataclass(slots=True)
class Found:
    """What a scan did. noticed and sealed count files; remarks are for the log, one line each."""

    noticed: int = 0
    sealed: int = 0
    remarks: list[str] = field(default_factory=list)


class Scanner:
    """Remembers what it has listed. labels(target): the target's labels as configured now, None if unknown."""

    def __init__(
        self,
        directory: Path,
        state: VaultState,
        labels: Labels = lambda target: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.labels = labels
        self._state = state
        self._clock = clock
        self._listed: dict[str, int] = {}

    def scan(self) -> Found:
        """Take up new files, and those that are finished now. Raises VaultError, OSError of the directory itself."""
        found = Found()
        for folder in self._changed(self._days()):
            self._list_day(folder, found)
        for folder in self._changed(self._tile_folders()):
            self._list_tiles(folder, found)
        active = self._state.in_state(State.ACTIVE)
        for start in range(0, len(active), BATCH_LIMIT):
            with self._state.transaction():  # one flush for many: a backlog is taken up in seconds
                for item in active[start : start + BATCH_LIMIT]:
                    try:
                        self._examine(item, found)
                    except OSError as error:
                        found.remarks.append(f"{item.path}: {error.strerror}")
        return found

    # -- folders --------------------------------------------------------------------------------------

    def _days(self) -> Iterator[str]:
        for year in _numbered(self.directory):
            for month in _numbered(self.directory / year):
                for day in _numbered(self.directory / year / month):
                    yield f"{year}/{month}/{day}"

    def _tile_folders(self) -> Iterator[str]:
        root = self.directory / LOG_FOLDER
        for node in sorted(root.iterdir()) if root.is_dir() else ():
            for path, folders, _ in os.walk(node / "tile"):
                folders[:] = sorted(name for name in folders if not name.endswith(".p"))
                yield str(Path(path).relative_to(self.directory))

    def _changed(self, folders: Iterator[str]) -> Iterator[str]:
        """Yield the folders that changed since they were yielded last; they count as seen once they are at rest."""
        for folder in folders:
            try:
                mtime_ns = (self.directory / folder).stat().st_mtime_ns
            except OSError:
                continue  # removed meanwhile
            if self._listed.get(folder) == mtime_ns:
                continue
            yield folder
            if self._clock() - mtime_ns / 1e9 > RACY_SECONDS:
                self._listed[folder] = mtime_ns

    def _list_day(self, folder: str, found: Found) -> None:
        known = self._state.paths_under(folder)
        new = []
        for name in os.listdir(self.directory / folder):  # noqa: PTH208  # names are all that is needed
            path = f"{folder}/{name}"
            if path in known:
                continue
            if (tape := _TAPE.fullmatch(name)) and is_ulid(tape[1]):
                new.append(Item(path, "segment", tape[1], _track(tape[2]), int(tape[3]), State.ACTIVE))
            elif (keys := _KEYS.fullmatch(name)) and is_ulid(keys[1]):
                new.append(Item(path, "keys", keys[1], _track(keys[2]), 0, State.ACTIVE))
        self._take(new, found)

    def _list_tiles(self, folder: str, found: Found) -> None:
        known = self._state.paths_under(folder)
        new = []
        with os.scandir(self.directory / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}"
                if path not in known and _TILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    new.append(Item(path, "log", "", "", 0, State.ACTIVE))
        self._take(new, found)

    def _take(self, new: list[Item], found: Found) -> None:
        if new:
            self._state.notice(new)
            found.noticed += len(new)

    # -- files ----------------------------------------------------------------------------------------

    def _examine(self, item: Item, found: Found) -> None:
        path = self.directory / item.path
        try:
            said = path.stat()
        except FileNotFoundError:
            self._state.forget(item.path)
            found.remarks.append(f"{item.path}: removed before it was finished")
            return
        now = self._clock()
        if now - said.st_mtime < SETTLE_SECONDS:
            return
        match item.kind:
            case "segment":
                finished = not is_live(path) and self._learn(item, path)
            case "keys":
                finished = self._keys_are_whole(item, path)
            case _:
                finished = self._is_covered(item.path)
        if finished:
            self._state.move(item.path, "seal", size=said.st_size, sealed_at=now)
            found.sealed += 1

    def _learn(self, item: Item, path: Path) -> bool:
        """Tell whether a segment is finished; if it is, keep what it says of its session."""
        if not has_trailer(path):
            return False
        try:
            segment = Segment(path)
        except FormatError:
            return False
        if segment.seal is None or segment.header.sid != item.sid:
            return False
        facts = facts_of(segment)
        status = str(segment.seal.body.get("status", ""))
        final = status != "continued"
        self._state.note(item.path, ended=facts.ended, final=int(final))
        if item.track == "main":
            labels = self.labels(facts.target)
            known = SessionFacts(
                facts.sid,
                facts.protocol,
                facts.target,
                facts.subject,
                facts.started,
                facts.ended,
                labels,
                facts.verdicts,
            )
            self._state.learn(known, complete=final)
        return True

    def _keys_are_whole(self, item: Item, path: Path) -> bool:
        """Tell whether the .keys file is the one that its tape's header pins (format.py, Encryption)."""
        track = ".original" if item.track == "original" else ""
        header = read_header(path.with_name(f"{item.sid}{track}.000{SUFFIX}"))
        if header is None:
            return False
        enc = header.map_.get("enc")
        with open_regular(path) as file:
            data = file.read(KEYS_LIMIT + 1)
        return isinstance(enc, dict) and enc.get("wraps") == sha256(data).digest()

    def _is_covered(self, path: str) -> bool:
        """Tell whether a full tile is one that its log's checkpoint stands on (nodelog.py): only those never change."""
        _, node, _, level, *rest = path.split("/")
        index = int("".join(part.removeprefix("x") for part in rest))
        try:
            with open_regular(self.directory / LOG_FOLDER / node / "checkpoint") as file:
                size = int(file.read(CHECKPOINT_LIMIT).split(b"\n")[1])
        except (OSError, ValueError, IndexError):
            return False
        height = 1 if level == "entries" else int(level) + 1
        covered: int = (index + 1) * TILE_WIDTH**height
        return covered <= size


def has_trailer(path: Path) -> bool:
    """Tell whether a file ends in a trailer that points at a block of it. Raises OSError."""
    with open_regular(path, 0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            offset = decode_trailer(os.pread(file.fileno(), TRAILER_BYTES, max(0, size - TRAILER_BYTES)))
            if offset >= size:
                return False
            decode_block_header(os.pread(file.fileno(), BLOCK_HEADER_BYTES, offset), offset)
        except FormatError:
            return False
    return True


def read_header(path: Path) -> Header | None:
    """Return a segment's header, None if there is no (whole) one."""
    try:
        with open_regular(path) as file:
            return decode_header(file.read(HEADER_LIMIT + 32))
    except (OSError, FormatError):
        return None


def facts_of(segment: Segment) -> SessionFacts:
    """Return what one finished segment says of its session; a verdict that it does not have makes all unknown."""
    said = segment.header.map_
    identity = said.get("identity")
    subject = str(identity.get("subject", "")) if isinstance(identity, dict) else ""
    verdicts: frozenset[str] | None
    try:
        found = frozenset(entry.verdict for entry in segment.commands())
        body = segment.seal.body if segment.seal is not None else {}
        # A segment that was recovered has no list of its commands, and says so.
        verdicts = None if "" in found or body.get("commands") is None else found
    except FormatError:  # encrypted, or damaged
        verdicts = None
    wall0 = segment.header.wall0_ns / 1e9
    last = segment.seal.body.get("t_last") if segment.seal is not None else None
    ended = wall0 + (last / 1e9 if isinstance(last, int) else 0.0)
    protocol, target = str(said.get("protocol", "")), str(said.get("target", ""))
    return SessionFacts(segment.header.sid, protocol, target, subject, wall0, ended, None, verdicts)


def _numbered(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if _NUMBER.fullmatch(entry.name) and entry.is_dir())


def _track(found: str | None) -> str:
    return "original" if found else "main"
