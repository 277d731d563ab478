"""Attacks on Kubernetes over real sockets: users with a raw TLS connection, and targets that answer what they like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from proxy.core.events import Command
from proxy.core.gate import Decision
from proxy.core.parties import Identity
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict
from proxy.masking import Masking
from recorder.tape import Kind
from tests.fakes import SECRET, TOKEN, FakeApprovals
from tests.kubernetes.attacking import (
    EXEC,
    OTHER_TOKEN,
    PODS,
    Asked,
    Stage,
    Tokens,
    ok,
    request,
    staged,
    upgrade,
)

MASKING = Masking(b"k" * 32, {"canary": "hunter2[^ ]*"})
DETECTED = Mask("r", detectors=("canary",))


def masked(command: Command) -> Verdict:
    return Allow("masks", (DETECTED, Mask("s", fields=("secrets:data.*",))))


def run(test: Callable[[Stage], Any], *args: Any, **more: Any) -> None:
    async def main() -> None:
        async with staged(*args, **more) as stage:
            await test(stage)

    asyncio.run(main())


# -- requests that are two ------------------------------------------------------------------------------

HIDDEN = b"DELETE /api/v1/namespaces/shop/pods/api HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_message_that_two_readers_cut_differently_never_reaches_the_target() -> None:
    start = f"POST /k8s/shop{PODS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    heads = [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 63\r\n\r\n",
        "Content-Length: 4, 4\r\n\r\n",
        "Content-Length: +4\r\n\r\n",
        "Content-Length: 0x4\r\n\r\n",
        "Content-Length: 4 4\r\n\r\n",
        "Content-Length: -1\r\n\r\n",
        "Content-Length:\r\n\r\n",
        "Content-Length : 4\r\n\r\n",
        "Content_Length: 4\r\nContent-Length: x\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n",
        "Transfer-Encoding: identity, chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n",
        "Transfer-Encoding: \x0bchunked\r\n\r\n",
        "Transfer-Encoding:\r\n chunked\r\n\r\n",
        "X: y\r\n Content-Length: 4\r\n\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n\r\n",
        "X: y\x00\r\n\r\n",
        "\x01: y\r\n\r\n",
        ": y\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nX\n\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0_1\r\nx\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
        "Transfer-Encoding: chunked\r\n\r\n1\r\nxx0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "Transfer-Encoding: chunked\r\nX: " + "y" * 70_000 + "\r\n\r\n",
        "Host: y\r\nContent-Length: 0\r\n\r\n",
        "Expect: 200-maybe\r\nContent-Length: 0\r\n\r\n",
    ]

    async def test(stage: Stage) -> None:
        for head in heads:
            got = await stage.ask(start.encode() + head.encode("latin-1") + b"0\r\n\r\n" + HIDDEN)
            assert got.status in (400, 413, 417, 431, 501), (head, got)
            assert got.message
        assert stage.asked == [] and stage.connections == 0, stage.asked

    run(test)


def test_what_reaches_the_target_is_one_request_for_each_decision() -> None:
    """Bodies where none belong, methods that override, hops that are named, folded and repeated fields."""
    tricky = [
        request("GET", PODS, body=HIDDEN),
        request("GET", PODS, "X-HTTP-Method-Override: DELETE", "X-Method-Override: DELETE", "X-HTTP-Method: DELETE"),
        request("GET", PODS, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"),
        request("GET", PODS, "Connection: close, Authorization"),
        request("GET", PODS, "Connection: Impersonate-User"),
        request("GET", PODS, "Connection: Upgrade", "Upgrade: websocket", "Upgrade: SPDY/3.1"),
        request("GET", PODS, "Upgrade: websocket"),
        request("GET", PODS, "TE: trailers", "Trailer: Authorization"),
        request("GET", PODS, "Proxy-Connection: keep-alive", "Keep-Alive: 9", "Proxy-Authorization: Basic eDp5"),
        request("GET", PODS, "X-Forwarded-For: 1.2.3.4", "Forwarded: for=1.2.3.4", "X-Original-URL: /api/v1/secrets"),
        request("GET", PODS, "X-Rewrite-URL: /api/v1/secrets", "Cookie: a=b", "Via: 1.1 x", "Max-Forwards: 0"),
        request("GET", PODS, "User-Agent: a", "User-Agent: b", "Audit-ID: x"),
        request("GET", PODS, "Accept-Encoding: gzip", "Range: bytes=0-1", "If-None-Match: *"),
        request("GET", PODS, "Expect: 100-continue"),
    ]

    async def test(stage: Stage) -> None:
        for data in tricky:
            before = len(stage.asked), len(stage.commands)
            got = await stage.ask(data + HIDDEN)
            asked = stage.asked[before[0] :]
            assert len(asked) == (1 if got.status == 200 else 0), (data, got, asked)
            assert len(asked) <= len(stage.commands) - before[1]
            for one in asked:
                assert (one.method, one.target, one.body) == ("GET", PODS, b""), (data, one)
                names = [name for name, _ in one.headers]
                assert names.count("authorization") == names.count("host") == 1
                assert one.get("authorization") == f"Bearer {SECRET}"
                allowed = {"host", "authorization", "user-agent", "audit-id", "accept-encoding", "if-none-match"}
                assert set(names) <= allowed, (data, names)
        assert stage.faults == [], stage.faults

    run(test)


def test_nobody_speaks_for_somebody_else() -> None:
    names = [
        "Impersonate-User", "impersonate-group", "IMPERSONATE-UID", "Impersonate-Extra-scopes", "Impersonate_User",
        "X-Remote-User", "x_remote_group", "X-Remote-Extra-a", "X-Remote-Uid", "Impersonate-", "Impersonate_Extra_%2f",
    ]  # fmt: skip

    async def test(stage: Stage) -> None:
        for name in names:
            got = await stage.ask(request("GET", PODS, f"{name}: system:admin"))
            assert got.status == 403 and "gatecast" in got.message, name
            for data in (f"{name} : system:admin", f"X: y\r\n {name}: system:admin", f"{name}\t: x"):
                assert (await stage.ask(request("GET", PODS, data))).status == 400, data
        assert stage.asked == []
        for name in ("Impersonate", "X-Remote", "ImpersonateUser", "X-Forwarded-User"):
            assert (await stage.ask(request("GET", PODS, f"{name}: system:admin"))).status == 200
        assert all("admin" not in str(asked.headers) for asked in stage.asked) and len(stage.asked) == 4

    run(test)


def test_half_a_request_is_no_beginning_of_the_next_one() -> None:
    """A user who leaves in the middle of a body that is passed on must not leave its connection to the next."""
    path = "/api/v1/namespaces/shop/services/mine/proxy/"

    async def test(stage: Stage) -> None:
        user = await stage.user()
        user.send(request("POST", path, "Content-Length: 1000") + b"x" * 10)
        await stage.until(lambda: stage.connections == 1 and bool(stage.commands))
        await asyncio.sleep(0.1)  # the beginning is on its way to the target
        user.close()
        await stage.until(lambda: stage.served == 1)
        got = await stage.ask(request("GET", PODS, token=OTHER_TOKEN))
        assert got.status == 200
        assert [(asked.method, asked.target, asked.body) for asked in stage.asked] == [("GET", PODS, b"")]
        assert stage.connections == 2, "the connection with half a request was used again"

    run(test)


def test_an_answer_that_nobody_waited_for_is_not_the_next_users() -> None:
    """A user who leaves while its request is being written: the answer is on its way to nobody."""

    async def test(stage: Stage) -> None:
        started = asyncio.Event()
        first = [True]

        async def slow(asked: Asked) -> None:
            if first.pop() if first else False:
                started.set()
                await asyncio.sleep(0.2)
                asked.say(ok(b'{"kind":"Secret","whose":"anas"}'))
                return
            asked.say(ok(b'{"kind":"Secret","whose":"bobs"}'))

        stage.answer = slow
        user = await stage.user()
        user.send(request("PUT", f"{PODS}/api", body=json.dumps({"pad": "x" * 2_000_000}).encode()))
        await stage.until(lambda: stage.connections == 1)
        user.close()
        await stage.until(lambda: stage.served == 1)
        got = await stage.ask(request("GET", PODS, token=OTHER_TOKEN))
        assert b"bobs" in got.body or b"anas" not in got.body, got.body

    run(test)


def test_a_request_behind_an_upgrade_is_input_and_never_a_request() -> None:
    async def test(stage: Stage) -> None:
        user = await stage.user()
        user.send(upgrade(EXEC) + HIDDEN + request("GET", f"{PODS}/other"))
        stage.answer = lambda asked: asked.say(ok(b'{"kind":"Status","code":403}', code="403 Forbidden"))
        await user.rest()
        assert [asked.target.partition("?")[0] for asked in stage.asked] == [f"{PODS}/api/exec"]
        assert [command.verb for command in stage.commands] == ["exec"]

    run(test)


@pytest.mark.parametrize("length", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_an_upgrade_has_no_body(length: str) -> None:
    async def test(stage: Stage) -> None:
        user = await stage.user()
        user.send(upgrade(EXEC, length))
        got = await user.answer()
        assert got.status == 400 and "body" in got.message
        spdy = (length, "Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io")
        got = await stage.ask(request("POST", EXEC, *spdy))
        assert got.status == 400 and "body" in got.message
        assert stage.commands == [] and stage.asked == []

    run(test)


# -- whose request it is --------------------------------------------------------------------------------


def test_a_connection_belongs_to_nobody() -> None:
    """Each request is its own token's; one without a token is nobody's, whatever came before it."""
    seen: list[str] = []

    class Credentials:
        async def get(self, identity: Identity, target: Any) -> Any:
            from proxy.core.parties import Credential, Secret

            seen.append(identity.subject)
            return Credential("gate", Secret(SECRET))

    async def test(stage: Stage) -> None:
        user = await stage.user()
        statuses = []
        for token in (TOKEN, OTHER_TOKEN, "", "guessed", TOKEN, f"{TOKEN} ", OTHER_TOKEN):
            user.send(request("GET", PODS, token=token))
            statuses.append((await user.answer()).status)
        assert statuses == [200, 200, 401, 401, 200, 200, 200]
        assert seen == ["ana@acme.com", "bob@acme.com", "ana@acme.com", "ana@acme.com", "bob@acme.com"]
        assert len(stage.tapes) == 2, "a session each"
        identities = stage.gate.identities
        assert isinstance(identities, Tokens)
        identities.revoked_tokens.add(TOKEN)
        user.send(request("GET", PODS))
        assert (await user.answer()).status == 401, "revoked between two requests"
        user.send(request("GET", PODS, token=OTHER_TOKEN))
        assert (await user.answer()).status == 200

    run(test, credentials=Credentials())


def test_a_token_is_in_one_place() -> None:
    import base64

    coded = "base64url.bearer.authorization.k8s.io." + base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    bob = "base64url.bearer.authorization.k8s.io." + base64.urlsafe_b64encode(OTHER_TOKEN.encode()).decode().rstrip("=")

    async def test(stage: Stage) -> None:
        tries = [
            request("GET", PODS, f"Authorization: Bearer {OTHER_TOKEN}"),
            request("GET", PODS, f"Sec-WebSocket-Protocol: x, {bob}"),
            request("GET", PODS, f"Sec-WebSocket-Protocol: {coded}", token=""),
            request("GET", PODS, f"Sec-WebSocket-Protocol: x, {coded}, {bob}", token=""),
            request("GET", PODS, f"Sec-WebSocket-Protocol: x, {coded}=", token=""),
        ]
        for data in tries:
            assert (await stage.ask(data)).status == 400, data
        for data in (
            request("GET", f"{PODS}?access_token={TOKEN}", token=""),
            request("GET", PODS, f"X-Auth-Token: {TOKEN}", f"Proxy-Authorization: Bearer {TOKEN}", token=""),
            request("GET", PODS, f"Authorization: Basic {TOKEN}", token=""),
        ):
            assert (await stage.ask(data)).status == 401, data
        assert stage.asked == []
        got = await stage.ask(request("GET", PODS, f"Sec-WebSocket-Protocol: x, {coded}", token=""))
        assert got.status == 200 and "websocket" not in str(stage.asked[0].headers)

    run(test)
