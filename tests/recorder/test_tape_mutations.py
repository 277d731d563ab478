"""Whatever byte of a finished tape is changed, and wherever it is cut off: verify() notices.

The ordinary run makes 2,000 random changes of one byte and cuts two small files at every offset; the nightly one makes
100,000 changes. Tapes: closed, rotated, recovered with gaps, encrypted, encrypted and recovered.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from recorder.cipher import AuditorKey
from recorder.disk import Disk
from recorder.format import BlockType
from recorder.recover import recover
from recorder.tape import GATE, OUT, USER, Kind
from recorder.verify import verify
from recorder.verify_tape import INCOMPLETE, VERIFIED
from tests.recorder.tapes import KEY, command, open_tape, pack, recorder

MUTATIONS = 2_000
NIGHTLY_MUTATIONS = 100_000
KINDS = ("closed", "rotated", "recovered", "encrypted", "encrypted recovered")


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished tape: its segments in order, the whole directory below root, and how it verifies."""

    root: Path
    files: list[Path]
    status: str


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory: a file is written and read again for each change."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        yield Path(name)


def finished(memory: Path, kind: str) -> Finished:
    """Make a tape of that kind."""
    auditor = AuditorKey.generate(memory / "auditor")
    live, root = memory / "live", memory / "root"

    async def run() -> None:
        of = recorder(live, tick_seconds=3600, segment_limit=900 if kind == "rotated" else 1 << 20)
        tape = open_tape(of, "durable", recipients=(auditor.recipient,) if "encrypted" in kind else ())
        for i in range(4):
            tape.append(USER, Kind.WIRE, b"Q%d" % i)
            n = command(tape, f"SELECT {i}", verdict="deny" if i == 2 else "allow")
            await tape.commit()
            tape.append(OUT, Kind.WIRE, b"row of an answer, " * 40)
            tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "SELECT 1", "count": 1, "bytes": 720}))
            await tape.written()
        command(tape, "COMMIT")
        await tape.commit()
        if "recovered" not in kind:
            await tape.close("closed", "bye")
        shutil.copytree(live, root)
        of.close()

    asyncio.run(run())
    if "recovered" in kind:  # a power cut: of the answers there is only what the log pinned
        for path in root.glob("[0-9]*/*/*/*.gct"):
            os.truncate(path, 700)
    found = recover(root, root / "wal" / "0", KEY, disk=Disk()).segments
    assert any(one.gaps for one in found) == ("recovered" in kind)
    files = sorted(root.glob("[0-9]*/*/*/*.gct"))
    assert (len(files) > 2) == (kind == "rotated")
    status = INCOMPLETE if "recovered" in kind else VERIFIED
    assert verdict(files[0]) == (status, [])
    return Finished(root, files, status)


def verdict(path: Path) -> tuple[str, list[str]]:
    """(status, why), where a recovered tape that is as its CRASHSEAL says has no why."""
    tape = verify(path, KEY.public_keys()).tapes[0]
    if tape.fault is None or "ended in a crash" in tape.fault.reason:
        return tape.status, []
    return tape.status, [tape.fault.reason]


def mutate(memory: Path, kind: str, count: int, seed: int) -> None:
    """Change one random byte count times, each time in the tape as it was."""
    tape = finished(memory, kind)
    rng = random.Random(seed)
    contents = {path: path.read_bytes() for path in tape.files}
    for number in range(count):
        path = rng.choice(tape.files)
        data = contents[path]
        at = rng.randrange(len(data))
        new = data[at] ^ rng.randrange(1, 256)
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.pwrite(descriptor, bytes([new]), at)
            status, why = verdict(path)
            assert why, f"{kind}, seed {seed}, change {number}: byte {at} of {path.name} became {new}: {status}"
            os.pwrite(descriptor, data[at : at + 1], at)
        finally:
            os.close(descriptor)
    assert verdict(tape.files[0]) == (tape.status, [])


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_of_a_byte_is_noticed(memory: Path, kind: str) -> None:
    mutate(memory, kind, MUTATIONS // len(KINDS), 1)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_changes_are_noticed(memory: Path, kind: str, seed: int) -> None:
    mutate(memory, kind, NIGHTLY_MUTATIONS // len(KINDS) // 10, 1000 + seed)


@pytest.mark.parametrize("kind", ("closed", "encrypted recovered"))
def test_a_cut_at_any_offset_is_noticed(memory: Path, kind: str) -> None:
    tape = finished(memory, kind)
    path = tape.files[-1]
    data = path.read_bytes()
    for size in range(len(data) - 1, -1, -1):
        os.truncate(path, size)
        status, why = verdict(path)
        assert why, f"cut to {size} of {len(data)} bytes: {status}"


@pytest.mark.parametrize("kind", ("closed", "recovered"))
def test_whatever_is_appended_is_noticed(memory: Path, kind: str) -> None:
    tape = finished(memory, kind)
    path = tape.files[-1]
    data = path.read_bytes()
    for more in (b"\0", b"\n", data[-16:], data[-200:], data):
        path.write_bytes(data + more)
        assert verdict(path)[1], f"{len(more)} bytes more"


def test_a_missing_segment_is_noticed(memory: Path) -> None:
    tape = finished(memory, "rotated")
    for path in tape.files:
        data = path.read_bytes()
        path.unlink()
        assert verdict(tape.files[1] if path is tape.files[0] else tape.files[0])[1], f"without {path.name}"
        path.write_bytes(data)


def test_swapped_neighbours_are_noticed(memory: Path) -> None:
    """Not one byte of it is new."""
    tape = finished(memory, "closed")
    path = tape.files[0]
    data = path.read_bytes()
    starts = [i for i in range(len(data)) if data.startswith(b"GCTB", i)]
    assert data[starts[0] + 4] == BlockType.DATA
    a, b, c = starts[:3]
    path.write_bytes(data[:a] + data[b:c] + data[a:b] + data[c:])
    assert verdict(path)[1]
