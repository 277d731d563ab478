"""Attacks on the vault: a bucket that lies, files in the day folders that are none, and names that lead elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from proxy.notary import BucketStore
from proxy.vault.bucket import DirectoryBucket
from recorder.checkpoint import Checkpoint
from recorder.retention import DAY_SECONDS
from recorder.seal import SealKey
from recorder.vault import AlreadyThere, BucketError, ObjectInfo, Vault, VaultError
from recorder.vault_fetch import fetch
from recorder.vault_state import State
from recorder.verify import verify
from tests.recorder.nodelogs import KEYS, node_log
from tests.vault.buckets import Clock, FaultBucket, drain, local_files, open_vault, settle, write_tape


class PlainBucket(FaultBucket):
    """A bucket without ETags, as a directory is."""

    async def head(self, name: str) -> ObjectInfo | None:
        found = await super().head(name)
        return None if found is None else ObjectInfo(found.size)


@pytest.fixture
def tapes(tmp_path: Path) -> Path:
    return tmp_path / "tapes"


async def uploaded(tapes: Path, bucket: Any, clock: Clock) -> tuple[str, Vault]:
    sid = await write_tape(tapes, clock)
    vault = open_vault(tapes, bucket, clock)
    await drain(vault)
    return sid, vault


async def purge(vault: Vault, clock: Clock) -> list[State]:
    clock.now += 91 * DAY_SECONDS
    return [(await vault.purge(item)).state for item in await vault.purgeable(90, 10)]


def run(work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(work)


def test_an_object_that_was_changed_in_a_store_without_checksums(tapes: Path) -> None:
    """Same size, no ETag: the good copy here was deleted on the word of a length."""

    async def scenario() -> None:
        bucket, clock = PlainBucket(), Clock()
        _, vault = await uploaded(tapes, bucket, clock)
        name, data = next(iter(bucket.tapes().items()))
        bucket.objects[name] = data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]
        assert await purge(vault, clock) == [State.CONFLICT]
        assert len(local_files(tapes)) == 1
        bucket.objects[name] = data
        vault.close()

    run(scenario())


def test_an_honest_store_without_checksums_lets_the_local_copy_go(tapes: Path) -> None:
    async def scenario() -> None:
        bucket, clock = PlainBucket(), Clock()
        _, vault = await uploaded(tapes, bucket, clock)
        assert await purge(vault, clock) == [State.LOCAL_PURGED]
        assert not local_files(tapes)
        vault.close()

    run(scenario())


def test_a_directory_of_objects_that_somebody_changed(tapes: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        _, vault = await uploaded(tapes, DirectoryBucket(tmp_path / "bucket"), clock)
        stored = next((tmp_path / "bucket").rglob("*.gct"))
        data = stored.read_bytes()
        stored.write_bytes(data[:-1] + b"x")
        assert await purge(vault, clock) == [State.CONFLICT]
        assert len(local_files(tapes)) == 1
        vault.close()

    run(scenario())


def test_a_bucket_that_says_it_is_there_and_gives_something_else(tapes: Path) -> None:
    async def scenario() -> None:
        bucket, clock = FaultBucket(etag_is_md5=False, corrupt=True), Clock()
        sid = await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        with pytest.raises(BucketError):
            await drain(vault)
        assert {item.state for item in vault.state.of_session(sid)} == {State.SEALED}
        vault.close()

    run(scenario())


def test_another_object_was_there_first(tapes: Path) -> None:
    """Somebody guessed the name: nothing is overwritten, and nothing here is taken to be safe."""

    async def scenario() -> None:
        bucket, clock = FaultBucket(), Clock()
        sid = await write_tape(tapes, clock)
        path = next(tapes.glob("*/*/*/*.gct"))
        size = path.stat().st_size
        bucket.objects[f"tapes/{path.relative_to(tapes)}"] = bytes(size)
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        assert {item.state for item in vault.state.of_session(sid)} == {State.CONFLICT}
        assert bucket.tapes() == {f"tapes/{path.relative_to(tapes)}": bytes(size)}
        assert not await purge(vault, clock)
        vault.close()

    run(scenario())


def test_a_session_that_differs_here_and_in_the_vault(tapes: Path, tmp_path: Path) -> None:
    """The copy here was changed after its upload: it is found, and the vault has the genuine one."""

    async def scenario() -> None:
        bucket, clock = FaultBucket(), Clock()
        sid, vault = await uploaded(tapes, bucket, clock)
        path = next(tapes.glob("*/*/*/*.gct"))
        data = path.read_bytes()
        path.write_bytes(data[:-60] + bytes([data[-60] ^ 1]) + data[-59:])
        assert verify(tapes, KEYS).exit_code == 1
        mixed = await fetch(sid, tmp_path / "mixed", bucket, state=vault.state, tapes=tapes)
        assert verify(mixed.first, KEYS).exit_code == 1  # what is here is linked to, and not believed
        clean = await fetch(sid, tmp_path / "clean", bucket)
        assert verify(clean.first, KEYS).exit_code == 0
        vault.close()

    run(scenario())


class Liar(FaultBucket):
    """Lists what it likes."""

    names: tuple[tuple[str, int], ...] = ()

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        for one in self.names:
            yield one

    async def get(self, name: str) -> AsyncIterator[bytes]:
        yield b"x" * 10


@pytest.mark.parametrize(
    "name",
    ["../../{sid}.000.gct/../../../escaped", "/{sid}.000.gct", "tapes/{sid}./../../escaped", "{sid}.000.gct\0x"],
)
def test_a_listing_that_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    sid = "01JD8Z7Q000000000000000000"
    bucket = Liar()
    bucket.names = ((f"tapes/x/{sid}.000.gct", 10), (name.format(sid=sid), 10))
    into = tmp_path / "deep" / "into"
    with contextlib.suppress(VaultError, ValueError):  # refused, or put where it belongs
        run(fetch(sid, into, bucket))
    made = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.parent == into for path in made)


@pytest.mark.parametrize("size", [0, 9, 11, 1 << 60])
def test_a_listing_with_another_size(tmp_path: Path, size: int) -> None:
    sid = "01JD8Z7Q000000000000000000"
    bucket = Liar()
    bucket.names = ((f"tapes/x/{sid}.000.gct", size),)
    with pytest.raises(VaultError):
        run(fetch(sid, tmp_path / "into", bucket))
    assert not list((tmp_path / "into").iterdir())


@pytest.mark.parametrize("sid", ["../x", "", "01JD8Z7Q00000000000000000*", "/" * 26])
def test_a_session_id_that_is_none(tmp_path: Path, sid: str) -> None:
    with pytest.raises(VaultError):
        run(fetch(sid, tmp_path / "into", FaultBucket()))


def test_a_fetch_into_a_folder_where_somebody_put_a_link(tapes: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        bucket, clock = FaultBucket(), Clock()
        sid, vault = await uploaded(tapes, bucket, clock)
        victim = tmp_path / "victim"
        victim.write_bytes(b"do not touch")
        into = tmp_path / "into"
        into.mkdir()
        (into / f"{sid}.000.gct").symlink_to(victim)
        await fetch(sid, into, bucket)
        assert victim.read_bytes() == b"do not touch"
        assert verify(into, KEYS, no_log=True).exit_code == 0
        vault.close()

    run(scenario())


def test_what_is_no_file_in_a_day_folder_holds_nothing_up(tapes: Path) -> None:
    """A pipe with a tape's name stopped the vault's thread for good."""

    async def scenario() -> None:
        bucket, clock = FaultBucket(), Clock()
        sid = await write_tape(tapes, clock)
        day = next(tapes.glob("*/*/*/*.gct")).parent
        os.mkfifo(day / "01JD8Z7Q000000000000000000.000.gct")
        os.mkfifo(day / "01JD8Z7Q000000000000000000.keys")
        os.mkfifo(day / f"{sid}.keys")
        (day / "01JD8Z7Q000000000000000001.000.gct").symlink_to("/dev/zero")
        (day / "01JD8Z7Q00000000000000000\u0662.000.gct").write_bytes(b"x")
        (day / "01JD8Z7Q000000000000000003.\u0660\u0660\u0660.gct").write_bytes(b"x")
        (day / "01JD8Z7Q000000000000000004.000.gct\n").write_bytes(b"x")
        for path in day.iterdir():
            if not path.is_symlink():
                os.utime(path, (clock.now - 60, clock.now - 60))
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        assert set(bucket.tapes()) == {f"tapes/{next(tapes.glob(f'*/*/*/{sid}.000.gct')).relative_to(tapes)}"}
        assert all("\u0660" not in item.path and "\n" not in item.path for item in vault.state.in_state(State.ACTIVE))
        vault.close()

    run(scenario())


def test_a_file_of_another_session_under_a_sessions_name(tapes: Path) -> None:
    """What a file says of itself does not decide on another session's terms."""

    async def scenario() -> None:
        bucket, clock = FaultBucket(), Clock()
        sid = await write_tape(tapes, clock)
        path = next(tapes.glob("*/*/*/*.gct"))
        path.rename(path.with_name("01JD8Z7Q000000000000000000.000.gct"))
        settle(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        assert not bucket.tapes() and vault.state.session(sid) is None
        vault.close()

    run(scenario())


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", ".hidden", "a\nb", "a\0b", "", "a/", "C:\\x", "é"]
)
def test_names_of_objects_never_leave_the_folder(tmp_path: Path, name: str) -> None:
    bucket = DirectoryBucket(tmp_path / "bucket")
    for work in (bucket.create(name, b"x", ""), bucket.head(name), bucket.delete(name)):
        with pytest.raises(BucketError):
            run(work)
    assert not (tmp_path / "bucket").exists()


def test_a_directory_bucket_is_for_its_owner_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        run(DirectoryBucket(tmp_path / "bucket").create("tapes/2026/11/21/x.gct", b"x", ""))
    finally:
        os.umask(mask)
    assert not [path for path in (tmp_path / "bucket").rglob("*") if path.stat().st_mode & 0o077]


# -- anchors in a bucket ------------------------------------------------------------------------------------------


def put(bucket: FaultBucket, checkpoint: Checkpoint) -> None:
    """BucketStore.put, from a thread, as the notary calls it."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(BucketStore(bucket, lambda: loop).put, checkpoint, 1_795_000_000 * 10**9)

    run(scenario())


def test_the_same_checkpoint_twice_is_no_failure(tmp_path: Path) -> None:
    """After a restart the bucket has it already: that counted as a failure, and ended in an alarm."""
    bucket, head = FaultBucket(), node_log(tmp_path).checkpoint()
    put(bucket, head)
    put(bucket, head)
    assert list(bucket.objects.values()) == [head.encode()]


def test_another_object_in_the_place_of_a_checkpoint(tmp_path: Path) -> None:
    bucket, head = FaultBucket(), node_log(tmp_path).checkpoint()
    put(bucket, head)
    for name in bucket.objects:
        bucket.objects[name] = b"something else"
    with pytest.raises(OSError, match="another"):
        put(bucket, head)
    assert sha256(head.encode()).hexdigest() != sha256(next(iter(bucket.objects.values()))).hexdigest()
    assert SealKey.generate().id not in head.text


def test_the_store_says_that_it_is_there_and_has_nothing(tmp_path: Path) -> None:
    class Empty(FaultBucket):
        async def create(self, name: str, data: bytes, sha256: str) -> None:
            raise AlreadyThere(name)

    with pytest.raises(OSError, match="not there"):
        put(Empty(), node_log(tmp_path).checkpoint())
