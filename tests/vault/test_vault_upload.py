"""Up and off the disk: what is uploaded when, every fault of a store, a kill at every step."""

from __future__ import annotations

import asyncio
import os
from hashlib import sha256
from pathlib import Path

import pytest

from recorder.disk import Disk
from recorder.retention import DAY_SECONDS
from recorder.vault import BucketError, VaultError, object_name, probe
from recorder.vault_state import State, VaultState
from tests.recorder.tapes import command, open_tape, recorder
from tests.vault.buckets import Clock, FaultBucket, Killed, drain, local_files, open_vault, settle, write_tape

STEPS = ("create", "created", "head")


def states(state: VaultState) -> dict[str, State]:
    return {item.path.rpartition("/")[2]: item.state for one in State for item in state.in_state(one)}


def test_finished_segments_go_while_the_session_lives(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        of = recorder(
            tapes, segment_limit=1, wal_bytes=1 << 16, wall_ns=lambda: int(clock.now * 1e9), tick_seconds=0.01
        )
        tape = open_tape(of)
        for number in range(3):
            command(tape, f"SELECT {number}")
            await tape.written()
        vault = open_vault(tapes, bucket, clock)
        settle(tapes, clock)
        await vault.scan()
        first, live = f"{tape.sid}.000.gct", tape.path.name
        assert states(vault.state)[live] is State.ACTIVE  # it is being written
        of.close()  # the process ends: the files are synced, and let go of
        settle(tapes, clock)
        await drain(vault)
        assert states(vault.state)[first] is State.UPLOADED
        assert states(vault.state)[live] is State.ACTIVE  # it has no seal: never uploaded
        known = vault.state.session(tape.sid)
        assert known is not None
        assert not known[1]
        vault.close()

    asyncio.run(main())
    assert len(bucket.tapes()) == len(local_files(tapes)) - 1 > 1
    for name, data in bucket.tapes().items():
        assert (tapes / name.removeprefix("tapes/")).read_bytes() == data


def test_a_locked_or_fresh_file_is_left_alone(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid = await write_tape(tapes, clock)
        (path,) = tapes.rglob(f"{sid}.000.gct")
        vault = open_vault(tapes, bucket, clock)
        os.utime(path, (clock.now - 1, clock.now - 1))
        assert (await vault.scan()).sealed == 0
        settle(tapes, clock)
        path.rename(path.with_suffix(".away"))
        locked = Disk().create(path)
        os.write(locked, path.with_suffix(".away").read_bytes())
        settle(tapes, clock)
        assert (await vault.scan()).sealed == 0
        os.close(locked)
        assert (await vault.scan()).sealed == 1
        vault.close()

    asyncio.run(main())


@pytest.mark.parametrize("cut", [1, 8, 16, 200])
def test_a_torn_end_is_not_uploaded(tmp_path: Path, cut: int) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid = await write_tape(tapes, clock)
        (path,) = tapes.rglob(f"{sid}.000.gct")
        os.truncate(path, path.stat().st_size - cut)
        settle(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        vault.close()

    asyncio.run(main())
    assert not bucket.tapes()


def test_a_scan_with_nothing_new_lists_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()
    listed: list[object] = []
    real = os.listdir

    def listing(path: Path) -> list[str]:
        listed.append(path)
        return real(path)

    async def main() -> None:
        await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        monkeypatch.setattr(os, "listdir", listing)
        await drain(vault)
        assert len(listed) == 1
        await drain(vault)
        assert len(listed) == 1
        day = next(tapes.rglob("*.gct")).parent
        (day / "01ARZ3NDEKTSV4RRFFQ69G5FAV.000.gct").write_bytes(b"torn")
        os.utime(day, (clock.now - 50, clock.now - 50))
        assert (await vault.scan()).noticed == 1
        assert len(listed) == 2
        vault.close()

    asyncio.run(main())


@pytest.mark.parametrize("when", STEPS)
@pytest.mark.parametrize("etag", [True, False], ids=["etag", "read-back"])
def test_killed_at_each_step_nothing_is_lost_or_written_twice(tmp_path: Path, when: str, etag: bool) -> None:
    """kill -9 at each step of an upload and of a purge; the next process takes up where the disk and the bucket are."""
    tapes, clock = tmp_path / "tapes", Clock()

    def kill(step: str, name: str) -> None:
        if step == when:
            raise Killed

    bucket = FaultBucket(fault=kill, etag_is_md5=etag)

    async def first() -> str:
        sid = await write_tape(tapes, clock, segments=2)
        vault = open_vault(tapes, bucket, clock)
        with pytest.raises(Killed):
            await drain(vault)
        assert len(local_files(tapes)) > 1
        vault.close()
        return sid

    async def second(sid: str) -> None:
        bucket.fault = lambda step, name: None
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        assert {item.state for item in vault.state.of_session(sid)} == {State.UPLOADED}
        count = len(local_files(tapes))
        assert len(bucket.tapes()) == count > 1
        clock.now += 91 * DAY_SECONDS
        bucket.fault = lambda step, name: kill("head", name) if when == "head" else None
        item = (await vault.purgeable(90, 10))[0]
        if when == "head":
            with pytest.raises(Killed):
                await vault.purge(item)
            assert len(local_files(tapes)) == count
            bucket.fault = lambda step, name: None
        else:  # killed after the unlink, before the state
            (tapes / item.path).unlink()
        while batch := await vault.purgeable(90, 10):
            for item in batch:
                await vault.purge(item)
        vault.close()

    sid = asyncio.run(first())
    asyncio.run(second(sid))
    assert local_files(tapes) == []
    assert len(bucket.tapes()) > 1


def test_segments_leave_the_disk_from_the_first_on_and_not_before_their_time(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid = await write_tape(tapes, clock, segments=3)
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        clock.now += 89 * DAY_SECONDS
        assert await vault.purgeable(90, 10) == []
        clock.now += 2 * DAY_SECONDS
        count = len(local_files(tapes))
        assert count > 2
        for number in range(count):
            (item,) = await vault.purgeable(90, 10)  # one at a time: never a middle
            assert item.number == number
            assert (await vault.purge(item)).state is State.LOCAL_PURGED
            assert len(local_files(tapes)) == count - 1 - number
        assert await vault.do(vault.state.known_elsewhere, sid)
        vault.close()

    asyncio.run(main())


def test_an_object_that_was_lost_is_uploaded_again(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        bucket.objects.clear()
        clock.now += 91 * DAY_SECONDS
        (item,) = await vault.purgeable(90, 10)
        assert (await vault.purge(item)).state is State.SEALED
        assert len(local_files(tapes)) == 1
        await drain(vault)
        vault.close()

    asyncio.run(main())
    assert len(bucket.tapes()) == 1


def test_an_object_that_changed_in_the_bucket_keeps_the_local_file(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        (name,) = bucket.tapes()
        bucket.objects[name] = bytes(len(bucket.objects[name]))
        clock.now += 91 * DAY_SECONDS
        (item,) = await vault.purgeable(90, 10)
        assert (await vault.purge(item)).state is State.CONFLICT
        assert await vault.purgeable(90, 10) == []
        assert vault.state.history()[0]["action"] == "conflict"
        vault.close()

    asyncio.run(main())
    assert len(local_files(tapes)) == 1


@pytest.mark.parametrize("lie", ["size", "content"])
def test_a_store_that_lies_never_gets_the_local_file(tmp_path: Path, lie: str) -> None:
    tapes, clock = tmp_path / "tapes", Clock()
    bucket = FaultBucket(lie_about_size=1) if lie == "size" else FaultBucket(etag_is_md5=False, corrupt=True)

    async def main() -> None:
        await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        with pytest.raises(BucketError, match=r"bytes in place|another checksum"):
            await drain(vault)
        await drain(vault)  # the second try finds the object, and the same lie: a conflict
        (item,) = vault.state.in_state(State.CONFLICT)
        assert "another object" in item.error
        clock.now += 1000 * DAY_SECONDS
        assert await vault.purgeable(0, 10) == []
        bucket.lie_about_size, bucket.corrupt = 0, False
        vault.state.move(item.path, "retry")
        await drain(vault)
        assert vault.state.in_state(State.UPLOADED)
        vault.close()

    asyncio.run(main())
    assert len(local_files(tapes)) == 1


@pytest.mark.parametrize("there", [b"", b"x", None], ids=["empty", "short", "same-size"])
def test_a_name_that_is_taken_by_something_else_is_a_conflict_and_stays(tmp_path: Path, there: bytes | None) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid = await write_tape(tapes, clock)
        (path,) = tapes.rglob(f"{sid}.000.gct")
        name = object_name(str(path.relative_to(tapes)))
        other = bytes(path.stat().st_size) if there is None else there
        bucket.objects[name] = other
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        assert [item.state for item in vault.state.of_session(sid)] == [State.CONFLICT]
        assert bucket.objects[name] == other
        assert path.exists()
        vault.close()

    asyncio.run(main())


def test_a_local_file_that_changed_between_tries_is_a_conflict(tmp_path: Path) -> None:
    tapes, clock = tmp_path / "tapes", Clock()

    def down(step: str, name: str) -> None:
        if step == "create":
            raise BucketError("down")

    bucket = FaultBucket(fault=down)

    async def main() -> None:
        sid = await write_tape(tapes, clock)
        (path,) = tapes.rglob(f"{sid}.000.gct")
        vault = open_vault(tapes, bucket, clock)
        with pytest.raises(BucketError):
            await drain(vault)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        bucket.fault = lambda step, name: None
        await drain(vault)
        assert [item.state for item in vault.state.of_session(sid)] == [State.CONFLICT]
        vault.close()

    asyncio.run(main())
    assert not bucket.tapes()


def test_what_was_uploaded_is_known_by_its_checksum(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        sid = await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        (item,) = vault.state.of_session(sid)
        ((name, data),) = bucket.tapes().items()
        assert (item.size, item.sha256) == (len(data), sha256(data).hexdigest())
        assert name == f"tapes/{item.path}"
        vault.close()
        with pytest.raises(VaultError, match="no purge from there"):
            state = VaultState(tapes)
            try:
                state.move(item.path, "purge")
                state.move(item.path, "purge")
            finally:
                state.close()

    asyncio.run(main())


def test_a_store_that_overwrites_is_found_out() -> None:
    with pytest.raises(BucketError, match="overwrites"):
        asyncio.run(probe(FaultBucket(overwrites=True)))
    kept = FaultBucket()
    asyncio.run(probe(kept))
    asyncio.run(probe(kept))
    assert list(kept.objects) == ["probe/gatecast"]


def test_full_tiles_that_the_checkpoint_stands_on_are_copied(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()
    log = tapes / "log" / "gw1"
    for name in ("tile/0/000", "tile/0/001", "tile/0/001.p/7", "tile/entries/000", "tile/1/000", "tile/0/x001/000"):
        (log / name).parent.mkdir(parents=True, exist_ok=True)
        (log / name).write_bytes(name.encode())
    (log / "checkpoint").write_text("example.org/gw1\n263\nroot\n\n")
    settle(tapes, clock)

    async def main() -> None:
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        assert sorted(bucket.objects) == ["log/gw1/tile/0/000", "log/gw1/tile/entries/000"]
        (log / "checkpoint").write_text("example.org/gw1\n65536\nroot\n\n")
        await drain(vault)
        assert "log/gw1/tile/1/000" in bucket.objects
        assert "log/gw1/tile/0/x001/000" not in bucket.objects
        clock.now += 1000 * DAY_SECONDS
        assert await vault.purgeable(0, 100) == []  # the log stays for ever
        vault.close()

    asyncio.run(main())
