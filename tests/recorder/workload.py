"""A busy recorder on a CrashDisk, and the judgement of what recovery makes of a crash in the middle of it.

Expected keeps every record that was appended, and how many of each tape were acknowledged: by commit() (gating records
are on the disk; mode strict: all) and by written() (the kernel has them all: a kill loses none).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from recorder.cipher import AuditorKey, SegmentCipher, unlock
from recorder.disk import Disk
from recorder.errors import FormatError, TapeError
from recorder.format import (
    BLOCK_HEADER_BYTES,
    CHAIN_BYTES,
    ENCRYPTED,
    HEADER_LIMIT,
    SUFFIX,
    BlockType,
    decode_block_header,
    decode_header,
    decode_records,
    restore,
)
from recorder.reader import TapeReader
from recorder.recover import Recovered, recover, sweep
from recorder.tape import GATE, GATING, OUT, USER, Kind, Recorder, Tape
from recorder.verify import verify
from recorder.verify_tape import INCOMPLETE, VERIFIED
from tests.recorder.crashes import CrashDisk
from tests.recorder.tapes import KEY, pack

FAR_FUTURE_NS = 1 << 62
MODES: tuple[Any, ...] = ("durable", "durable", "written", "strict")


@dataclass(slots=True)
class Expected:
    """What was appended, and what of it the recorder answered for so far."""

    modes: dict[str, str] = field(default_factory=dict)
    records: dict[str, list[tuple[int, bytes]]] = field(default_factory=lambda: defaultdict(list))
    committed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    written: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    closed: set[str] = field(default_factory=set)

    def note(self, op: tuple[Any, ...]) -> None:
        """Take an operation of a CrashDisk, if it is a note."""
        match op:
            case ("note", "open", sid, mode):
                self.modes[sid] = mode
            case ("note", "record", sid, kind, payload):
                self.records[sid].append((kind, payload))
            case ("note", "committed", sid, count):
                self.committed[sid] = max(self.committed[sid], count)
            case ("note", "written", sid, count):
                self.written[sid] = max(self.written[sid], count)
            case ("note", "closed", sid):
                self.closed.add(sid)


class Session:
    """A tape in use; everything that it is told goes into the notes."""

    def __init__(self, disk: CrashDisk, tape: Tape, mode: str) -> None:
        self.disk, self.tape, self.mode = disk, tape, mode
        self.name = f"{tape.sid}.{tape.track}"
        self.count = 0
        self.failed = False
        disk.note("open", self.name, mode)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except TapeError:
            self.failed = True
            raise

    def append(self, channel: int, kind: Kind, payload: bytes) -> int:
        self.disk.note("record", self.name, int(kind), payload)  # before: it may be on the disk when append returns
        with self._watched():
            n = self.tape.append(channel, kind, payload)
        self.count = n + len(flattened([(kind, payload)]))
        return n

    def command(self, text: str) -> None:
        n = self.append(USER, Kind.COMMAND, pack({"verb": "SELECT", "kind": "read", "text": text}))
        self.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": "allow", "rule": "r"}))

    async def commit(self) -> None:
        count = self.count
        with self._watched():
            await self.tape.commit()
        self.disk.note("committed", self.name, count)
        self.disk.note("written", self.name, count)

    async def written(self) -> None:
        count = self.count
        with self._watched():
            await self.tape.written()
        self.disk.note("written", self.name, count)
        if self.mode == "strict":
            self.disk.note("committed", self.name, count)

    async def close(self) -> None:
        self.disk.note("record", self.name, int(Kind.CLOSE), pack({"status": "closed", "reason": "bye"}))
        with self._watched():
            await self.tape.close("closed", "bye")
        self.disk.note("committed", self.name, self.count + 1)
        self.disk.note("written", self.name, self.count + 1)
        self.disk.note("closed", self.name)


async def drive(
    root: Path, seed: int, auditor: AuditorKey, steps: int = 120, disk: CrashDisk | None = None
) -> CrashDisk:
    """Use a recorder for a while, with tiny segments and log files; returns the disk as a kill would find it.

    A session whose tape fails is over; the others go on, and new ones begin.
    """
    rng = random.Random(seed)
    disk = disk or CrashDisk(root)
    of = Recorder(
        root,
        KEY,
        disk=disk,
        segment_limit=rng.choice((2000, 6000, 40_000)),
        wal_bytes=rng.choice((5000, 20_000)),
        tick_seconds=0.002,
    )
    sessions: list[Session] = []
    try:
        for step in range(steps):
            try:
                if len(sessions) < 2 or (len(sessions) < 5 and rng.random() < 0.1):
                    begin(of, disk, rng, auditor, sessions)
                await act(rng, step, sessions)
            except TapeError:
                sessions[:] = [session for session in sessions if not session.failed]
        disk.note("end")
    finally:
        of.close()
    return disk


def begin(of: Recorder, disk: CrashDisk, rng: random.Random, auditor: AuditorKey, sessions: list[Session]) -> None:
    """Open a tape, perhaps an encrypted one, perhaps with an original track. Raises TapeError."""
    mode = rng.choice(MODES)
    recipients = (auditor.recipient,) if rng.random() < 0.3 else ()
    identity = {"subject": "ana@acme"}
    tape = of.open(protocol="postgres", identity=identity, target="shop", mode=mode, recipients=recipients)
    sessions.append(Session(disk, tape, mode))
    if rng.random() < 0.2:
        original = of.open_original(tape, (auditor.recipient,))
        sessions.append(Session(disk, original, mode))


async def act(rng: random.Random, step: int, sessions: list[Session]) -> None:
    """One thing that a session does. Raises TapeError."""
    session = rng.choice(sessions)
    match rng.randrange(8):
        case 0 | 1 | 2:
            session.command(f"SELECT {step} " + "x" * rng.choice((5, 200, 1500)))
            await session.commit()
        case 3 | 4:
            session.append(OUT, Kind.WIRE, rng.randbytes(rng.choice((10, 300, 5000, 30_000))))
            await session.written()
        case 5:
            long = rng.randbytes(rng.choice((100, 3000, 600_000 if rng.random() < 0.1 else 20)))
            session.append(GATE, Kind.RESULT, pack({"command": 0, "tag": "x", "count": 1, "junk": long}))
            await session.written()
        case 6:
            for other in sessions:
                other.append(USER, Kind.WIRE, b"together" * rng.randrange(1, 40))
                other.command("SELECT 1")
            for other in sessions:
                await other.commit()
        case _:
            if rng.random() < 0.4:
                await session.close()
                sessions.remove(session)


def recovered(image: Path, disk: Disk | None = None) -> list[Recovered]:
    """What a gateway does at its start."""
    disk = disk or Disk()
    found: list[Recovered] = []
    for folder in sorted((image / "wal").glob("*")):
        found += recover(image, folder, KEY, disk=disk).segments
    return found + sweep(image, KEY, FAR_FUTURE_NS, disk=disk)


def snapshot(image: Path) -> dict[str, bytes]:
    """Every file and what is in it."""
    return {
        str(path.relative_to(image)): sha256(path.read_bytes()).digest() for path in image.rglob("*") if path.is_file()
    }


def judge(image: Path, found: list[Recovered], expected: Expected, killed: bool, auditor: AuditorKey) -> int:
    """Fail unless what was recovered is right; returns how many acknowledged records were looked for."""
    assert not [one for one in found if one.status == "refused"], found
    report = verify(image, KEY.public_keys())
    for tape in report.tapes:
        assert tape.status in (VERIFIED, INCOMPLETE), tape.fault
        assert "not sealed" not in (tape.fault.reason if tape.fault else ""), tape.fault
    verified = {(tape.sid, "original" in Path(tape.path).name) for tape in report.tapes if tape.status == VERIFIED}
    looked_for = 0
    for name, said in expected.records.items():
        mode, (sid, track) = expected.modes[name], name.split(".")
        there, gaps = contents(image, sid, track, auditor)
        durable = 0 if mode == "written" and not killed else expected.committed[name]
        written = expected.written[name] if killed else 0
        flat = flattened(said)
        for n, record in there.items():
            assert flat[n] == record, f"{name}: record {n} is not what was appended"
        for n, (kind, _) in enumerate(flat):
            if n < written or (n < durable and (mode == "strict" or kind in GATING)):
                assert n in there, f"{name} ({mode}): record {n} (kind {kind}) was acknowledged and is missing"
                looked_for += 1
            elif n < durable:
                assert n in there or n in gaps, f"{name} ({mode}): record {n} is missing without a trace"
        if name in expected.closed and (killed or mode == "strict"):
            assert (sid, track == "original") in verified, f"{name}: closed, and not whole"
    return looked_for


def flattened(said: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The records as they are on the tape: long ones in parts."""
    size = 256 * 1024
    return [(kind, payload[i : i + size]) for kind, payload in said for i in range(0, max(1, len(payload)), size)]


def contents(image: Path, sid: str, track: str, auditor: AuditorKey) -> tuple[dict[int, tuple[int, bytes]], set[int]]:
    """All records of a tape by number, and the numbers of those that a GAP stands for; read without the reader."""
    there: dict[int, tuple[int, bytes]] = {}
    gaps: set[int] = set()
    stem = sid if track == "main" else f"{sid}.{track}"
    for path in sorted(image.glob(f"[0-9]*/*/*/{stem}.[0-9]*{SUFFIX}")):
        data = path.read_bytes()
        header = decode_header(data[: HEADER_LIMIT + 32])
        cipher: SegmentCipher | None = None
        if "enc" in header.map_:
            keys = path.with_name(f"{stem}.keys")
            if not keys.exists():
                break  # nobody can read it; judge() knows whether somebody must
            cipher = unlock(header, keys.read_bytes(), [auditor])
        offset = len(header.raw)
        while data[offset : offset + 4] == b"GCTB":
            head = data[offset : offset + BLOCK_HEADER_BYTES]
            block = decode_block_header(head, offset)
            stored = data[offset + BLOCK_HEADER_BYTES : block.end - CHAIN_BYTES]
            if block.type is BlockType.DATA:
                assert bool(block.flags & ENCRYPTED) == (cipher is not None)
                for record in decode_records(block, restore(block, stored, head, cipher)):
                    there[record.n] = (record.kind, record.payload)
            elif block.type is BlockType.GAP:
                gaps.update(range(block.first_record, block.next_record))
            offset = block.end
    return there, gaps


def readable(image: Path) -> None:
    """Fail if the reader stumbles over a recovered tape that is not encrypted."""
    for path in sorted(image.glob(f"[0-9]*/*/*/*.000{SUFFIX}")):
        reader = TapeReader(path)
        if "enc" in reader.header.map_:
            continue
        try:
            numbers = [record.n for record in reader.records()]
        except FormatError as error:
            raise AssertionError(f"{path.name}: {error}") from error
        assert numbers == sorted(set(numbers))


__all__ = ["Expected", "drive", "judge", "readable", "recovered", "snapshot"]
