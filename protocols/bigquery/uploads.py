"""Data that comes with a load job: in one request (multipart), or in pieces under an address of its own (resumable).

The load is decided on when its configuration comes; its data rides on that permit. The address that the target gives is
made the gate's, or pieces would go past it with the user's token; its id belongs to who began it. Pieces are passed
as they come, and are on the tape with their SHA-256. Where a load is held, the request that begins it waits: no data
has come yet.

Left out: asking the service how far an upload has come in any other form than "bytes */N".
Source: bigquery note 3; "Upload data", resumable and multipart uploads; RFC 9110 14.4.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

from protocols.bigquery import holds
from protocols.bigquery.bodies import decoded, encoded, write_object
from protocols.bigquery.commands import command_of, poll_of, taped
from protocols.bigquery.held import labels_of, settle_open
from protocols.bigquery.ownership import Failure, job_key, learned, marked, refusal, repeat, shown
from protocols.bigquery.polling import masked_errors, tell
from protocols.bigquery.requests import Asked
from protocols.bigquery.running import NO_ESTIMATE, check_ids, left_behind, settle_insert
from protocols.bigquery.turn import CUT, Missing, Turn
from protocols.bigquery.upstream import ANSWER_LIMIT, JSON
from proxy.core.errors import TargetPeerError
from proxy.core.http.heads import BadRequest, Fields
from proxy.core.jobs import Entry, Key
from proxy.core.session import Permit
from proxy.core.warehouse import Analysis

_PATH: Final = "/upload/bigquery/v2/projects/{project}/jobs"
_CHUNK_FIELDS: Final = ("content-range", "content-type")


async def serve_upload(turn: Turn, asked: Asked) -> bool:
    """Serve the request that begins an upload. Raises BadRequest, Missing, Refused, TargetPeerError, TapeError."""
    await check_ids(turn, asked, Analysis())
    name = asked.id("job") or holds.job_name(turn.owner, "", "", secrets.token_hex(16))
    reference = {"projectId": asked.project, "jobId": name} | ({"location": asked.location} if asked.location else {})
    body = {**(asked.body or {}), "jobReference": reference}
    key = job_key(turn.target_name, asked.project, name, asked.location)
    entry = Entry(
        key, turn.owner, state="claimed", created=turn.gate.clock(), mark=secrets.token_hex(16),
        digest=holds.digest(turn.target_name, asked.project, asked.location, body), session=turn.session.id,
    )  # fmt: skip
    data = taped(turn.head, asked.content if asked.media is None else turn.body)
    command = command_of(asked, Analysis(), NO_ESTIMATE, turn.flow, data)
    await turn.refuse_early(command)
    known = await turn.jobs.claim(entry)
    if known is not None:
        case = repeat(known, turn.owner, entry.digest)
        return await tell(turn, asked, None, refusal(case, asked.project, name, asked.location))
    sent = done = False
    try:
        permit = await turn.decide(command)
        entry = replace(entry, state="sent", rule=permit.rule, masks=permit.masks)
        await turn.jobs.settle(key, turn.owner, "sent", rule=permit.rule, masks=permit.masks)
        sent = True
        document = write_object(marked(body, entry.mark, labels_of(turn.session)))
        try:
            if asked.media is not None:
                kept = await _multipart(turn, asked, permit, entry, document, asked.media)
            else:
                kept = await _resumable(turn, asked, permit, entry, document)
        except CUT:
            turn.cut_short(permit)
            raise
        done = True
        return kept
    finally:
        if not done:
            await asyncio.shield(left_behind(turn, key, sent))


async def _multipart(
    turn: Turn, asked: Asked, permit: Permit, entry: Entry, document: bytes, media: tuple[str, bytes]
) -> bool:
    """Send configuration and data in one request, written anew."""
    kind, data = media
    boundary = secrets.token_hex(24)
    body = b"".join((
        f"--{boundary}\r\nContent-Type: {JSON}; charset=UTF-8\r\n\r\n".encode(), document,
        f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode(), data, f"\r\n--{boundary}--\r\n".encode(),
    ))  # fmt: skip
    # The data is the user's, and is on the tape: his request was, whole.
    fields: Fields = (("Accept", JSON), ("Content-Type", f"multipart/related; boundary={boundary}"))
    response, answer = await turn.whole(
        asked, permit, body, safe=True, target=_target(asked, "multipart"), fields=fields
    )
    turn.content = (len(data), hashlib.sha256(data).hexdigest())
    return await settle_insert(turn, asked, permit, entry, response, answer)


async def _resumable(turn: Turn, asked: Asked, permit: Permit, entry: Entry, document: bytes) -> bool:
    """Begin an upload in pieces; its address becomes the gate's."""
    fields = (*turn.fields(permit, asked),)
    response, answer = await turn.whole(
        asked, permit, document, safe=False, target=_target(asked, "resumable"), fields=fields
    )
    location = response.get("location")
    if response.status != 200 or location is None:
        await turn.jobs.forget(entry.key, turn.owner)
        if response.status < 400:
            raise TargetPeerError("the target's answer names no address for the upload")
        return await turn.reply(asked, permit, response, answer, sent=len(document))
    upload = _upload_in(location)
    key = Key(turn.target_name, "upload", asked.project, upload)
    if not key.sane:
        raise TargetPeerError("the target's answer names no upload")
    await turn.jobs.add([Entry(key, turn.owner, rule=permit.rule, masks=permit.masks, parent=entry.key.id,
                               mark=entry.mark, session=turn.session.id)])  # fmt: skip
    path = _PATH.format(project=quote(asked.project, safe=":"))
    ours = f"{turn.root}{path}?uploadType=resumable&upload_id={quote(upload, safe='')}"
    return await turn.reply(asked, permit, response, answer, more=(("Location", ours),), sent=len(document))


def _upload_in(location: str) -> str:
    """The id of the upload that an address of the target's names, "" for none."""
    try:
        return next((value for name, value in parse_qsl(urlsplit(location).query) if name == "upload_id"), "")
    except ValueError:  # no address
        return ""


def _target(asked: Asked, kind: str) -> str:
    return f"{_PATH.format(project=quote(asked.project, safe=':'))}?uploadType={kind}&prettyPrint=false"


# -- pieces ---------------------------------------------------------------------------------------------


async def serve_chunk(turn: Turn, asked: Asked) -> bool:
    """Pass a piece of an upload, or its end. Raises Missing, Refused, BadRequest, TargetPeerError, TapeError."""
    key = Key(turn.target_name, "upload", asked.project, asked.upload_id)
    entry = await turn.jobs.find(key, turn.owner) if key.sane else None
    if entry is None:
        raise Missing(Failure(404, "notFound", "Not found: upload"))
    length = turn.head.length
    if length is None:
        raise BadRequest(411, "a piece of an upload says its length")
    what = f"{turn.head.get('content-range') or f'{length} bytes'} of the upload of {entry.parent}"
    permit = await turn.decide(poll_of(asked, what, turn.flow, taped(turn.head, b""), "upload"), entry.masks)
    try:
        return await _passed(turn, asked, permit, entry, length)
    except CUT:
        turn.cut_short(permit)
        raise


async def _passed(turn: Turn, asked: Asked, permit: Permit, entry: Entry, length: int) -> bool:
    path = _PATH.format(project=quote(asked.project, safe=":"))
    target = f"{path}?uploadType=resumable&upload_id={quote(asked.upload_id, safe='')}"
    fields = tuple((name, value) for name, value in turn.head.fields if name.lower() in _CHUNK_FIELDS)
    digest = hashlib.sha256()
    sending = turn.upstream.stream(
        permit, turn.flow, asked.method.http, target, fields, length, turn.connection.pieces(), digest.update
    )
    async with sending as (link, response):
        answer = await link.connection.body(ANSWER_LIMIT)
    job: dict[str, Any] | None = decoded(answer) if response.status in (200, 201) and answer.strip() else None
    turn.content = (length, digest.hexdigest())
    if job is None or "jobReference" not in job:
        return await turn.reply(asked, permit, response, answer, sent=length)
    await _settled(turn, asked, entry, job)
    body = masked_errors(turn, permit, encoded(shown(job, turn.owner)))
    await turn.jobs.forget(entry.key, turn.owner)
    return await turn.reply(asked, permit, replace(response, length=len(body)), body, sent=length)


async def _settled(turn: Turn, asked: Asked, entry: Entry, job: dict[str, Any]) -> None:
    """The last piece has made the job: the target has it from now on."""
    reference = job.get("jobReference")
    place = str(reference.get("location") or "") if isinstance(reference, dict) else ""
    key = job_key(turn.target_name, asked.project, entry.parent, place)
    found = await turn.jobs.find(key, turn.owner)
    if found is not None and found.state == "sent":
        await settle_open(turn.jobs, found, job)
    elif found is None:  # asked for after a restart, before the target had it
        await turn.jobs.add([replace(entry, key=key, parent="", state="open", **learned(job))])
