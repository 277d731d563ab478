"""Upgrades on both sides: the answer to the user's, and the asking for one at the target.

Towards the target WebSocket comes first; where the answer says nothing of the request itself, the target may not have
it, and is asked by SPDY. Specification: kubernetes note 3, 4, 5 and 9; RFC 6455 4.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from protocols.kubernetes import status
from protocols.kubernetes.commands import Conversation
from protocols.kubernetes.dial import dial, impersonation
from protocols.kubernetes.request_info import RequestInfo
from proxy.core.errors import TargetPeerError
from proxy.core.gate import Gate
from proxy.core.http.client import TargetConnection
from proxy.core.http.heads import Fields, RequestHead, encode_request, encode_response, words
from proxy.core.http.websocket import accept_key, answer_problem
from proxy.core.session import Input, Permit, Session
from proxy.core.writers import TargetWriter
from proxy.http.dialing import authorization
from proxy.http.links import connect

ANSWER_LIMIT: Final = 256 * 1024  # of a target's refusal: a Status
ANSWER_SECONDS: Final = 60.0  # for a target's answer to a handshake: a kubelet may have to start something
SPDY: Final = "spdy/3.1"
# A 401 of the target is about the gateway's credential; passed on, it would blame the user's token.
NOT_LET_IN: Final = "the target did not accept the gateway's credential; its operator has to look after that"
FLOW: Final = 0  # of a session's first stream
# Answers that say something of the request; others may mean that there is no WebSocket.
FINAL: Final = frozenset({401, 403, 404, 409, 410, 422, 429})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: the subprotocols of WebSocket and of SPDY, the best first."""

    websocket: tuple[str, ...]
    spdy: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Granted:
    """The target has switched. protocol: what it chose."""

    connection: TargetConnection
    websocket: bool
    protocol: str


def accepted(head: RequestHead, protocol: str) -> bytes:
    """Return the answer that grants a user's upgrade."""
    if head.upgrade != "websocket":
        fields: Fields = (("Upgrade", "SPDY/3.1"), ("Connection", "Upgrade"), ("X-Stream-Protocol-Version", protocol))
        return encode_response(101, "Switching Protocols", fields)
    accept = accept_key(head.get("sec-websocket-key") or "")
    fields = (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept))
    if words(head.fields, "sec-websocket-protocol"):
        fields = (*fields, ("Sec-WebSocket-Protocol", protocol))
    return encode_response(101, "Switching Protocols", fields)


async def ask_target(
    gate: Gate, session: Session, permit: Permit, conversation: Conversation, info: RequestInfo, wanted: Wanted,
    head: RequestHead,
) -> Granted | bytes:  # fmt: skip
    """Connect and ask for the upgrade; returns the target's refusal, a Status, where it gives one.

    Raises TargetPeerError, TapeError.
    """
    credential = await gate.credentials.get(session.identity, session.target)
    extra: Fields = (*impersonation(session.target, session.identity), *authorization(credential))
    for websocket in (True, False):
        method = "GET" if websocket else "POST"
        asked = RequestHead(method, head.target, head.fields, upgrade="websocket" if websocket else SPDY)
        method, path, fields = conversation.upstream(asked, info, bool(permit.masks), extra)
        connection = await connect(dial, session.target, credential)
        answer: tuple[bool, bytes] | Granted | None = None
        try:
            key = base64.b64encode(secrets.token_bytes(16)).decode()
            wire = encode_request(method, path, (*fields, *_handshake(websocket, wanted, key)))
            writer = TargetWriter(connection.stream, session)
            if not permit.spent:
                writer.send(permit)
            writer.send(Input(permit, FLOW, b"", wire))
            await writer.flush()
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await _answer(connection, method, websocket, wanted, key)
        except TimeoutError:
            raise TargetPeerError("the target did not answer the handshake in time") from None
        finally:
            if not isinstance(answer, Granted):
                await asyncio.shield(connection.close())
        if isinstance(answer, Granted):
            return answer
        if not websocket or answer[0]:
            return answer[1]
    raise AssertionError("unreachable")


async def _answer(
    connection: TargetConnection, method: str, websocket: bool, wanted: Wanted, key: str
) -> tuple[bool, bytes] | Granted:
    """Read the answer: granted, or whether it is final and what it says."""
    response = await connection.response(method)
    if response.status == 101:
        name = "sec-websocket-protocol" if websocket else "x-stream-protocol-version"
        chosen = response.get(name) or ""
        problem = answer_problem(response, key) if websocket else None
        if problem is None and chosen not in (wanted.websocket if websocket else wanted.spdy):
            problem = f"it chose {chosen[:40]!r}"
        if problem is not None:
            raise TargetPeerError(f"the target's handshake is wrong: {problem}")
        return Granted(connection, websocket, chosen)
    if response.status == 401:
        raise TargetPeerError(NOT_LET_IN)
    body = await connection.body(ANSWER_LIMIT)
    if response.status < 400:  # whatever it says of success: nothing was run
        return False, status.failure(502, f"the target answered {response.status} to a request for streams")
    said = status.read_status(body)
    if said is not None and said.get("status") != "Success":
        return response.status in FINAL, body
    return False, status.failure(response.status, body[:1024].decode("utf-8", "replace"))


def _handshake(websocket: bool, wanted: Wanted, key: str) -> Fields:
    if websocket:
        return (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", key),
            ("Sec-WebSocket-Protocol", ", ".join(wanted.websocket)),
        )
    return (
        ("Content-Length", "0"),
        ("Upgrade", "SPDY/3.1"),
        ("Connection", "Upgrade"),
        *(("X-Stream-Protocol-Version", version) for version in wanted.spdy),
    )


def first(errors: BaseExceptionGroup[Any]) -> BaseException:
    """The failure that made the others."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
