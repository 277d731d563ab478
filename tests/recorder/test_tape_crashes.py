"""Crash images: whatever a power cut or a kill leaves of a busy recorder, recovery makes the best of it and no more.

The ordinary run looks at 500 images, the nightly one at 10,000. On a failure the message has the numbers that make
the same image again from the same operations (threads make each run's operations a little different; RUNS lists the
seeds of what was done).
"""

from __future__ import annotations

import asyncio
import errno
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from recorder.cipher import AuditorKey
from recorder.repair import Recovered
from tests.recorder.crashes import POLICIES, CrashDisk, FaultyCrashDisk, World
from tests.recorder.workload import Expected, drive, judge, readable, recovered, snapshot

RUNS = (1, 2, 3, 4, 5)
IMAGES_EACH = 100
NIGHTLY_RUNS = tuple(range(100, 150))
NIGHTLY_IMAGES_EACH = 200


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory: the model decides what is durable, so no real disk is needed."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        yield Path(name)


def images(memory: Path, disk: CrashDisk, seed: int, count: int) -> Iterator[tuple[str, Path, Expected, bool]]:
    """Yield count crash images, at random points: (how to make it again, directory, what was promised, killed)."""
    rng = random.Random(seed)
    end = next(i for i, op in enumerate(disk.ops) if op == ("note", "end"))
    world, expected = World(disk), Expected()
    for number, point in enumerate(sorted(rng.randrange(end + 1) for _ in range(count))):
        while world.at < point:
            expected.note(world.step())
        policy = rng.choice(POLICIES)
        image = memory / f"image{number}"
        image.mkdir()
        world.image(random.Random(seed * 100_003 + number), policy, image)
        yield f"run {seed}, image {number}, operation {point} of {end}, {policy}", image, expected, policy == "all"
        shutil.rmtree(image)


def crash(memory: Path, seed: int, count: int) -> int:
    """Crash one run count times and judge each recovery; returns how many acknowledged records were looked for."""
    auditor = AuditorKey.generate(memory / "auditor")
    root = memory / "live"
    root.mkdir()
    disk = asyncio.run(drive(root, seed, auditor))
    looked_for = 0
    for which, image, expected, killed in images(memory, disk, seed, count):
        found: list[Recovered] = []
        try:
            found = recovered(image)
            looked_for += judge(image, found, expected, killed, auditor)
            readable(image)
            before = snapshot(image)
            recovered(image)
            assert snapshot(image) == before, "recovery of what was recovered changes it"
        except Exception as error:
            said = "\n".join(map(str, found))
            raise AssertionError(f"{which}: {error}\nrecovered:\n{said}") from error
    return looked_for


@pytest.mark.parametrize("seed", RUNS)
def test_crashes_lose_nothing_that_was_acknowledged(memory: Path, seed: int) -> None:
    assert crash(memory, seed, IMAGES_EACH) > 100


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", NIGHTLY_RUNS)
def test_ten_thousand_crashes_lose_nothing(memory: Path, seed: int) -> None:
    assert crash(memory, seed, NIGHTLY_IMAGES_EACH) > 100


def crash_twice(memory: Path, seed: int, count: int, again: int) -> None:
    """Crash a run, crash its recovery, recover: the same as if recovery had not been disturbed."""
    auditor = AuditorKey.generate(memory / "auditor")
    root = memory / "live"
    root.mkdir()
    disk = asyncio.run(drive(root, seed, auditor))
    rng = random.Random(seed)
    for which, image, expected, killed in images(memory, disk, seed, count):
        untouched = memory / "untouched"
        shutil.copytree(image, untouched)
        recovery = CrashDisk(image)
        judge(image, recovered(image, recovery), expected, killed, auditor)
        undisturbed = snapshot(image)
        for number in range(again):
            world = World(recovery, untouched)
            for _ in range(rng.randrange(len(recovery.ops) + 1)):
                world.step()
            policy = rng.choice(POLICIES)
            second = memory / "second"
            second.mkdir()
            world.image(random.Random(number), policy, second)
            try:
                recovered(second)
                assert snapshot(second) == undisturbed
            except Exception as error:
                raise AssertionError(f"{which}; second crash {number} at {world.at}, {policy}: {error}") from error
            shutil.rmtree(second)
        shutil.rmtree(untouched)


@pytest.mark.parametrize("seed", (11, 12))
def test_crashes_of_recovery_change_nothing(memory: Path, seed: int) -> None:
    crash_twice(memory, seed, 12, 5)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(200, 210))
def test_many_crashes_of_recovery_change_nothing(memory: Path, seed: int) -> None:
    crash_twice(memory, seed, 20, 10)


FAULTS = ("create", "create_log", "make_directories", "sync", "sync_directory", "write", "write_through")


def fail(memory: Path, seed: int, name: str, fail_at: int, count: int, code: int) -> None:
    """Let calls of the busy recorder fail, then crash it at its end: what was acknowledged is there."""
    which = f"run {seed}, {name} {fail_at} x{count} fails"
    auditor = AuditorKey.generate(memory / f"auditor{seed}")
    root = memory / "live"
    root.mkdir()
    disk = FaultyCrashDisk(root, name, fail_at, count, code)
    asyncio.run(drive(root, seed, auditor, 40, disk))
    for policy in ("all", "nothing", "pages"):
        world, expected = World(disk), Expected()
        while (op := world.step()) != ("note", "end"):
            expected.note(op)
        image = memory / "image"
        image.mkdir()
        world.image(random.Random(fail_at), policy, image)
        found: list[Recovered] = []
        try:
            found = recovered(image)
            judge(image, found, expected, policy == "all", auditor)
        except Exception as error:
            said = "\n".join(map(str, found))
            raise AssertionError(f"{which}; {policy}: {error}\nrecovered:\n{said}") from error
        shutil.rmtree(image)
    shutil.rmtree(root)


@pytest.mark.parametrize("name", FAULTS)
def test_failed_calls_lose_nothing_that_was_acknowledged(memory: Path, name: str) -> None:
    for fail_at in (0, 1, 2, 5, 9, 20):
        fail(memory, 30 + fail_at, name, fail_at, 1, errno.EIO)
        fail(memory, 60 + fail_at, name, fail_at, 1_000_000, errno.ENOSPC)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAULTS)
def test_any_failed_call_loses_nothing(memory: Path, name: str) -> None:
    for fail_at in range(100):
        fail(
            memory, 300 + fail_at, name, fail_at, (1, 3, 1_000_000)[fail_at % 3], (errno.EIO, errno.ENOSPC)[fail_at % 2]
        )
