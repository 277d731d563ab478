"""Anchors: a node's checkpoints in a second place, so that a log that was cut or rewritten does not pass.

About once a minute the latest checkpoint goes to a store that whoever holds the node's disk and key should not be
able to change: another host's directory, a bucket with a retention lock. verify --anchor then asks that each of them is
the beginning of the log.

    directory   <origin, percent-encoded>/<YYYY-MM-DD>.jsonl: one line {"time": RFC 3339, "checkpoint": the note} each,
                only ever appended to, synced
    bucket      objects named by object_name(), created, never replaced: the note itself (proxy has that store)

A store that fails or is slow stops nothing: tick() is for a maintenance thread. Each failure is told; the alarm goes
off when nothing got through for ten minutes, and is told again when it is over.
Left out: RFC 3161 time stamps. Source: recorder note, section 7, "Anchors".
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Protocol
from urllib.parse import quote

from recorder.checkpoint import NOTE_LIMIT, Checkpoint, decode_checkpoint
from recorder.disk import Disk, open_regular
from recorder.errors import FormatError

INTERVAL_SECONDS: Final = 60.0  # recorder note, section 7: a checkpoint a minute
ALARM_SECONDS: Final = 600.0  # recorder note, section 7: alarm after 10 min
LINES: Final = ".jsonl"
OBJECT: Final = ".checkpoint"
_LINE_LIMIT: Final = 2 * NOTE_LIMIT  # JSON escapes a note's newlines and dashes: less than twice its size

# "failed": this attempt did not work; "alarm": none did for ALARM_SECONDS; "recovered": one did after an alarm.
Event = Literal["failed", "alarm", "recovered"]
OnEvent = Callable[[Event, str], None]


class AnchorStore(Protocol):
    """A second place for checkpoints. put blocks, is called from one thread, and raises OSError if it failed."""

    def put(self, checkpoint: Checkpoint, wall_ns: int) -> None: ...


class Overdue:
    """Counts the time since something last worked, and tells of failures, the alarm and its end."""

    def __init__(self, what: str, on_event: OnEvent, monotonic: Callable[[], float], alarm_seconds: float) -> None:
        self._what, self._on_event, self._monotonic, self._alarm_seconds = what, on_event, monotonic, alarm_seconds
        self._since = monotonic()
        self._alarmed = False

    def worked(self) -> None:
        self._since = self._monotonic()
        if self._alarmed:
            self._alarmed = False
            self._on_event("recovered", f"{self._what} works again")

    def failed(self, reason: str) -> None:
        self._on_event("failed", f"{self._what}: {reason}")
        late = self._monotonic() - self._since
        if late >= self._alarm_seconds and not self._alarmed:
            self._alarmed = True
            self._on_event("alarm", f"{self._what}: nothing got through for {late / 60:.0f} minutes")


class Anchor:
    """Takes the latest checkpoint to a store, once every interval if there is a new one."""

    def __init__(
        self,
        latest: Callable[[], Checkpoint],
        store: AnchorStore,
        on_event: OnEvent,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        alarm_seconds: float = ALARM_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """latest: NodeLog.checkpoint, or what remembers the last append's result. on_event must not raise."""
        self._latest, self._store = latest, store
        self._interval_seconds, self._monotonic, self._wall_ns = interval_seconds, monotonic, wall_ns
        self._overdue = Overdue("the anchor", on_event, monotonic, alarm_seconds)
        self._next: float | None = None
        self._size = -1

    def tick(self) -> bool:
        """Anchor if it is time to. Blocks for as long as the store does; returns whether something was anchored."""
        now = self._monotonic()
        if self._next is not None and now < self._next:
            return False
        self._next = now + self._interval_seconds
        try:
            checkpoint = self._latest()
            new = checkpoint.size > self._size
            if new:
                self._store.put(checkpoint, self._wall_ns())
                self._size = checkpoint.size
        except Exception as error:  # whatever a store raises: it is told, tried again, and ends in the alarm
            self._overdue.failed(str(error) or type(error).__name__)
            return False
        self._overdue.worked()
        return new


class DirectoryStore:
    """Anchors in a directory: a file a day, appended to and synced."""

    def __init__(self, directory: Path, *, disk: Disk | None = None, nested: bool = True) -> None:
        """nested: one directory for each origin; else the files are right here (a log's own history)."""
        self._directory, self._disk, self._nested = directory, disk or Disk(), nested

    def put(self, checkpoint: Checkpoint, wall_ns: int) -> None:
        moment = _moment(wall_ns)
        folder = self._directory / folder_name(checkpoint.origin) if self._nested else self._directory
        path = folder / f"{moment[:10]}{LINES}"
        note = checkpoint.encode().decode()
        line = json.dumps({"time": moment, "checkpoint": note}).encode() + b"\n"
        changed = [*self._disk.make_directories(folder), folder]
        new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a crash tore the last line: it stays, and stays apart
            self._disk.write(descriptor, (line,))
            self._disk.sync(descriptor)
        finally:
            self._disk.close(descriptor)
        if new:
            for parent in changed:
                self._disk.sync_directory(parent)


def folder_name(origin: str) -> str:
    """The name of an origin's directory among the anchors."""
    name = quote(origin, safe="")
    return name if name not in (".", "..") else name.replace(".", "%2E")


def object_name(checkpoint: Checkpoint, wall_ns: int) -> str:
    """The name of the object that a checkpoint becomes in a bucket; to be created, never replaced."""
    root = checkpoint.root.hex()[:16]
    return f"{folder_name(checkpoint.origin)}/{_moment(wall_ns)[:10]}/{checkpoint.size:020d}-{root}{OBJECT}"


def read_anchored(path: Path) -> Iterator[tuple[str, str, Checkpoint | None]]:
    """Yield (place, time or "", checkpoint) of each one below a directory, or in a file. No signature is checked.

    The checkpoint is None for a line that is no JSON, as a crash tears one: the reader should be told of it. Raises
    FormatError for anything else that is no checkpoint, OSError.
    """
    files = sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.suffix == OBJECT or (file == path and file.suffix != LINES):
            with open_regular(file) as note:
                yield str(file), "", _decode(note.read(NOTE_LIMIT + 1), str(file))
        elif file.suffix == LINES:
            yield from _read_lines(file)


def _read_lines(path: Path) -> Iterator[tuple[str, str, Checkpoint | None]]:
    with open_regular(path) as file:
        number = 0
        while line := file.readline(_LINE_LIMIT):
            number += 1
            place = f"{path}:{number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                yield place, "", None
                continue
            if not isinstance(entry, dict) or not isinstance(entry.get("checkpoint"), str):
                raise FormatError(f"{place}: no checkpoint")
            yield place, str(entry.get("time", "")), _decode(entry["checkpoint"].encode(), place)


def _decode(raw: bytes, place: str) -> Checkpoint:
    try:
        return decode_checkpoint(raw)
    except FormatError as error:
        raise FormatError(f"{place}: {error.reason}") from error


def _moment(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
