"""Answers of the stand-in that go on: watches, and logs that are followed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.peers.kube import protobuf
from tests.peers.kube.backend import Backend, Place
from tests.peers.kube.http import ApiError, Connection, Request
from tests.peers.kube.objects_api import Asked, ObjectsApi
from tests.peers.kube.store import matches
from tests.peers.kube.tables import Object

WATCH_SECONDS: Final = 1800.0  # kube-apiserver ends a watch after half an hour to an hour
BOOKMARK_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 0.05  # how often a followed log is looked at


class Watch:
    """One watch. Ends with the time that was asked for, or with the user."""

    def __init__(self, api: ObjectsApi, connection: Connection, request: Request, asked: Asked) -> None:
        self._api = api
        self._connection = connection
        self._request = request
        self._asked = asked
        self._first = True
        protobufs = request.accept.startswith(protobuf.MEDIA_TYPE) and asked.resource.kind in protobuf.KUBERNETES
        self._protobuf = protobufs

    async def serve(self) -> bool:
        """Send events to the end. Raises ApiError."""
        request, asked, store = self._request, self._asked, self._api.store
        fields, labels = request.one("fieldSelector"), request.one("labelSelector")
        seconds = float(request.one("timeoutSeconds", "0") or 0) or WATCH_SECONDS
        deadline = time.monotonic() + seconds
        media = f"{protobuf.MEDIA_TYPE};stream=watch" if self._protobuf else "application/json"
        version = int(request.one("resourceVersion", "0") or 0)
        if store.changes and 0 < version < store.changes[0].version - 1:
            raise ApiError(410, "Expired", "too old resource version")
        await self._connection.start_chunks(media)
        told_all = request.flag("sendInitialEvents")  # informers since 1.35 list by watching
        if version == 0 or told_all:
            for item in store.select(asked.resource.plural, asked.namespace, fields, labels):
                await self._event("ADDED", item)
            version = store.version
            if told_all:
                await self._bookmark(whole=True)
        while (left := deadline - time.monotonic()) > 0 and not self._connection.gone:
            for change in store.since(version, asked.resource.plural, asked.namespace):
                if matches(change.item, fields, labels):
                    await self._event(change.verb, change.item)
            version = store.version
            try:
                async with asyncio.timeout(min(left, BOOKMARK_SECONDS)), store.changed:
                    while store.version <= version:
                        await store.changed.wait()
            except TimeoutError:
                if request.flag("allowWatchBookmarks") and not self._protobuf and time.monotonic() < deadline:
                    await self._bookmark()
        await self._connection.chunk()
        return True

    async def _event(self, verb: str, item: Object) -> None:
        if self._protobuf:
            await self._connection.chunk(protobuf.encode_event(verb, item))
            return
        body = item
        if "as=Table" in self._request.accept:
            body = self._api.table(self._request, self._asked, [item], head=self._first)
        self._first = False
        await self._connection.chunk(json.dumps({"type": verb, "object": body}).encode() + b"\n")

    async def _bookmark(self, *, whole: bool = False) -> None:
        metadata: Object = {"resourceVersion": str(self._api.store.version)}
        if whole:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        item = {"kind": self._asked.resource.kind, "apiVersion": self._asked.group_version, "metadata": metadata}
        await self._connection.chunk(json.dumps({"type": "BOOKMARK", "object": item}).encode() + b"\n")


async def serve_log(connection: Connection, request: Request, place: Place, backend: Backend, pods: set[str]) -> bool:
    """Send a container's log, and what comes after it where it is followed. pods: the uids of those that there are."""
    await backend.start(place)
    file = backend.log_file(place)
    tail = request.one("tailLines")
    await connection.start_chunks("text/plain")
    times = request.flag("timestamps")
    position = 0
    while True:
        position, lines = _read(file, position, times)
        if tail:
            lines = lines[-int(tail) :] if int(tail) else []
            tail = ""
        if lines:
            await connection.chunk(b"".join(lines))
        if not request.flag("follow") or connection.gone:
            break
        if place.pod["metadata"]["uid"] not in pods and not lines:
            break
        await asyncio.sleep(LOOK_SECONDS)
    await connection.chunk()
    return True


def _read(file: Path, position: int, times: bool) -> tuple[int, list[bytes]]:
    """Return the log's whole lines from a position on, and the next one."""
    if not file.exists():
        return position, []
    with file.open("rb") as log:
        log.seek(position)
        data = log.read()
    data = data[: data.rfind(b"\n") + 1]
    return position + len(data), list(_texts(data, times))


def _texts(data: bytes, times: bool) -> Iterator[bytes]:
    for line in data.splitlines():
        stamp, _, mark, text = line.split(b" ", 3)
        yield (stamp + b" " if times else b"") + text + (b"\n" if mark == b"F" else b"")
