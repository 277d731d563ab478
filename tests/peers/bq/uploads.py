"""Uploads of load jobs: multipart and resumable, sent on to the emulator as one multipart request.

Source: cloud.google.com/bigquery/docs/reference/api-uploads. A CSV whose first row is data gets a header row on the
way, as the emulator takes every first row for one.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from tests.peers.bq.http import Answer, ApiError, Emulator, Request
from tests.peers.bq.jobs import Job, Jobs

_BOUNDARY: Final = re.compile(r'boundary=(?:"([^"]+)"|([^\s;]+))', re.IGNORECASE)
_RANGE: Final = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(slots=True)
class _Upload:
    project: str
    body: dict[str, Any]
    user: str
    data: bytearray = field(default_factory=bytearray)


class Uploads:
    """The uploads that are on their way."""

    def __init__(self, emulator: Emulator, jobs: Jobs) -> None:
        self._emulator = emulator
        self._jobs = jobs
        self._uploads: dict[str, _Upload] = {}

    async def answer(self, project: str, request: Request) -> Answer:
        """Answer a request for /upload/bigquery/v2/projects/{project}/jobs."""
        kind = request.one("uploadType")
        if request.method == "PUT" and kind in ("", "resumable"):
            return await self._chunk(request)
        if request.method == "POST" and kind == "multipart":
            body, data = _parts(request)
            return await self._load(_Upload(project, body, request.user, bytearray(data)), request)
        if request.method == "POST" and kind == "resumable":
            name = f"AB{uuid.uuid4().hex}"
            self._uploads[name] = _Upload(project, request.json(), request.user)
            where = f"{request.base}/upload/bigquery/v2/projects/{project}/jobs?uploadType=resumable&upload_id={name}"
            return Answer(200, b"", {"Location": where, "X-GUploader-UploadID": name})
        raise ApiError(400, "invalid", f"Unsupported uploadType: {kind or 'media'}")

    async def _chunk(self, request: Request) -> Answer:
        name = request.one("upload_id")
        upload = self._uploads.get(name)
        if upload is None:
            raise ApiError(404, "notFound", "Not found: upload")
        found = _RANGE.fullmatch(request.headers.get("content-range", f"bytes 0-{len(request.body) - 1}/*"))
        if found is None:
            raise ApiError(400, "invalid", "Failed to parse Content-Range header.")
        first, _, total = found.groups()
        whole = "content-range" not in request.headers
        if first is not None:
            if int(first) != len(upload.data):
                return Answer(503, b"", {"X-GUploader-UploadID": name})
            upload.data += request.body
        if whole or total == str(len(upload.data)):
            del self._uploads[name]
            return await self._load(upload, request)
        headers = {"X-GUploader-UploadID": name}
        if upload.data:
            headers["Range"] = f"bytes=0-{len(upload.data) - 1}"
        return Answer(308, b"", headers)

    async def _load(self, upload: _Upload, request: Request) -> Answer:
        configuration = upload.body.get("configuration", {})
        name = upload.body.get("jobReference", {}).get("jobId") or f"job_{uuid.uuid4().hex[:28]}"
        self._jobs.reserve(upload.project, name)
        data = await self._with_header(upload.project, configuration.get("load", {}), bytes(upload.data))
        boundary = uuid.uuid4().hex
        kinds = "Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary"
        parts = [
            f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{json.dumps(upload.body)}\r\n".encode(),
            f"--{boundary}\r\n{kinds}\r\n\r\n".encode(),
            data, f"\r\n--{boundary}--\r\n".encode(),
        ]  # fmt: skip
        where = f"/upload/bigquery/v2/projects/{upload.project}/jobs"
        kind = {"content-type": f"multipart/related; boundary={boundary}"}
        said = await self._emulator.ask("POST", where, b"".join(parts), [("uploadType", "multipart")], kind)
        if "jobReference" not in said.object:
            return said
        there = said.object["jobReference"]["jobId"]
        job = self._jobs.keep(Job(upload.project, name, there, "load", configuration, upload.user), said.object)
        return Answer(200, await self._jobs.resource(job, request.base))

    async def _with_header(self, project: str, load: dict[str, Any], data: bytes) -> bytes:
        skipped = int(load.get("skipLeadingRows") or 0)
        if load.get("sourceFormat", "CSV") != "CSV" or skipped == 1 or load.get("autodetect"):
            return data
        fields = load.get("schema", {}).get("fields")
        if not fields:
            given = load["destinationTable"]
            where = (given.get("projectId", project), "datasets", given["datasetId"], "tables", given["tableId"])
            fields = (await self._emulator.api("GET", *where)).object.get("schema", {}).get("fields", [])
        rest = data.split(b"\n", skipped)[-1]
        return load.get("fieldDelimiter", ",").join(each["name"] for each in fields).encode() + b"\n" + rest


def _parts(request: Request) -> tuple[dict[str, Any], bytes]:
    """The JSON part and the data part, whose type may be */*. Source: RFC 2046 5.1.1."""
    found = _BOUNDARY.search(request.headers.get("content-type", ""))
    if found is None:
        raise ApiError(400, "parseError", "Multipart body has no boundary.")
    _, *parts, _ = (b"\r\n" + request.data).split(b"\r\n--" + (found[1] or found[2]).encode())
    if len(parts) != 2:
        raise ApiError(400, "parseError", "Multipart body must have two parts.")
    (_, _, text), (_, _, data) = (part.partition(b"\r\n\r\n") for part in parts)
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ApiError(400, "parseError", "Parse Error") from error
    return body, data
