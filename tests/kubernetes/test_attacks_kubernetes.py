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
from proxy.core.verdict import Allow, Hold, Mask, Verdict
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
        assert b"anas" not in got.body, got.body

    run(test)


def test_a_request_behind_an_upgrade_is_input_and_never_a_request() -> None:
    async def test(stage: Stage) -> None:
        user = await stage.user()
        user.send(upgrade(EXEC) + HIDDEN + request("GET", f"{PODS}/other"))
        stage.answer = lambda asked: asked.say(ok(b'{"kind":"Status","code":403}', code="403 Forbidden"))
        await user.head()
        await stage.until(lambda: bool(stage.asked))
        user.close()
        await stage.until(lambda: stage.served == 1)
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


# -- paths and queries ----------------------------------------------------------------------------------


def test_paths_that_two_readers_read_differently_are_refused() -> None:
    paths = [
        "/api/v1/namespaces/shop/pods/../../kube-system/secrets", "/api/v1/namespaces/shop/%2e%2e/secrets",
        "/api/v1/namespaces/shop/pods%2Fapi", "/api/v1/namespaces/shop%2fpods", "/api/v1/namespaces/shop/pods%5cx",
        "/api/v1/namespaces/shop/pods;x=y", "//api/v1/namespaces/shop/pods", "/api//v1/pods", "/api/v1/pods%00",
        "/api/v1/pods%0a", "/api/v1/pods%0d%0aX:y", "/api/v1/pods%7f", "/api/v1/pods%c2%80", "/api/v1/pods%ff",
        "/api/v1/pods%e2%80%ae", "/API/v1/pods", "/Apis/apps/v1/deployments", "/api/v1/watch/pods",
        "/api/v1/proxy/namespaces/shop/pods/x", "/api/v1/namespaces/shop/pods/%252e%252e", "/api/v1/pods%",
        "/api/v1/pods%zz", "/api/v1/pods\\x", "/api/v1/./pods", "/api/v1/pods/.", "/api/v1/pods/%2e",
        "/api/v1/pods?watch=0&watch=1", "/api/v1/pods?limit=1&limit=2", "/api/v1/pods?watch=1;limit=2",
        "/api/v1/secrets?fieldSelector=metadata.name%3Da,metadata.name%3Db", "/api/v1/pods?limit=x",
        "/api/v1/secrets?fieldSelector=metadata.name",
        "/api/v1/pods?%zz=1", "/api/v1/pods?x=%ff",
        "/api/v1/namespaces/shop/pods/api/exec?container=a&container=b&command=id",
    ]  # fmt: skip

    async def test(stage: Stage) -> None:
        for path in paths:
            assert (await stage.ask(request("GET", path))).status == 400, path
        lines = ["http://evil/api/v1/pods", "evil:443", "*", "/k8s/shop/api#x", "/k8s/shop", "k8s/shop/api"]
        for line in [*lines[:4], lines[5]]:
            data = f"GET {line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
            assert (await stage.ask(data)).status == 400, line
        for line in ("/k8s/%73hop/api", "/k8s/../shop/api", "/k8s//shop/api", "/k8s/nowhere/api", "/k8s/shop%2Fx/api"):
            data = f"GET {line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
            assert (await stage.ask(data)).status == 404, line
        assert stage.asked == [] and stage.connections == 0

    run(test)


def test_methods_that_nobody_asked_for() -> None:
    async def test(stage: Stage) -> None:
        for method in ("OPTIONS", "TRACE", "CONNECT", "PURGE", "PROPFIND", "SEARCH", "get", "Get", "G=T", "M-SEARCH"):
            for path in (PODS, "/api/v1/pods"):
                got = await stage.ask(request(method, path))
                assert got.status in (400, 405, 501), (method, got)
        for method in ("TRACE", "CONNECT", "PURGE"):
            assert (await stage.ask(request(method, "/metrics"))).status in (400, 405, 501), method
        assert stage.asked == [] and stage.commands == []

    run(test)


def test_what_a_query_hides_is_what_was_decided() -> None:
    """The name, the verb and the place that a rule sees are those that the server will read."""
    tries: list[tuple[bytes, str, dict[str, Any]]] = [
        (request("GET", "/api/v1/secrets?watch"), "watch", {"resource": "secrets", "name": ""}),
        (request("GET", "/api/v1/secrets?watch=FALSE"), "list", {}),
        (request("GET", "/api/v1/secrets?watch=0"), "list", {}),
        (request("GET", "/api/v1/secrets?Watch=1"), "list", {}),
        (request("GET", "/api/v1/secrets?%77atch=yes"), "watch", {}),
        (request("GET", "/api/v1/secrets?fieldSelector=metadata.name%3D%3Ddb"), "list", {"name": "db"}),
        (request("GET", "/api/v1/namespaces/shop/status"), "get", {"resource": "namespaces", "subresource": "status"}),
        (request("PUT", "/api/v1/namespaces/shop/finalize", body=b"{}"), "update", {"subresource": "finalize"}),
        (request("GET", "/api/v1/namespaces/shop/pods/exec"), "get", {"name": "exec", "subresource": ""}),
        (request("GET", "/api/v1/namespaces/shop/pods/log/log"), "log", {"name": "log"}),
        (request("GET", "/api/v1/namespaces/namespaces/pods/proxy"), "get", {"namespace": "namespaces"}),
        (request("GET", "/api/v1/nodes/n1/proxy/run/x"), "proxy", {"resource": "nodes", "opaque": True}),
        (request("GET", "/api/v1/namespaces/shop/services/https:x:443/proxy/a%2fb"), "UNREACHED", {}),
        (request("GET", "/apis/unknown.example.com/v9/namespaces/shop/widgets/w/exec"), "exec", {}),
        (request("DELETE", PODS), "deletecollection", {}),
        (request("GET", "/apis"), "discover", {}),
        (request("GET", "/metrics"), "get-path", {}),
        (request("POST", "/metrics"), "path", {"opaque": True}),
        (request("GET", "/%61pi/v1/secrets"), "list", {"resource": "secrets"}),
        (request("GET", "/api/v1/%73ecrets"), "list", {"resource": "secrets"}),
        (request("GET", "/api/v1/secrets/"), "list", {"resource": "secrets", "name": ""}),
        (request("HEAD", "/api/v1/namespaces/shop/secrets/db"), "get", {"name": "db"}),
    ]

    async def test(stage: Stage) -> None:
        for data, verb, facts in tries:
            before = len(stage.commands)
            user = await stage.user()
            user.send(data)
            await user.answer(head=data.startswith(b"HEAD"))
            user.close()
            found = stage.commands[before:]
            if verb == "UNREACHED":
                assert found == []
                continue
            assert [command.verb for command in found] == [verb], (data, found)
            assert {key: found[0].facts.get(key) for key in facts} == facts, data
            line = data.split(b" ")[1].decode().removeprefix("/k8s/shop")
            if verb != "exec":
                assert stage.asked[-1].target == line, "the bytes that were judged are those that are sent"

    run(test)


def test_what_an_approver_reads_cannot_redraw_his_screen() -> None:
    """Escape sequences, newlines and overrides in what a user sends: shown, never obeyed; never two lines of a log."""
    evil = "x%0a%1b%5b2J%1b]0;owned%07%e2%80%aeevil%c2%9b31m"
    intent = "why\x9b31m\x85not"

    async def test(stage: Stage) -> None:
        approvals = stage.gate.approvals
        assert isinstance(approvals, FakeApprovals)
        approvals.answer = Decision("denied", "boss")
        await stage.ask(
            request("GET", f"{PODS}?labelSelector={evil.replace(';', '%3b')}", f"Gatecast-Intent: {intent}")
        )
        await stage.ask(request("GET", PODS, f"User-Agent: {intent}", f"Gatecast-Run: {intent}"))
        user = await stage.user()
        user.send(upgrade(f"{PODS}/api/exec?stdout=1&command=sh&command=-c&command={evil.replace(';', '%3b')}"))
        await user.head()
        user.close()
        assert len(stage.commands) == 3
        for command in stage.commands:
            from proxy.core.text import harmless

            assert harmless(command.text).isprintable() and "\x1b" not in harmless(command.text)
        assert stage.asked == []

    run(test, lambda command: Hold("ask", ("boss",), 60.0))


# -- hostile targets ------------------------------------------------------------------------------------


def test_a_target_sends_nobody_elsewhere() -> None:
    """client-go puts the token on whatever request follows a redirect: a target must not choose where that goes."""
    places = ["https://evil.example.com/api", "//evil.example.com/api", "http://gate:1/x", "/\\evil.example.com",
              "\thttps://evil.example.com", "HTTPS:evil", "https:/evil",
              "/../other/api/v1/pods", "/api/%2e%2e/%2E./other/api", "/..", "../other/api", "/a/..?x"]  # fmt: skip

    async def test(stage: Stage) -> None:
        for code in ("301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
            for place in places:
                stage.answer = lambda asked: asked.say(ok(b"", f"Location: {place}", code=code))  # noqa: B023
                got = await stage.ask(request("GET", PODS))
                assert got.get("location") is None, (code, place, got.raw)
        stage.answer = lambda asked: asked.say(ok(b"", "Location: /api/v1/pods?x=1", code="302 Found"))
        got = await stage.ask(request("GET", PODS))
        assert got.get("location") == "/k8s/shop/api/v1/pods?x=1"
        stage.answer = lambda asked: asked.say(
            ok(b"", f"Location: https://127.0.0.1:{stage.target.port}/api/v1/pods", code="302 Found")
        )
        got = await stage.ask(request("GET", PODS))
        assert got.get("location") == "/k8s/shop/api/v1/pods"

    run(test)


def test_a_target_leaves_nothing_at_its_users() -> None:
    """Cookies are of a host, whatever its port: one of a target's would be sent to the gateway's own pages."""
    fields = [
        "Set-Cookie: gatecast=owned; Path=/", "Set-Cookie2: a=b", "Alt-Svc: h3=\"evil.example.com:443\"",
        "Strict-Transport-Security: max-age=0", "Clear-Site-Data: \"*\"", "Refresh: 0; url=https://evil",
        "Public-Key-Pins: x", "Access-Control-Allow-Origin: *", "Access-Control-Allow-Credentials: true",
        "Proxy-Authenticate: Basic", "WWW-Authenticate: Negotiate", "Service-Worker-Allowed: /",
        "Upgrade: h2c", "Connection: Upgrade, X-Hop", "X-Hop: y", "Keep-Alive: timeout=9", "Trailer: X",
        "Content-Location: https://evil/", "Link: <https://evil/>; rel=preload",
    ]  # fmt: skip

    async def test(stage: Stage) -> None:
        stage.answer = lambda asked: asked.say(ok(b"{}", *fields, "Audit-Id: 1", 'Warning: 299 - "w"'))
        got = await stage.ask(request("GET", PODS))
        assert got.status == 200 and got.body == b"{}"
        names = {name for name, _ in got.headers}
        assert names == {"content-type", "content-length", "audit-id", "warning"}, names

    run(test)


ANSWERS: dict[str, bytes] = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two other lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "switched where nothing was asked": b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    "nothing but interim": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2000,
    "endless interim fields": b"HTTP/1.1 102 P\r\n" + b"X: y\r\n" * 20000,
    "a control in a field": b"HTTP/1.1 200 OK\r\nX: \x1b[2J\r\nContent-Length: 0\r\n\r\n",
    "a split field": b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "a folded field": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000,
    "no head": b"\x00" * 70_000,
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "HTTP/0.9": b"<html>\r\n\r\n",
    "a large status": b"HTTP/1.1 9999 OK\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_none_is_a_503_and_the_connection_lives(name: str) -> None:
    async def test(stage: Stage) -> None:
        bad = [True]

        def answer(asked: Asked) -> None:
            asked.say(ANSWERS[name] if bad and bad.pop() else ok(b'{"fine":1}'))

        stage.answer = answer
        user = await stage.user()
        user.send(request("GET", PODS))
        got = await user.answer()
        assert got.status == 503 and "target" in got.message, got.raw
        user.send(request("GET", PODS))
        assert (await user.answer()).body == b'{"fine":1}'
        assert stage.connections == 2, "what is out of step is used no more"

    run(test)


def test_a_body_that_is_not_what_was_said_is_cut_off_and_never_taken_for_whole() -> None:
    heads = {
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort": True,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort": True,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nlonger\r\n0\r\n\r\n": True,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 9000 + b"\r\ns\r\n0\r\n\r\n": True,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\ns\r\n0\r\n" + b"X: y\r\n" * 9000 + b"\r\n": True,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n": True,
    }

    async def test(stage: Stage) -> None:
        broken = 0
        for data in heads:

            def answer(asked: Asked, data: bytes = data) -> None:
                asked.say(data)
                asked.writer.close()

            stage.answer = answer
            user = await stage.user()
            user.send(request("GET", PODS))
            try:  # where the fault is in the first bytes, nothing of the answer was said yet
                assert (await user.answer()).status == 503, data
            except EOFError:
                broken += 1
            user.close()
        results = [each["tag"] for each in stage.of(Kind.RESULT)]
        assert results == ["broken off"] * broken and broken >= 2

    run(test)


def test_a_second_answer_is_nobodys() -> None:
    async def test(stage: Stage) -> None:
        stage.answer = lambda asked: asked.say(ok(b'{"mine":1}') + ok(b'{"not":"mine"}'))
        for token in (TOKEN, OTHER_TOKEN, TOKEN):
            assert (await stage.ask(request("GET", PODS, token=token))).body == b'{"mine":1}'
        assert stage.connections == 3

    run(test)


def test_a_target_that_refuses_our_credential_does_not_blame_the_users_token() -> None:
    """kubectl, given a 401, tells its user to log in again."""

    def refuse(asked: Asked) -> None:
        asked.say(b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    async def test(stage: Stage) -> None:
        got = await stage.ask(request("GET", PODS))
        assert got.status == 503 and "credential" in got.message, got

    run(test, answer=refuse)


def test_an_exec_whose_tape_fails_is_told_so() -> None:
    """Before the connection was taken over there is an answer, and it says why."""
    stages: list[Stage] = []

    def failing(command: Command) -> Verdict:
        stages[0].tapes[-1].fail = True
        return Allow("all")

    async def test(stage: Stage) -> None:
        stages.append(stage)
        got = await stage.ask(upgrade())
        assert got.status == 503 and "recorded" in got.message, got
        assert stage.asked == []

    run(test, failing)
