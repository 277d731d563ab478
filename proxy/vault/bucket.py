"""Buckets: a store behind obstore (S3, GCS, Azure), or a directory, as recorder.vault.Bucket.

StoreBucket writes with one conditional PUT (If-None-Match: *, x-goog-if-generation-match: 0) and never in parts: a
part upload that dies leaves invisible pieces, and has no condition on most stores. The store's own retries are few: the
vault has a queue and a back-off of its own. S3 gets the SHA-256 of the content as a header and refuses what does not
match; ETags that are an MD5 (S3 without KMS, GCS) tell what the store has without reading it back.

DirectoryBucket is ours although obstore has one: it makes files durable (fsync, link, fsync of the folder) before it
says so, for the local copy is deleted on its word. Its names are made of safe characters and never leave the folder.

obstore is imported when a bucket is opened: it costs 20 ms that no other start of gatecast should pay.
Source: obstore 0.12; S3 API PutObject; GCS XML API, PUT object; Azure Blob Service, Put Blob.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from proxy.core.errors import ConfigError
from recorder.vault import AlreadyThere, Bucket, BucketError, ObjectInfo

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

SCHEMES: Final = ("s3", "gs", "az", "file")
# A segment of 128 MiB at 2 Mbit/s; obstore's own default of 30 s would take 36 Mbit/s.
REQUEST_SECONDS: Final = 600
CONNECT_SECONDS: Final = 10
RETRIES_LIMIT: Final = 2
RETRY_SECONDS: Final = 60
PIECE_BYTES: Final = 1 << 20
ERROR_LIMIT: Final = 300  # characters of a store's error that are kept: it goes to logs and to vault.db
SHA256_KEY: Final = "sha256"  # the name of the object's attribute (x-amz-meta-sha256 and its like)
# What goes to the HTTP client and not to the store.
CLIENT_OPTIONS: Final = frozenset(
    {"allow_http", "connect_timeout", "http1_only", "proxy_url", "proxy_ca_certificate", "timeout", "user_agent"}
)
_NAME: Final = re.compile(r"[A-Za-z0-9_+=@-][A-Za-z0-9_.+=@-]*(/[A-Za-z0-9_+=@-][A-Za-z0-9_.+=@-]*)*")
_MD5: Final = re.compile(r'"?([0-9a-f]{32})"?')


def open_bucket(url: str, options: Mapping[str, str] | None = None) -> Bucket:
    """Open the bucket of a URL: s3://bucket/prefix, gs://, az://container/prefix, file:///directory.

    options are obstore's, by name, and CLIENT_OPTIONS. Raises ConfigError; nothing is sent yet.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/") or options:
            raise ConfigError(f"{url}: write file:///directory; it takes no options")
        return DirectoryBucket(Path(unquote(parts.path)))
    if parts.scheme not in SCHEMES or not parts.netloc or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"{url}: write s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///dir")
    return StoreBucket(url, options or {})


class StoreBucket:
    """A bucket of S3, Google Cloud Storage or Azure, or of what speaks like one of them."""

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        """Raises ConfigError for an option that obstore does not know."""
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise ConfigError("the vault needs obstore; install gatecast with its dependencies") from error
        self.url = url
        self._obstore = obstore
        self._scheme = urlsplit(url).scheme
        client: dict[str, Any] = {"timeout": f"{REQUEST_SECONDS}s", "connect_timeout": f"{CONNECT_SECONDS}s"}
        config: dict[str, Any] = {"checksum_algorithm": "SHA256"} if self._scheme == "s3" else {}
        for name, value in options.items():
            (client if name in CLIENT_OPTIONS else config)[name] = _typed(name, value)
        retry = {"max_retries": RETRIES_LIMIT, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
        try:
            self._store: ObjectStore = from_url(url, config=config, client_options=client, retry_config=retry)  # type: ignore[call-overload]
        except Exception as error:  # fails closed: obstore raises classes of its own, ValueError and KeyError
            raise ConfigError(f"{url}: {_said(error)}") from None

    async def create(self, name: str, data: bytes, sha256: str) -> None:
        """See Bucket."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            await self._obstore.put_async(
                self._store, name, data, attributes={SHA256_KEY: sha256}, mode="create", use_multipart=False
            )
        except (AlreadyExistsError, PreconditionError):
            raise AlreadyThere(name) from None
        except Exception as error:  # fails closed: whatever it was, the object counts as not written
            raise BucketError(_said(error)) from None

    async def head(self, name: str) -> ObjectInfo | None:
        """See Bucket."""
        try:
            # Of get's kind, as a plain head does not give the attributes.
            found = await self._obstore.get_async(self._store, name, options={"head": True})
        except FileNotFoundError:
            return None
        except Exception as error:  # fails closed
            raise BucketError(_said(error)) from None
        etag = found.meta.get("e_tag") or ""
        md5 = _MD5.fullmatch(etag) if self._scheme in ("s3", "gs") else None
        version = (found.meta.get("version") or "") if self._scheme != "gs" else ""  # GCS counts generations anyhow
        said = str(found.attributes.get(SHA256_KEY, ""))
        return ObjectInfo(found.meta["size"], etag, md5[1] if md5 else "", said, version)

    async def get(self, name: str) -> AsyncIterator[bytes]:
        """See Bucket."""
        found = await self._mapped(self._obstore.get_async(self._store, name))
        stream = found.stream(min_chunk_size=PIECE_BYTES)
        while True:
            try:
                piece = await anext(stream)
            except StopAsyncIteration:
                return
            except Exception as error:  # fails closed
                raise BucketError(_said(error)) from None
            yield bytes(piece)

    async def delete(self, name: str) -> None:
        """See Bucket."""
        with suppress(FileNotFoundError):
            try:
                await self._obstore.delete_async(self._store, name)
            except FileNotFoundError:
                raise
            except Exception as error:  # fails closed: it counts as still there
                raise BucketError(_said(error)) from None

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """See Bucket."""
        stream = self._obstore.list(self._store, prefix=prefix).__aiter__()
        while True:
            try:
                found = await anext(stream)
            except StopAsyncIteration:
                return
            except Exception as error:  # fails closed
                raise BucketError(_said(error)) from None
            for meta in found:
                yield meta["path"], meta["size"]

    async def _mapped(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except FileNotFoundError:
            raise BucketError("the object is not there") from None
        except Exception as error:  # fails closed
            raise BucketError(_said(error)) from None


class DirectoryBucket:
    """A bucket in a folder, of another disk for preference: NFS, a mounted archive, a test."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def create(self, name: str, data: bytes, sha256: str) -> None:
        """See Bucket."""
        try:
            await asyncio.to_thread(self._create, self._path(name), data)
        except FileExistsError:
            raise AlreadyThere(name) from None
        except OSError as error:
            raise BucketError(f"{name}: {error.strerror}") from error

    async def head(self, name: str) -> ObjectInfo | None:
        """See Bucket. It has no checksum of its own: what was written is read back."""
        try:
            said = await asyncio.to_thread(self._path(name).stat)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BucketError(f"{name}: {error.strerror}") from error
        return ObjectInfo(said.st_size)

    async def get(self, name: str) -> AsyncIterator[bytes]:
        """See Bucket."""
        try:
            with self._path(name).open("rb") as file:
                while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                    yield piece
        except OSError as error:
            raise BucketError(f"{name}: {error.strerror}") from error

    async def delete(self, name: str) -> None:
        """See Bucket."""
        try:
            await asyncio.to_thread(self._delete, self._path(name))
        except OSError as error:
            raise BucketError(f"{name}: {error.strerror}") from error

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """See Bucket."""
        for found in await asyncio.to_thread(self._list, self._path(prefix)):
            yield found

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise BucketError(f"{name[:100]!r} is no object's name")
        return self.root / name

    def _create(self, path: Path, data: bytes) -> None:
        missing = [folder for folder in path.parents if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.link(draft, path)  # fails where there is a file: nothing is overwritten
        finally:
            draft.unlink()
        for folder in (path.parent, *(folder.parent for folder in missing)):
            _sync_folder(folder)

    def _delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _sync_folder(path.parent)

    def _list(self, folder: Path) -> Sequence[tuple[str, int]]:
        found = []
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                found.append((path.relative_to(self.root).as_posix(), path.stat().st_size))
        return found


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _typed(name: str, value: str) -> object:
    """obstore takes booleans for some client options, text for all else."""
    return value == "true" if name in CLIENT_OPTIONS and value in ("true", "false") else value


def _said(error: Exception) -> str:
    """The first line of a store's error: behind it obstore prints its requests, whose headers hold credentials."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = re.sub(r"\?\S*", "?...", lines[0])  # a query may be signed
    return line[:ERROR_LIMIT]
