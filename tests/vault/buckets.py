"""What the vault's tests share: a bucket in memory with faults, sealed tapes, a clock that is set by hand."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any

from recorder.logentry import Tombstone
from recorder.retention import Retention
from recorder.vault import AlreadyThere, BucketError, ObjectInfo, Vault
from recorder.vault_expiry import Expiry
from tests.recorder.tapes import command, open_tape, recorder

START = 1_800_000_000.0


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


@dataclass
class Clock:
    """Seconds since the epoch, as told."""

    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class FaultBucket:
    """A bucket in memory. fault(step, name) runs before and after each call ("create", "created") and may raise.

    etag_is_md5: as S3 and GCS have it; without, content has to be read back. lie_about_size and corrupt change what is
    told of an object, and what is read of it.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    fault: Callable[[str, str], None] = lambda step, name: None
    etag_is_md5: bool = True
    lie_about_size: int = 0
    corrupt: bool = False
    keep: bool = False  # an object lock: deletes do nothing
    overwrites: bool = False
    calls: list[tuple[str, str]] = field(default_factory=list)

    def _step(self, step: str, name: str) -> None:
        self.calls.append((step, name))
        self.fault(step, name)

    async def create(self, name: str, data: bytes, sha256: str) -> None:
        self._step("create", name)
        if name in self.objects and not self.overwrites:
            raise AlreadyThere(name)
        self.objects[name] = data
        self._step("created", name)

    async def head(self, name: str) -> ObjectInfo | None:
        self._step("head", name)
        data = self.objects.get(name)
        if data is None:
            return None
        digest = md5(data).hexdigest()
        lie = self.lie_about_size if name.startswith("tapes/") else 0
        return ObjectInfo(len(data) + lie, f'"{digest}"', digest if self.etag_is_md5 else "")

    async def get(self, name: str) -> AsyncIterator[bytes]:
        self._step("get", name)
        if name not in self.objects:
            raise BucketError("the object is not there")
        data = self.objects[name]
        if self.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    async def delete(self, name: str) -> None:
        self._step("delete", name)
        if not self.keep:
            self.objects.pop(name, None)
        self._step("deleted", name)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        for name, data in sorted(self.objects.items()):
            if name.startswith(f"{prefix}/"):
                yield name, len(data)

    def tapes(self) -> dict[str, bytes]:
        return {name: data for name, data in self.objects.items() if name.startswith("tapes/")}


@dataclass
class Stones:
    """A node log that keeps what it is given, or fails."""

    entries: list[Tombstone] = field(default_factory=list)
    fail: BaseException | None = None

    def append(self, entries: Any) -> None:
        if self.fail is not None:
            raise self.fail
        self.entries += entries


async def write_tape(
    tapes: Path, clock: Clock, *, segments: int = 1, close: bool = True, verdict: str = "allow", **more: Any
) -> str:
    """Record a session with so many segments at the clock's time; return its id. Its files have settled."""
    limit = 1 if segments > 1 else 1 << 26
    of = recorder(tapes, segment_limit=limit, wal_bytes=1 << 16, wall_ns=lambda: int(clock.now * 1e9))
    tape = open_tape(of, **more)
    for number in range(segments):
        command(tape, f"SELECT {number}", verdict=verdict)
        await tape.written()
    if close:
        await tape.close("closed")
    of.close()
    settle(tapes, clock)
    return tape.sid


def settle(tapes: Path, clock: Clock) -> None:
    """Make all files as old as if a minute had passed since they were written."""
    for path in tapes.rglob("*"):
        if path.is_file():
            os.utime(path, (clock.now - 60, clock.now - 60))


def open_vault(tapes: Path, bucket: FaultBucket | None, clock: Clock, **more: Any) -> Vault:
    tapes.mkdir(exist_ok=True)
    return Vault(tapes, bucket, clock=clock, **more)


async def drain(vault: Vault) -> None:
    """Scan, and upload what is due; failures go up."""
    await vault.scan()
    for item in await vault.do(vault.state.waiting, vault.clock(), 10_000):
        await vault.upload(item)


def open_expiry(vault: Vault, stones: Stones | None = None, **terms: Any) -> Expiry:
    return Expiry(vault, lambda: Retention(**terms), stones)


def local_files(tapes: Path) -> list[str]:
    return sorted(path.name for path in tapes.rglob("*") if path.suffix in (".gct", ".keys"))
