"""What makes the node's log worth something to others: its heads in places that the operator does not rule.

About once a minute the log's latest checkpoint goes to every anchor (a directory on another machine, or a bucket that
does not overwrite) and to every witness, whose cosignatures are kept beside the log. A failure is told to the log of
the gateway, loudly after ten minutes; it never makes a session wait.

One for each gateway, in its first process; everything that blocks runs in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import structlog

from proxy.config import Loaded
from proxy.core.errors import ConfigError
from recorder.anchor import Anchor, AnchorStore, DirectoryStore, object_name
from recorder.checkpoint import Checkpoint
from recorder.errors import FormatError
from recorder.nodelog import NodeLog
from recorder.vault import AlreadyThere, Bucket, BucketError
from recorder.witness import Cosigner, Witness, WitnessClient

LOOK_SECONDS: Final = 5.0  # the anchors and witnesses themselves know when it is time
PUT_SECONDS: Final = 60.0  # a checkpoint is a few hundred bytes

log = structlog.get_logger(__name__)


class BucketStore:
    """Anchors in a bucket: one object for each checkpoint, created and never replaced."""

    def __init__(self, bucket: Bucket, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._bucket = bucket
        self._loop = loop

    def put(self, checkpoint: Checkpoint, wall_ns: int) -> None:
        """Called in a thread; the bucket lives on the loop. Raises OSError."""
        work = self._put(object_name(checkpoint, wall_ns), checkpoint.encode())
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop()).result(PUT_SECONDS)
        except (BucketError, TimeoutError) as error:
            raise OSError(str(error) or "no answer in a minute") from error

    async def _put(self, name: str, data: bytes) -> None:
        try:
            await self._bucket.create(name, data, sha256(data).hexdigest())
        except AlreadyThere:  # our own, from before a restart, as signatures do not vary; or what somebody put there
            found = bytearray()
            async for piece in self._bucket.get(name):
                found += piece
                if len(found) > len(data):
                    break
            if found != data:
                raise BucketError(f"{name}: the bucket has another object of this name") from None


class Notary:
    """See the module. Raises ConfigError."""

    def __init__(self, node_log: NodeLog, loaded: Loaded) -> None:
        self.log = node_log
        self._loop: asyncio.AbstractEventLoop | None = None
        self._anchors = [
            Anchor(node_log.checkpoint, self._store(one.url, one.options, loaded), partial(_tell, "anchor"))
            for one in loaded.config.recorder.anchors
        ]
        clients = []
        for number, section in enumerate(loaded.config.recorder.witnesses):
            try:
                clients.append(WitnessClient(Witness.of(section.key, section.url)))
            except (ValueError, FormatError) as error:
                raise ConfigError(
                    loaded.document.error(("recorder", "witnesses", number), getattr(error, "reason", str(error)))
                ) from error
        self._cosigner = Cosigner(node_log, clients, partial(_tell, "witness")) if clients else None

    def _store(self, url: str, options: dict[str, Any], loaded: Loaded) -> AnchorStore:
        if url.startswith("file:///"):
            return DirectoryStore(Path(url.removeprefix("file://")))
        from proxy.vault.bucket import open_bucket
        from proxy.vault.settings import options_of

        return BucketStore(
            open_bucket(url, options_of(options, loaded.resolve, where="recorder.anchors")), self._running
        )

    def _running(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None
        return self._loop

    async def run(self) -> None:
        """Anchor and have cosigned, until it is cancelled."""
        self._loop = asyncio.get_running_loop()
        while self._anchors or self._cosigner is not None:
            await asyncio.to_thread(self._tick)
            await asyncio.sleep(LOOK_SECONDS)

    def _tick(self) -> None:
        for anchor in self._anchors:
            anchor.tick()
        if self._cosigner is not None:
            self._cosigner.tick()


def _tell(what: str, event: str, text: str) -> None:
    if event == "recovered":
        log.info(f"{what}-works-again", why=text)
    elif event in ("alarm", "fork"):
        log.error(f"{what}-{event}", why=text)
    else:
        log.warning(f"{what}-failed", why=text)
