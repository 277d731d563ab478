"""Back from the vault: checked, whole or not at all, and with what is still here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from recorder.cli import show
from recorder.reader import TapeReader
from recorder.retention import DAY_SECONDS
from recorder.vault import BucketError, Vault, VaultError
from recorder.vault_fetch import fetch
from recorder.vault_state import State, VaultState, elsewhere
from recorder.verify import verify
from tests.recorder.tapes import KEY
from tests.vault.buckets import Clock, FaultBucket, Killed, Stones, drain, open_expiry, open_vault, write_tape


async def away(tapes: Path, bucket: FaultBucket, clock: Clock, purge: int = 100) -> tuple[str, Vault]:
    """A session of several segments of which so many have left the disk."""
    sid = await write_tape(tapes, clock, segments=3)
    vault = open_vault(tapes, bucket, clock)
    await drain(vault)
    clock.now += 91 * DAY_SECONDS
    while purge and (batch := await vault.purgeable(90, 1)):
        await vault.purge(batch[0])
        purge -= 1
    return sid, vault


def test_a_session_comes_back_as_it_went_and_only_once(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()
    seen: list[tuple[int, int]] = []

    async def main() -> None:
        sid, vault = await away(tapes, bucket, clock)
        for _ in range(2):
            fetched = await fetch(
                sid,
                tmp_path / "back",
                bucket,
                state=vault.state,
                tapes=tapes,
                progress=lambda done, of: seen.append((done, of)),
            )
        assert fetched.checked
        assert {path.name: path.read_bytes() for path in fetched.first.parent.iterdir()} == {
            name.rpartition("/")[2]: data for name, data in bucket.tapes().items()
        }
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in fetched.first.parent.iterdir())
        assert verify(tmp_path / "back", KEY.public_keys()).status == "verified"
        assert show(fetched.first)["commands_count"] == 3
        assert [name for step, name in bucket.calls if step == "get"] == sorted(bucket.tapes())  # each once
        assert seen[0][0] == 0
        assert seen[-1][0] == seen[-1][1] == fetched.size_bytes
        vault.close()

    asyncio.run(main())


@pytest.mark.parametrize("purged", [1, 2])
def test_what_is_still_here_is_not_fetched(tmp_path: Path, purged: int) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid, vault = await away(tapes, bucket, clock, purged)
        fetched = await fetch(sid, tmp_path / "cache", bucket, state=vault.state, tapes=tapes)
        assert len([step for step, _ in bucket.calls if step == "get"]) == purged
        assert sum(path.is_symlink() for path in (tmp_path / "cache").iterdir()) == fetched.files - purged
        assert len(list(TapeReader(fetched.first).commands())) == 3
        assert elsewhere(tapes)(sid)
        copied = await fetch(sid, tmp_path / "copy", bucket, state=vault.state, tapes=tapes, copy=True)
        assert not any(path.is_symlink() for path in copied.first.parent.iterdir())
        assert len(list(TapeReader(copied.first).commands())) == 3
        vault.close()

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["changed", "cut", "longer", "missing", "read"])
def test_what_the_bucket_spoils_is_refused_and_leaves_nothing(tmp_path: Path, fault: str) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid, vault = await away(tapes, bucket, clock)
        name = sorted(bucket.tapes())[0]
        data = bucket.objects[name]
        match fault:
            case "changed":
                bucket.objects[name] = data[:100] + bytes([data[100] ^ 1]) + data[101:]
            case "cut":
                bucket.objects[name] = data[:-1]
            case "longer":
                bucket.objects[name] = data + b"x"
            case "missing":
                del bucket.objects[name]
            case _:
                bucket.corrupt = True
        with pytest.raises(VaultError):
            await fetch(sid, tmp_path / "back", bucket, state=vault.state)
        assert list((tmp_path / "back").iterdir()) == []
        vault.close()

    asyncio.run(main())


def test_a_fetch_that_is_killed_is_done_by_the_next(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid, vault = await away(tapes, bucket, clock)

        def kill(step: str, name: str) -> None:
            if step == "get" and ".002." in name:
                raise Killed

        bucket.fault = kill
        with pytest.raises(Killed):
            await fetch(sid, tmp_path / "back", bucket, state=vault.state)
        bucket.fault = lambda step, name: None
        fetched = await fetch(sid, tmp_path / "back", bucket, state=vault.state)
        assert verify(fetched.first.parent, KEY.public_keys()).status == "verified"
        vault.close()

    asyncio.run(main())


def test_without_the_state_the_bucket_s_names_will_do(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid, vault = await away(tapes, bucket, clock)
        vault.close()
        fetched = await fetch(sid, tmp_path / "back", bucket)
        assert not fetched.checked
        assert verify(fetched.first.parent, KEY.public_keys()).status == "verified"
        with pytest.raises(VaultError, match="no session"):
            await fetch("01ARZ3NDEKTSV4RRFFQ69G5FAV", tmp_path / "none", bucket)
        with pytest.raises(VaultError, match="no session's id"):
            await fetch("../../etc", tmp_path / "none", bucket)
        assert not (tmp_path / "none").exists()

    asyncio.run(main())


def test_a_store_that_is_down_says_so(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid, vault = await away(tapes, bucket, clock)

        def down(step: str, name: str) -> None:
            raise BucketError("connection refused")

        bucket.fault = down
        with pytest.raises(BucketError, match="connection refused"):
            await fetch(sid, tmp_path / "back", bucket, state=vault.state)
        vault.close()

    asyncio.run(main())


def test_only_a_session_that_is_safe_elsewhere_is_known_elsewhere(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        assert not elsewhere(tapes)("01ARZ3NDEKTSV4RRFFQ69G5FAV")  # no vault.db at all
        sid, vault = await away(tapes, bucket, clock, 0)
        assert not elsewhere(tapes)(sid)  # all of it is here: if it is not, somebody took it
        while batch := await vault.purgeable(90, 10):
            for item in batch:
                await vault.purge(item)
        assert elsewhere(tapes)(sid)
        clock.now += 400 * DAY_SECONDS
        expiry = open_expiry(vault, Stones())
        _, plan = await expiry.plan_expiry("ana")
        assert plan is not None
        await expiry.confirm(plan.token, "mia")
        state = VaultState(tapes, read_only=True)
        assert {item.state for item in state.of_session(sid)} == {State.EXPIRED}
        assert state.known_elsewhere(sid)  # it is not gone before its tombstone is there
        assert await expiry.work() == 1
        assert not state.known_elsewhere(sid)
        state.close()
        vault.close()

    asyncio.run(main())
