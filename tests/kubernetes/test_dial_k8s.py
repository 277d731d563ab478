"""Dialling API servers: whose certificate is believed, which fields say who asks, and what is never said."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from protocols.kubernetes.commands import Conversation
from protocols.kubernetes.dial import GROUPS_LIMIT, IMPERSONATED_LIMIT, dial, impersonation
from protocols.kubernetes.dial_settings import (
    CONNECT_TIMEOUT_LIMIT,
    CONNECT_TIMEOUT_SECONDS,
    SESSION_IDLE_LIMIT,
    Impersonation,
    read_settings,
)
from protocols.kubernetes.request_info import read_path
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.gate import unread
from proxy.core.http.heads import RequestHead, encode_request
from proxy.core.parties import Credential, Identity, Secret, Target
from proxy.core.stream import SocketStream
from proxy.http.dialing import TOKEN_LIMIT, authorization
from tests.peers.certificates import Authority, Pair

CANARY = "canary-token-5e1d"
PATIENCE = 10.0


@dataclass
class Server:
    """A TLS server that greets; what it saw of each connection: ALPN and the client's certificate."""

    port: int = 0
    seen: list[tuple[str | None, bytes | None]] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)


@contextlib.asynccontextmanager
async def served(
    pair: Pair, client_ca: Path | None = None, alpn: tuple[str, ...] = ("h2", "http/1.1")
) -> AsyncIterator[Server]:
    made = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate_file, pair.key_file)
    context.set_alpn_protocols(list(alpn))
    context.sni_callback = lambda _socket, name, _context: made.names.append(name)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = writer.get_extra_info("ssl_object")
        made.seen.append((tls.selected_alpn_protocol(), tls.getpeercert(binary_form=True)))
        with contextlib.suppress(OSError):
            writer.write(b"hello")
            await reader.read(1)
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await server.wait_closed()


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the gateway runs
        runner.run(body())


def target(port: int, host: str = "127.0.0.1", **settings: Any) -> Target:
    return Target("prod", "kubernetes", host, port, settings=settings)


async def greeted(place: Target, credential: Credential | None = None) -> bytes:
    """Dial, and read what a server says once it has seen who we are."""
    async with asyncio.timeout(PATIENCE):
        stream = await dial(place, credential or Credential(""))
        try:
            return await stream.read(100)
        finally:
            await stream.close()


async def failed(place: Target, credential: Credential | None = None) -> str:
    with capture_logs() as logs, pytest.raises(TargetPeerError) as caught:
        await greeted(place, credential)
    everything = "".join(traceback.format_exception(caught.value)) + repr(logs)
    assert CANARY not in everything
    assert "PRIVATE" not in everything
    return str(caught.value)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_private_authority_and_http_1_1_alone(authority: Authority) -> None:
    async def body() -> None:
        async with served(authority.issue("api")) as server:
            assert await greeted(target(server.port, ca_file=str(authority.ca_file))) == b"hello"
            assert await greeted(target(server.port, ca_data=authority.ca_file.read_text())) == b"hello"
            assert await greeted(target(server.port, "localhost", ca_file=str(authority.ca_file))) == b"hello"
            assert [alpn for alpn, _ in server.seen] == ["http/1.1"] * 3
            assert server.names[-1] == "localhost"

    run(body)


def test_a_certificate_that_nobody_vouches_for(authority: Authority, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()

    async def body() -> None:
        async with served(authority.issue("api")) as server:
            wrong = await failed(target(server.port, ca_file=str(Authority(other).ca_file)))
            assert "certificate was not accepted" in wrong
            assert wrong.endswith("kubernetes.ca_file names another authority")
            public = await failed(target(server.port, ca="system"))
            assert public.endswith("it has no public one: kubernetes.ca_file names the cluster's own")

    run(body)


def test_an_intermediate_or_the_certificate_itself_may_be_the_authority(authority: Authority) -> None:
    """As Go has it: a kubeconfig may name the server's own certificate."""
    pair = authority.issue("api")

    async def body() -> None:
        async with served(pair) as server:
            assert await greeted(target(server.port, ca_file=str(pair.certificate_file))) == b"hello"

    run(body)


def test_the_name_is_checked_and_may_be_given(authority: Authority) -> None:
    async def body() -> None:
        async with served(authority.issue("api", ["kubernetes.default.svc"])) as server:
            ca = str(authority.ca_file)
            wrong = await failed(target(server.port, ca_file=ca))
            assert "kubernetes.server_name says which name it is for" in wrong
            assert await greeted(target(server.port, ca_file=ca, server_name="kubernetes.default.svc")) == b"hello"
            assert server.names[-1] == "kubernetes.default.svc"

    run(body)


def test_an_expired_certificate(authority: Authority) -> None:
    async def body() -> None:
        async with served(authority.issue("api", days=-1)) as server:
            assert "its dates are not of now" in await failed(target(server.port, ca_file=str(authority.ca_file)))

    run(body)


def test_an_authority_that_was_rotated_counts_at_the_next_dial(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    new = Authority(folder)
    ca_file = tmp_path / "ca.crt"
    shutil.copy(authority.ca_file, ca_file)

    async def body() -> None:
        async with served(new.issue("api")) as server:
            place = target(server.port, ca_file=str(ca_file))
            assert "another authority" in await failed(place)
            shutil.copy(new.ca_file, ca_file)
            assert await greeted(place) == b"hello"

    run(body)


def test_a_client_certificate_from_files_or_from_text(authority: Authority) -> None:
    client = authority.issue("gate", client=True)
    certificate, key = client.certificate_file.read_text(), client.key_file.read_text()
    by_file = Credential("", certificate_file=str(client.certificate_file), key_file=str(client.key_file))
    by_text = Credential("", certificate=Secret(certificate), key=Secret(key))
    swapped = Credential("", certificate=Secret(certificate), key=Secret(authority.issue("b").key_file.read_text()))

    async def body() -> None:
        async with served(authority.issue("api"), client_ca=authority.ca_file) as server:
            place = target(server.port, ca_file=str(authority.ca_file))
            assert await greeted(place, by_file) == b"hello"
            assert await greeted(place, by_text) == b"hello"
            assert [der for _, der in server.seen] == [client.der, client.der]
            with contextlib.suppress(TargetPeerError):  # in TLS 1.3 a client hears of it when it reads
                assert await greeted(place) == b""
            assert len(server.seen) == 2
            assert "do not go together" in await failed(place, swapped)
            canary = Secret(f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n")
            damaged = Credential("", certificate=Secret(certificate), key=canary)
            assert "do not go together" in await failed(place, damaged)

    run(body)


def test_a_key_with_a_passphrase_asks_nobody(authority: Authority, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    client = authority.issue("gate", client=True)
    key = serialization.load_pem_private_key(client.key_file.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(CANARY.encode()),
        )
    )
    plain = Credential("", certificate_file=str(client.certificate_file), key_file=str(locked))

    async def body() -> None:
        async with served(authority.issue("api"), client_ca=authority.ca_file) as server:
            place = target(server.port, ca_file=str(authority.ca_file))
            assert await greeted(place, replace(plain, passphrase=Secret(CANARY))) == b"hello"
            assert "do not go together" in await failed(place, plain)

    run(body)


def test_a_server_that_insists_on_http_2_is_no_target(authority: Authority) -> None:
    async def body() -> None:
        async with served(authority.issue("api"), alpn=("h2",)) as server:
            place = target(server.port, ca_file=str(authority.ca_file))
            # OpenSSL's server goes on without a protocol; Go's refuses. Both are no h2.
            assert await greeted(place) == b"hello"
            assert server.seen[0][0] is None

    run(body)


def test_what_is_not_there(authority: Authority, tmp_path: Path) -> None:
    async def body() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            place = target(unused.getsockname()[1], ca_file=str(authority.ca_file))
            assert await failed(place) == "the target cannot be reached: Connection refused"
        nowhere = target(1, "no-such-host.invalid", ca_file=str(authority.ca_file))
        assert await failed(nowhere) == "the target's host name could not be resolved"
        gone = target(1, ca_file=str(tmp_path / "gone.crt"))
        assert await failed(gone) == "the certificate authority for the target cannot be read; ask the operator"
        (tmp_path / "empty.crt").write_text("nothing")
        assert "holds no certificate" in await failed(target(1, ca_file=str(tmp_path / "empty.crt")))
        assert "ca_file and ca: system" in await failed(target(1))

    run(body)


def test_a_target_that_says_nothing_takes_only_its_time(authority: Authority) -> None:
    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            place = target(silent.getsockname()[1], ca_file=str(authority.ca_file), connect_timeout_seconds=0.2)
            assert await failed(place) == "the target took longer than 0.2 seconds to shake hands by TLS"

    run(body)


def test_a_dial_that_is_given_up_leaves_no_connection(authority: Authority) -> None:
    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.setblocking(False)
            loop = asyncio.get_running_loop()
            place = target(silent.getsockname()[1], ca_file=str(authority.ca_file))
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                dialling = group.create_task(dial(place, Credential("")))
                sock, _ = await loop.sock_accept(silent)
                with sock:
                    assert (await loop.sock_recv(sock, 1)) == b"\x16"  # TLS: a handshake has begun
                    dialling.cancel()
                    while await loop.sock_recv(sock, 65_536):
                        pass  # until the other end is closed

    run(body)


def test_the_stream_writes_whole_records(authority: Authority) -> None:
    """whole=True: what libpq needs short is dear in bulk."""

    async def body() -> None:
        async with served(authority.issue("api")) as server:
            stream = await dial(target(server.port, ca_file=str(authority.ca_file)), Credential(""))
            assert isinstance(stream, SocketStream)
            assert stream._record_bytes == 0
            await stream.close()

    run(body)


# -- settings -----------------------------------------------------------------------------------------


def test_settings_and_their_defaults() -> None:
    read = read_settings(Target("prod", "kubernetes", "api", settings={"ca": "system"}))
    assert (read.host, read.port, read.server_name, read.ca_file, read.ca_data) == ("api", 443, "api", "", "")
    assert (read.base_path, read.impersonate) == ("", None)
    assert read.connect_timeout_seconds == CONNECT_TIMEOUT_SECONDS
    more = {"ca_file": "/ca", "server_name": "n", "base_path": "/k8s/clusters/c-1/", "impersonate": {}}
    read = read_settings(Target("prod", "kubernetes", "api", 6443, settings=more))
    assert (read.port, read.server_name, read.ca_file, read.base_path) == (6443, "n", "/ca", "/k8s/clusters/c-1")
    assert read.impersonate == Impersonation()


def test_settings_that_are_wrong() -> None:
    good = {"ca": "system"}
    wrong: list[tuple[dict[str, object], str]] = [
        ({}, "one of ca_file and ca: system is needed"),
        ({"ca_file": "/ca", "ca": "system"}, "one of ca_file and ca: system is needed"),
        ({"ca_file": "/ca", "ca_data": "x"}, "one of ca_file and ca: system is needed"),
        ({"ca": "none"}, "ca is system, or left out"),
        ({"ca": True}, "ca is system, or left out"),
        ({**good, "server_name": 1}, "server_name is a text"),
        ({**good, "base_path": "x"}, "path of the server's address"),
        ({**good, "base_path": "/a/../b"}, "path of the server's address"),
        ({**good, "base_path": "/a b"}, "path of the server's address"),
        ({**good, "base_path": "/a\r\nX: y"}, "path of the server's address"),
        ({**good, "base_path": "/%2e%2e"}, "path of the server's address"),
        ({**good, "connect_timeout_seconds": 0.01}, "connect_timeout_seconds is from 0.1 to 600"),
        ({**good, "connect_timeout_seconds": CONNECT_TIMEOUT_LIMIT + 1}, "connect_timeout_seconds is from"),
        ({**good, "connect_timeout_seconds": True}, "connect_timeout_seconds is from"),
        ({**good, "session_idle": SESSION_IDLE_LIMIT + 1}, "session_idle is from 0 to 86400"),
        ({**good, "exec_only": "yes"}, "exec_only is true or false"),
        ({**good, "record_contents": "/etc"}, "record_contents is a list"),
        ({**good, "impersonate": "ana"}, "impersonate is a mapping"),
        ({**good, "impersonate": {"user": "email"}}, "impersonate.user is subject or issuer-subject"),
        ({**good, "impersonate": {"groups": "*"}}, "impersonate.groups is a list"),
        ({**good, "impersonate": {"uid": 1}}, "extra and uid are true or false"),
        ({**good, "impersonate": {"user_prefix": None}}, "prefixes are texts"),
    ]
    for settings, why in wrong:
        with pytest.raises(ConfigError) as caught:
            read_settings(Target("prod", "kubernetes", "api", settings=settings))
        assert why in str(caught.value), settings
    with pytest.raises(ConfigError):
        read_settings(Target("prod", "kubernetes", settings=good))
    for settings in ({**good, "session_idle": SESSION_IDLE_LIMIT}, {**good, "connect_timeout_seconds": 600}):
        read_settings(Target("prod", "kubernetes", "api", settings=settings))


def test_a_server_s_base_path_goes_before_every_path() -> None:
    place = target(1, ca="system", base_path="/k8s/clusters/c-1")
    head = RequestHead("GET", "/api/v1/namespaces/dev/pods?limit=5", ())
    info = read_path(head.target, head.method)
    conversation = Conversation(place, 0, unread)
    command = conversation.from_user(head, info, b"")
    assert conversation.upstream(head, info, masked=False)[1] == f"/k8s/clusters/c-1{head.target}"
    assert command.data.startswith(f"GET {head.target} HTTP/1.1\r\n".encode())  # the tape has what was asked
    assert "c-1" not in command.text


# -- who asks -----------------------------------------------------------------------------------------


def test_the_token_is_a_bearer() -> None:
    assert authorization(Credential("", Secret("abc.def"))) == (("Authorization", "Bearer abc.def"),)
    assert authorization(Credential("")) == ()
    longest = "x" * TOKEN_LIMIT
    assert authorization(Credential("", Secret(longest)))[0][1].endswith(longest)
    for bad in (f"{CANARY}\r\nX: y", f"{CANARY} x", CANARY + "\x00", "", "ü" + CANARY, CANARY + longest, "x" + longest):
        with pytest.raises(TargetPeerError) as caught:
            authorization(Credential("", Secret(bad)))
        assert CANARY not in str(caught.value)


def as_(identity: Identity, **settings: object) -> list[tuple[str, str]]:
    return list(impersonation(target(1, ca="system", impersonate=settings), identity))


ANA = Identity(
    "ana@example.com", frozenset({"dev", "oncall"}), agents=("claude", "bash"), issuer="https://idp.example.com"
)


def test_nobody_is_impersonated_unasked() -> None:
    assert impersonation(target(1, ca="system"), ANA) == ()


def test_a_user_with_groups() -> None:
    assert as_(ANA) == [
        ("Impersonate-User", "ana@example.com"),
        ("Impersonate-Group", "dev"),
        ("Impersonate-Group", "oncall"),
    ]
    assert as_(ANA, groups=("on*",), group_prefix="gc:", user_prefix="oidc:") == [
        ("Impersonate-User", "oidc:ana@example.com"),
        ("Impersonate-Group", "gc:oncall"),
    ]
    assert as_(ANA, groups=()) == [("Impersonate-User", "ana@example.com")]


def test_issuer_uid_and_extras() -> None:
    full = "https://idp.example.com#ana@example.com"
    assert as_(ANA, user="issuer-subject", groups=(), uid=True, extra=True) == [
        ("Impersonate-User", full),
        ("Impersonate-Uid", full),
        ("Impersonate-Extra-gatecast%2Fagent", "claude"),
        ("Impersonate-Extra-gatecast%2Fagent", "bash"),
        ("Impersonate-Extra-gatecast%2Fissuer", "https://idp.example.com"),
    ]


def test_names_beyond_ascii_are_utf_8_on_the_wire() -> None:
    fields = as_(Identity("žofia@example.com", frozenset({"größe"})))
    wire = encode_request("GET", "/", fields)
    assert "Impersonate-User: žofia@example.com\r\nImpersonate-Group: größe\r\n".encode() in wire


def test_kubernetes_own_names_are_nobody_s() -> None:
    groups = frozenset({"system:masters", "system:nodes", "dev"})
    assert as_(Identity("ana", groups)) == [("Impersonate-User", "ana"), ("Impersonate-Group", "dev")]
    # Not by a prefix that makes one either.
    assert as_(Identity("ana", frozenset({"masters"})), group_prefix="system:") == [("Impersonate-User", "ana")]
    for subject in (
        "system:admin",
        "system:serviceaccount:kube-system:x",
        "",
        " ",
        " ana",
        "ana ",
        "ana\r\nX: y",
        "a\0",
    ):
        with pytest.raises(TargetPeerError):
            as_(Identity(subject))
    # With a prefix it is another name.
    pod = Identity("system:serviceaccount:dev:agent")
    assert as_(pod, user_prefix="ci:") == [("Impersonate-User", "ci:system:serviceaccount:dev:agent")]


def test_a_login_without_an_issuer_has_no_full_name() -> None:
    for settings in ({"user": "issuer-subject"}, {"uid": True}):
        with pytest.raises(TargetPeerError):
            as_(Identity("ana"), **settings)
    assert as_(Identity("ana", agents=("claude",)), extra=True) == [
        ("Impersonate-User", "ana"),
        ("Impersonate-Extra-gatecast%2Fagent", "claude"),
    ]


def test_groups_that_cannot_be_said_are_left_out_and_too_many_are_an_error() -> None:
    odd = frozenset({"a\r\nImpersonate-Group: system:masters", " x", "ok"})
    assert as_(Identity("ana", odd)) == [("Impersonate-User", "ana"), ("Impersonate-Group", "ok")]
    many = frozenset(f"g{number}" for number in range(GROUPS_LIMIT + 1))
    assert len(as_(Identity("ana", frozenset(sorted(many)[1:])))) == GROUPS_LIMIT + 1
    with pytest.raises(TargetPeerError):
        as_(Identity("ana", many))
    assert as_(Identity("x" * IMPERSONATED_LIMIT))
    with pytest.raises(TargetPeerError):
        as_(Identity("x" * (IMPERSONATED_LIMIT + 1)))
