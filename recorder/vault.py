"""Where tapes live: files go to a bucket while sessions still run, and leave the disk once they are safely there.

One conditional PUT for each file, which never overwrites: its name is that of the file, ``tapes/YYYY/MM/DD/<file>``,
keys under ``keys/``, the node log under ``log/``. Then the object is looked at: its size, and either the store's own
checksum of what it has (an ETag that is the MD5 of the content) or the content, read back and hashed. Only then
is the item UPLOADED. A name that is taken is our own earlier try if size and checksum agree; otherwise it is a
conflict: said loudly, and the local file stays for ever.

The local copy goes when its term is over, and after one more look at the object: a store may lose things in ninety
days. A session goes from its first segment on, so that what is left here is an end of it and never a middle.

Every step can be killed at any point and done again (vault_state.py). What fails raises BucketError, which is for
trying again, or is a conflict, which is for a person.
Left out: when to do what (proxy/vault), the stores themselves (a Bucket), ending terms (vault_expiry.py).
Source: recorder note, section 10.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import md5, sha256
from pathlib import Path
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from recorder.retention import DAY_SECONDS
from recorder.vault_scan import Found, Labels, Scanner
from recorder.vault_state import Item, State, VaultError, VaultState

P = ParamSpec("P")
T = TypeVar("T")

# One PUT holds the whole file in memory. A segment has at most 128 MiB (recorder note, section 10) and is closed at the
# first block beyond; tiles and keys are smaller. S3's own limit of a single PUT is 5 GiB.
OBJECT_LIMIT: Final = 256 * 1024 * 1024
PROBE_NAME: Final = "probe/gatecast"
PROBE_CONTENT: Final = b"gatecast writes this once and checks that it cannot be written twice\n"
FOLDERS: Final = {"segment": "tapes", "keys": "keys", "log": ""}  # the log's paths begin with log/


class BucketError(VaultError):
    """The store did not do it, now; the text holds no secret."""


class AlreadyThere(Exception):
    """There is an object of this name."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of an object. md5 is the store's own checksum of the content (hex), '' where it has none.

    sha256 is what the writer said when the object was made: a help, and no proof. version: '' without versions.
    """

    size: int
    etag: str = ""
    md5: str = ""
    sha256: str = ""
    version: str = ""


class Bucket(Protocol):
    """A store of objects. Every method raises BucketError; names are relative to the bucket's prefix."""

    async def create(self, name: str, data: bytes, sha256: str) -> None:
        """Write a new object whole, or raise AlreadyThere; nothing is ever overwritten."""

    async def head(self, name: str) -> ObjectInfo | None:
        """Look at an object; None if there is none."""

    def get(self, name: str) -> AsyncIterator[bytes]:
        """Yield an object's content."""

    async def delete(self, name: str) -> None:
        """Delete an object; one that is not there is no error."""

    def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """Yield name and size of the objects whose names begin so, in whole path parts ("tapes/2026/11")."""


def object_name(path: str, kind: str = "segment") -> str:
    """Return the name in the bucket of a path below the directory of tapes."""
    folder = FOLDERS[kind]
    return f"{folder}/{path}" if folder else path


class Vault:
    """The vault of one directory of tapes. bucket None: nothing leaves, but terms, holds and erasure work.

    keys: the bucket of .keys files, where it is another. The state is used from a thread of the Vault's own.
    """

    def __init__(
        self,
        directory: Path,
        bucket: Bucket | None,
        keys: Bucket | None = None,
        *,
        cache: Path | None = None,
        labels: Labels = lambda target: None,
        read_back: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the state. Raises VaultError.

        cache: where fetched sessions lie, a folder each, which go with their tapes. read_back: read every object back,
        whatever the store's checksum.
        """
        self.cache = cache
        self.directory = directory
        self.bucket = bucket
        self.keys = keys or bucket
        self.clock = clock
        self.read_back = read_back
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vault-state")
        self.state = VaultState(directory)
        self.scanner = Scanner(directory, self.state, labels, clock)

    def close(self) -> None:
        """Finish what the thread has, and close the file."""
        self._thread.submit(self.state.close).result()
        self._thread.shutdown(wait=True)

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work on the state in the vault's thread. Cancelling gives up the wait, not the work."""
        running = self._thread.submit(partial(work, *args, **kwargs))
        return await asyncio.shield(asyncio.wrap_future(running))

    async def scan(self) -> Found:
        """Take up new and finished files. Raises VaultError."""
        return await self.do(self.scanner.scan)

    def bucket_of(self, item: Item) -> Bucket:
        """The bucket that an item belongs into. Raises VaultError where there is none."""
        bucket = self.keys if item.kind == "keys" else self.bucket
        if bucket is None:
            raise VaultError("no bucket is configured")
        return bucket

    def clear_cache(self, sid: str) -> None:
        """Remove what was fetched of a session. Raises OSError."""
        if self.cache is not None and (self.cache / sid).is_dir():
            shutil.rmtree(self.cache / sid)

    # -- up -------------------------------------------------------------------------------------------

    async def upload(self, item: Item) -> Item:
        """Bring one SEALED item to UPLOADED, or to CONFLICT. Raises BucketError, OSError: try again later."""
        bucket, name = self.bucket_of(item), object_name(item.path, item.kind)
        data = await asyncio.to_thread(_read, self.directory / item.path)
        own = (await asyncio.to_thread(sha256, data)).hexdigest()
        if item.sha256 and item.sha256 != own:
            return await self._conflict(item, "the local file is not what it was when its upload was first tried")
        await self.do(self.state.note, item.path, size=len(data), sha256=own)
        ours = True
        try:
            await bucket.create(name, data, own)
        except AlreadyThere:
            ours = False
        info = await bucket.head(name)
        if info is None:
            raise BucketError(f"{name}: written, but it is not there")
        weak = (await asyncio.to_thread(_md5, data)).hexdigest() if info.md5 else ""
        problem = await self._compare(bucket, name, info, len(data), own, weak)
        if not problem:
            now = self.clock()
            return await self.do(
                self.state.move, item.path, "upload", etag=info.etag, version=info.version, uploaded_at=now
            )
        if ours:
            # Perhaps the look was wrong and not the object; if it stays so, the next try finds a conflict.
            raise BucketError(f"{name}: written, but {problem}")
        return await self._conflict(item, f"the bucket has another object of this name: {problem}")

    async def _compare(self, bucket: Bucket, name: str, info: ObjectInfo, size: int, own: str, weak: str) -> str:
        """Return what is wrong with an object, '' if it is ours."""
        if info.size != size:
            return f"it has {info.size} bytes in place of {size}"
        if weak and info.md5 == weak and not self.read_back:
            return ""
        found = sha256()
        got = 0
        async for piece in bucket.get(name):
            got += len(piece)
            if got > size:
                return f"it has more than {size} bytes"
            found.update(piece)
        return "" if found.hexdigest() == own else "its content has another checksum"

    async def _conflict(self, item: Item, why: str) -> Item:
        now = self.clock()
        await self.do(self.state.record, now, "vault", "conflict", item.path, {"why": why})
        return await self.do(self.state.move, item.path, "conflict", error=why)

    # -- off the disk ---------------------------------------------------------------------------------

    async def purge(self, item: Item) -> Item:
        """Remove the local copy of an UPLOADED item, if the bucket has the object. Raises BucketError, OSError."""
        name = object_name(item.path, item.kind)
        bucket = self.bucket_of(item)
        info = await bucket.head(name)
        now = self.clock()
        if info is None:
            await self.do(self.state.record, now, "vault", "lost", item.path, {"why": "the bucket has it no more"})
            return await self.do(self.state.move, item.path, "lose", uploaded_at=None, etag="")
        # An ETag may change with the storage class; a store without any, a directory, only has the content itself.
        if not info.etag or (info.size, info.etag) != (item.size, item.etag):
            problem = await self._compare(bucket, name, info, item.size, item.sha256, "")
            if problem:
                return await self._conflict(
                    item, f"the object in the bucket is not the one that was checked: {problem}"
                )
        await asyncio.to_thread(remove_file, self.directory / item.path)
        return await self.do(self.state.move, item.path, "purge", purged_at=now)

    async def purgeable(self, local_days: float, limit: int) -> list[Item]:
        """Return items whose local copy may go now."""
        now = self.clock()
        return await self.do(self.state.purgeable, now - local_days * DAY_SECONDS, now, limit)

    # -- the store itself -----------------------------------------------------------------------------

    async def probe(self) -> None:
        """Check that the buckets can be written, and that they never overwrite. Raises BucketError."""
        if self.bucket is not None:
            await probe(self.bucket)
        if self.keys is not None and self.keys is not self.bucket:
            await probe(self.keys)


async def probe(bucket: Bucket) -> bool:
    """Write a small object of a fixed name, once; return whether the store keeps versions. Raises BucketError."""
    digest = sha256(PROBE_CONTENT).hexdigest()
    with contextlib.suppress(AlreadyThere):
        await bucket.create(PROBE_NAME, PROBE_CONTENT, digest)
    try:
        await bucket.create(PROBE_NAME, PROBE_CONTENT, digest)
    except AlreadyThere:
        info = await bucket.head(PROBE_NAME)
        if info is None or info.size != len(PROBE_CONTENT):
            raise BucketError(f"{PROBE_NAME} was written, but it is not there as it was written") from None
        return bool(info.version)
    raise BucketError("the store overwrites objects where it is told to create only: tapes would not be safe there")


def remove_file(path: Path) -> None:
    """Remove a file, durably; one that is gone already is no error. Raises OSError."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > OBJECT_LIMIT:
            raise VaultError(f"{path.name}: larger than {OBJECT_LIMIT} bytes")
        return file.read(OBJECT_LIMIT + 1)


def _md5(data: bytes) -> Any:  # hashlib's hash objects have no public type
    """MD5, only to compare with the ETags of stores that have no better one; 1.6 s of CPU a GB."""
    return md5(data, usedforsecurity=False)


__all__ = [
    "AlreadyThere",
    "Bucket",
    "BucketError",
    "ObjectInfo",
    "State",
    "Vault",
    "VaultError",
    "object_name",
    "probe",
]
