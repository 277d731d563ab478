"""Brings a session back from the vault into a folder, where every reader of tapes can read it.

What vault.db knows is checked: each file has the size and the SHA-256 that it had when it left. Without vault.db (on
another machine, after a loss) the bucket is asked for the session's names, by the day in its id; then the checksum is
what the writer said, if the store kept that, and `verify` is the proof as ever. Files are written beside and renamed,
so that a fetch that was killed leaves nothing half; what is there already and right is not fetched again. Segments that
are still on this machine are linked to, and not copied.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

from recorder.format import SUFFIX
from recorder.ulid import is_ulid
from recorder.vault import OBJECT_LIMIT, Bucket, BucketError, VaultError, object_name
from recorder.vault_state import State, VaultState

_PIECE: Final = 1 << 20
Progress = Callable[[int, int], None]  # bytes so far, bytes in all


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One file: its name here, where it is, and what is known of it ("" where nothing is)."""

    file: str
    name: str
    kind: str
    size: int
    sha256: str = ""
    local: Path | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """first is the file to open; erased: the session was encrypted, and its keys are destroyed."""

    first: Path
    files: int
    size_bytes: int
    checked: bool
    erased: bool = False


async def fetch(
    sid: str,
    into: Path,
    bucket: Bucket,
    keys: Bucket | None = None,
    *,
    state: VaultState | None = None,
    tapes: Path | None = None,
    copy: bool = False,
    progress: Progress = lambda done, total: None,
) -> Fetched:
    """Put all files of a session into a folder (made if need be, 0700). tapes: where the rest of it may still be; it is
    linked to, or copied.

    Raises VaultError, BucketError, OSError.
    """
    wanted, erased = (_known(sid, state, tapes), _is_erased(sid, state)) if state is not None else ([], False)
    if not wanted:
        wanted = await _listed(sid, bucket)
        if keys is not None and keys is not bucket:
            wanted += await _listed(sid, keys)
    wanted = list({one.file: one for one in wanted}.values())
    first = next((one for one in wanted if one.file == f"{sid}.000{SUFFIX}"), None)
    if first is None:
        raise VaultError(f"the vault has no session {sid}")
    await asyncio.to_thread(into.mkdir, 0o700, parents=True, exist_ok=True)
    done, total = 0, sum(one.size for one in wanted)
    progress(0, total)
    for one in wanted:
        base = done
        if one.local is not None:
            await asyncio.to_thread(_copy if copy else _link, one.local, into / one.file)
        else:
            source = (keys or bucket) if one.kind == "keys" else bucket
            await _bring(one, source, into / one.file, lambda got, base=base: progress(base + got, total))  # type: ignore[misc]
        done += one.size
        progress(done, total)
    return Fetched(into / first.file, len(wanted), done, all(one.sha256 or one.local for one in wanted), erased)


def _known(sid: str, state: VaultState, tapes: Path | None) -> list[_Wanted]:
    found = []
    for item in state.of_session(sid):
        if item.state in (State.TOMBSTONED, State.EXPIRED) and item.kind == "segment":
            raise VaultError(f"session {sid} has expired and is gone, or going; the node log has its tombstone")
        if item.state in (State.TOMBSTONED, State.EXPIRED):
            continue
        local = tapes / item.path if tapes is not None else None
        if local is not None and not local.is_file():
            local = None
        if local is None and item.uploaded_at is None:
            raise VaultError(f"{item.path} is not in the vault and not here")
        name = object_name(item.path, item.kind)
        found.append(_Wanted(item.path.rpartition("/")[2], name, item.kind, item.size, item.sha256, local))
    return found


def _is_erased(sid: str, state: VaultState) -> bool:
    return any(item.kind == "keys" and item.state is State.TOMBSTONED for item in state.of_session(sid))


async def _listed(sid: str, bucket: Bucket) -> list[_Wanted]:
    """Ask the bucket by the day in the session's id (a ULID's first 48 bits are milliseconds)."""
    if not is_ulid(sid):
        raise VaultError(f"{sid[:40]} is no session's id")
    value = 0
    for character in sid[:10]:
        value = value << 5 | "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(character)
    day = datetime.fromtimestamp(value / 1000, UTC).strftime("%Y/%m/%d")
    found = []
    for kind in ("segment", "keys"):
        folder = object_name(day, kind)
        async for name, size in bucket.list(folder):
            file = name.rpartition("/")[2]
            if file.startswith(f"{sid}."):
                found.append(_Wanted(file, name, kind, size))
    return sorted(found, key=lambda one: one.file)


async def _bring(one: _Wanted, bucket: Bucket, to: Path, progress: Callable[[int], None]) -> None:
    if await asyncio.to_thread(_is_right, one, to):
        return
    digest, got = sha256(), 0
    draft = to.with_name(f".{to.name}.{secrets.token_hex(6)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for piece in bucket.get(one.name):
                got += len(piece)
                if got > (one.size if one.sha256 else OBJECT_LIMIT):
                    break
                digest.update(piece)
                await asyncio.to_thread(file.write, piece)
                progress(got)
        if got != one.size:
            raise BucketError(f"{one.name}: {got} bytes came, {one.size} were expected")
        if one.sha256 and digest.hexdigest() != one.sha256:
            raise VaultError(f"{one.name}: the vault gives other bytes than it was given (SHA-256 differs)")
        draft.replace(to)
    finally:
        draft.unlink(missing_ok=True)


def _is_right(one: _Wanted, path: Path) -> bool:
    """Whether an earlier fetch brought this file already."""
    if not one.sha256 or path.is_symlink() or not path.is_file() or path.stat().st_size != one.size:
        return False
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest() == one.sha256


def _link(local: Path, to: Path) -> None:
    to.unlink(missing_ok=True)
    to.symlink_to(local.absolute())


def _copy(local: Path, to: Path) -> None:
    draft = to.with_name(f".{to.name}.{secrets.token_hex(6)}")
    try:
        with local.open("rb") as source, draft.open("xb") as file:
            draft.chmod(0o600)
            shutil.copyfileobj(source, file, _PIECE)
        draft.replace(to)
    finally:
        draft.unlink(missing_ok=True)
