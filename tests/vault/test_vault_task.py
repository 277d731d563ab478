"""The background task: it drains a backlog, outlives a store that is down, and says so loudly, but not all the time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from proxy.vault.task import PAUSE_LIMIT_SECONDS, ROUND_SECONDS, Pace, VaultTask
from recorder.retention import DAY_SECONDS
from recorder.vault import BucketError, Vault
from recorder.vault_state import State
from tests.vault.buckets import Clock, FaultBucket, Stones, local_files, open_expiry, open_vault, settle, write_tape


class Sleeps:
    """Passes time at once; ends the task when the clock has come to until."""

    def __init__(self, clock: Clock, until: float) -> None:
        self.clock = clock
        self.until = until
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.now += seconds
        if self.clock.now >= self.until:
            raise asyncio.CancelledError


async def run_until(vault: Vault, clock: Clock, until: float, **pace: Any) -> list[float]:
    sleeps = Sleeps(clock, until)
    task = VaultTask(vault, open_expiry(vault, Stones()), lambda: Pace(**pace), sleep=sleeps, jitter=lambda: 1.0)
    with pytest.raises(asyncio.CancelledError):
        await task.run()
    return sleeps.slept


def test_a_store_that_is_down_for_hours_loses_nothing_and_is_told_of_now_and_then(tmp_path: Path) -> None:
    tapes, clock = tmp_path / "tapes", Clock()
    outage = clock.now + 7200

    def down(step: str, name: str) -> None:
        if clock.now < outage:
            raise BucketError("503 Slow Down")

    bucket = FaultBucket(fault=down)

    async def main() -> None:
        for _ in range(5):
            await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        with capture_logs() as logs:
            slept = await run_until(vault, clock, outage + 1200)
        assert slept[:4] == [2.0, 4.0, 8.0, 16.0]
        assert max(slept) == PAUSE_LIMIT_SECONDS
        assert slept[-1] == ROUND_SECONDS
        events = [line["event"] for line in logs]
        assert events.count("vault-unreachable") == 1
        assert 8 <= events.count("vault-still-unreachable") <= 12
        assert events.count("vault-reachable") == 1
        (line,) = (line for line in logs if line["event"] == "vault-unreachable")
        assert (line["files"], line["log_level"]) == (5, "error")
        assert line["bytes"] > 0
        vault.close()

    asyncio.run(main())
    assert len(bucket.tapes()) == 5


def test_one_bad_item_does_not_keep_the_others(tmp_path: Path) -> None:
    tapes, clock = tmp_path / "tapes", Clock()
    bad: list[str] = []

    def refuse(step: str, name: str) -> None:
        if step == "create" and name.startswith("tapes/"):
            if not bad:
                bad.append(name)
            if name == bad[0]:
                raise BucketError("400 Bad Request")

    bucket = FaultBucket(fault=refuse)

    async def main() -> None:
        for _ in range(6):
            await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        await run_until(vault, clock, clock.now + 3600, concurrency=1)
        (item,) = vault.state.in_state(State.SEALED)
        assert item.attempts > 3
        assert item.error == "400 Bad Request"
        assert vault.state.summary()["last_error"]["error"] == "400 Bad Request"
        vault.close()

    asyncio.run(main())
    assert len(bucket.tapes()) == 5


def test_nothing_leaves_for_a_store_that_overwrites(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket(overwrites=True)

    async def main() -> None:
        await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        with capture_logs() as logs:
            await run_until(vault, clock, clock.now + 600)
        assert "overwrites objects" in next(line["error"] for line in logs if line["event"] == "vault-unreachable")
        vault.close()

    asyncio.run(main())
    assert not bucket.tapes()


def test_conflicts_are_said_again(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid = await write_tape(tapes, clock)
        (path,) = tapes.rglob(f"{sid}.*")
        bucket.objects[f"tapes/{path.relative_to(tapes)}"] = b"x"
        vault = open_vault(tapes, bucket, clock)
        with capture_logs() as logs:
            await run_until(vault, clock, clock.now + 1900, local_days=0)
        lines = [line for line in logs if line["event"] == "vault-conflict"]
        assert 3 <= len(lines) <= 5
        assert all(line["log_level"] == "error" for line in lines)
        vault.close()

    asyncio.run(main())
    assert len(local_files(tapes)) == 1


def test_a_backlog_drains_and_then_leaves_the_disk(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid = await write_tape(tapes, clock)
        (path,) = tapes.rglob(f"{sid}.000.gct")
        for number in range(1, 150):  # the files of one session, as the scan sees them: a sealed file each
            (path.parent / f"{sid}.{number:03d}.gct").write_bytes(path.read_bytes())
        settle(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        await run_until(vault, clock, clock.now + ROUND_SECONDS, concurrency=4)
        assert vault.state.summary()["states"]["uploaded"]["count"] == 150
        assert vault.state.summary()["backlog"] == {"count": 0, "bytes": 0, "oldest": None}
        clock.now += 91 * DAY_SECONDS
        await run_until(vault, clock, clock.now + 30)
        vault.close()

    asyncio.run(main())
    assert len(bucket.tapes()) == 150
    creates = [name for step, name in bucket.calls if step == "create" and name.startswith("tapes/")]
    assert len(creates) == 150  # each of them once


def test_local_copies_stay_while_the_store_is_down(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        await run_until(vault, clock, clock.now + 20)
        clock.now += 100 * DAY_SECONDS

        def down(step: str, name: str) -> None:
            raise BucketError("down")

        bucket.fault = down
        await run_until(vault, clock, clock.now + 600)
        assert len(local_files(tapes)) == 1
        bucket.fault = lambda step, name: None
        await run_until(vault, clock, clock.now + 600)
        assert local_files(tapes) == []
        vault.close()

    asyncio.run(main())
