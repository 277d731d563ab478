"""Bad input at the door of PostgreSQL: what psql prints, and what the operator's log says.

Garbage, TLS where there is none and the reverse, start-ups that are too long, unknown targets, tokens that do not
hold, targets that are down or refuse the gate's own password. Each is a clear PostgreSQL error, or the silence that
PostgreSQL keeps itself, and a line of the log; no secret is in either.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from protocols.postgres import startup
from proxy.core.parties import Target
from proxy.identity.service import Service
from proxy.identity.tokens import Tokens
from tests.fakes import TOKEN, FakeTargets
from tests.identity.stores import Clock, opened
from tests.peers.certificates import Authority
from tests.peers.postgres import PASSWORD, PostgresServer
from tests.postgres.gateway import Gateway, gateway

pytestmark = pytest.mark.peer

WRONG = "canary-wrong-password-5d"
Logs = list[Any]


@contextlib.contextmanager
def door(port: int, **more: Any) -> Iterator[tuple[Gateway, Logs]]:
    """A gateway and its log."""
    with capture_logs() as logs, gateway(port, **more) as gate:
        yield gate, logs


def psql(server: PostgresServer, gate: Gateway, *words: str, **environment: str) -> str:
    """Run psql through the gateway, which must fail; returns what it prints."""
    done = subprocess.run(
        [str(server.bin / "psql"), "-X", "-w", "-c", "SELECT 1", *words],
        env={**gate.environment, **server.environment, **environment},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


def raw(gate: Gateway, data: bytes) -> bytes:
    """Send bytes and read to the end."""
    with socket.create_connection((gate.host, gate.port), timeout=20) as sock:
        sock.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(4096):
                answer += part
        return answer


def logged(logs: Logs, event: str, **fields: object) -> dict[str, Any]:
    """The one line of the log of this event, which names where the user came from."""
    (line,) = [each for each in logs if each["event"] == event]
    assert line["peer"].startswith("127.0.0.1:") and line["log_level"] in ("info", "warning", "error")
    assert fields.items() <= line.items(), line
    return dict(line)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0\0\0\0\0\0\0\0", b"SSH-2.0-OpenSSH_9.2\r\n", b"\xff" * 5000,
     struct.pack(">I", startup.STARTUP_LIMIT + 5) + b"x" * 20_000],
)  # fmt: skip
def test_garbage_on_the_port(postgres15: PostgresServer, garbage: bytes) -> None:
    with door(postgres15.port) as (gate, logs):
        answer = raw(gate, garbage)
        fields = startup.error_fields(answer[5:])
        assert answer[:1] == b"E" and (fields["S"], fields["C"]) == ("FATAL", "08P01")
        assert "startup packet" in fields["M"]
    line = logged(logs, "user broke the protocol or the connection", error=fields["M"])
    assert "HTTP" not in repr(line)


def test_half_a_startup_packet_and_then_nothing(postgres15: PostgresServer) -> None:
    with door(postgres15.port) as (gate, logs):
        with socket.create_connection((gate.host, gate.port), timeout=20) as sock:
            sock.sendall(startup.encode_startup({"user": "u"})[:9])
        while not gate.idle():
            pass
    logged(logs, "user went away before logging in")


def test_a_startup_packet_at_its_limit_and_over_it(postgres15: PostgresServer) -> None:
    with door(postgres15.port) as (gate, logs):
        for spare in (-1, 0, 1):
            size = startup.STARTUP_LIMIT - len(b"\0\3\0\0user\0u\0database\0shop\0options\0\0\0") + spare
            packet = startup.encode_startup({"user": "u", "database": "shop"})[4:-1]
            body = packet + b"options\0" + b" " * size + b"\0\0"
            with socket.create_connection((gate.host, gate.port), timeout=20) as sock:
                sock.sendall(struct.pack(">I", len(body) + 4) + body)
                assert sock.recv(1) == (b"E" if spare > 0 else b"R")
        while not gate.idle():
            pass
    assert [line.get("error") for line in logs].count("invalid length of startup packet") == 1


def test_psql_with_too_many_settings(postgres15: PostgresServer) -> None:
    with door(postgres15.port) as (gate, logs):
        printed = psql(postgres15, gate, PGOPTIONS="-c application_name=" + "x" * 12_000)
        assert "FATAL:  invalid length of startup packet" in printed
    logged(logs, "user broke the protocol or the connection")


def test_tls_to_a_plain_listener(postgres15: PostgresServer) -> None:
    with door(postgres15.port) as (gate, logs):
        printed = psql(postgres15, gate, PGSSLMODE="require")
        assert "server does not support SSL, but SSL was required" in printed
        while not gate.idle():
            pass
    logged(logs, "user went away before logging in")


def test_direct_tls_to_a_plain_listener(postgres15: PostgresServer) -> None:
    with door(postgres15.port) as (gate, logs):
        with pytest.raises(psycopg.OperationalError, match=r"SSL|closed"):
            psycopg.connect(gate.conninfo(sslmode="require", sslnegotiation="direct", connect_timeout=10))
        while not gate.idle():
            pass
    assert "TLS" in logged(logs, "user went away before logging in")["reason"]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    pair = Authority(tmp_path_factory.mktemp("tls")).issue("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate_file, pair.key_file)
    context.set_alpn_protocols(["postgresql"])
    return context


def test_plain_to_a_tls_listener(postgres15: PostgresServer, tls: ssl.SSLContext) -> None:
    settings_of_listener = {"plain_allowed": False, "tls": tls}
    with door(postgres15.port) as (gate, logs):
        object.__setattr__(gate.gate, "settings", settings_of_listener)
        printed = psql(postgres15, gate, PGSSLMODE="disable")
        assert "TLS only" in printed and "sslmode=require" in printed and "FATAL" in printed
        assert TOKEN not in printed
        with psycopg.connect(gate.conninfo(sslmode="require")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert "TLS" in logged(logs, "user broke the protocol or the connection")["error"]


def test_garbage_inside_tls_negotiation(postgres15: PostgresServer, tls: ssl.SSLContext) -> None:
    """Bytes stuffed behind the request are no start-up packet (CVE-2021-23222), and no ClientHello either."""
    with door(postgres15.port) as (gate, logs):
        object.__setattr__(gate.gate, "settings", {"plain_allowed": False, "tls": tls})
        stuffed = startup.encode_startup({"user": "agent", "database": "shop"})
        answer = raw(gate, startup.encode_ssl_request() + stuffed)
        assert answer[:1] == b"S" and b"R\0\0\0\x08" not in answer
        while not gate.idle():
            pass
    assert "TLS handshake" in logged(logs, "user broke the protocol or the connection")["error"]


def test_an_unknown_target(postgres15: PostgresServer) -> None:
    with door(postgres15.port) as (gate, logs):
        printed = psql(postgres15, gate, PGDATABASE="nowhere")
        assert 'FATAL:  gatecast has no target "nowhere"; connect with dbname=TARGET' in printed
    logged(logs, "user broke the protocol or the connection")


def test_an_unknown_database_of_a_target(postgres15: PostgresServer) -> None:
    with door(postgres15.port) as (gate, logs):
        printed = psql(postgres15, gate, PGDATABASE="shop/nowhere")
        assert 'FATAL:  database "nowhere" does not exist' in printed  # the target's own words
    logged(logs, "session closed", target="shop", reason="refused by the target")


def test_bad_and_expired_tokens(postgres15: PostgresServer, tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path / "store.db") as database:
        tokens = Tokens(database, clock=clock)
        service = Service(database, tokens, clock=clock)
        secret, _ = tokens.issue("ana@acme.com", seconds=60)
        asyncio.run(service.refresh())
        token = secret.reveal()
        with door(postgres15.port, identities=service) as (gate, logs):
            with psycopg.connect(gate.conninfo(password=token)) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
            clock.advance(61)
            printed = [
                psql(postgres15, gate, PGPASSWORD=token),
                psql(postgres15, gate, PGPASSWORD=token[:-1] + ("a" if token[-1] != "a" else "b")),
                psql(postgres15, gate, PGPASSWORD=WRONG),
                psql(postgres15, gate, PGPASSWORD=WRONG, PGUSER="w\xe9r"),
            ]
            for text in printed:
                assert "FATAL:" in text and "HINT:" in text and token not in text and WRONG not in text
            assert len(set(printed)) == 1  # it does not tell which part was wrong
    refused = [line for line in logs if line["event"] == "login refused"]
    assert len(refused) == 4
    reasons = [line["why"] for line in logs if line["event"] == "login-refused"]
    assert reasons[0] == "expired-token" and len(set(reasons)) >= 2
    assert token not in repr(logs) and token.rpartition("_")[2] not in repr(logs) and WRONG not in repr(logs)


def test_no_password_at_all(postgres15: PostgresServer) -> None:
    with door(postgres15.port) as (gate, logs):
        answer = raw(
            gate, startup.encode_startup({"user": "u", "database": "shop"}) + startup.encode_message(b"p", b"\0")
        )
        assert b"C28P01\0" in answer and b"no password was given" in answer
    logged(logs, "login refused")


def test_a_target_that_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with door(port) as (gate, logs):
        with pytest.raises(psycopg.OperationalError) as caught:
            psycopg.connect(gate.conninfo())
        assert "FATAL:  the gateway could not reach the target" in str(caught.value)
        assert str(port) not in str(caught.value).partition("FATAL")[2]
    logged(logs, "target cannot be reached", target="shop")
    assert any("refused" in line.get("reason", "").lower() for line in logs)


@pytest.mark.parametrize("user", ["by_scram", "by_md5", "by_password", "nobody_at_all"])
def test_a_wrong_password_for_the_target(postgres15: PostgresServer, user: str) -> None:
    with door(postgres15.port, user=user, password=WRONG) as (gate, logs):
        printed = psql(postgres15, gate)
        assert "FATAL:  the gateway could not log in to the target" in printed
        shown = printed + repr(logs) + repr([tape.read_bytes() for tape in gate.tape_files()])
        assert WRONG not in shown and user not in printed and PASSWORD not in shown
        assert "password authentication" not in printed
    line = logged(logs, "target cannot be reached", target="shop")
    assert user not in repr(line)
    assert any(line["event"] == "target login failed" for line in logs)


def test_a_target_that_is_no_postgres() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        import threading

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                sock.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        with door(listener.getsockname()[1]) as (gate, logs):
            with pytest.raises(psycopg.OperationalError, match="could not log in to the target"):
                psycopg.connect(gate.conninfo())
            thread.join()
    logged(logs, "target cannot be reached", target="shop")
    assert any("does not speak PostgreSQL" in line.get("reason", "") for line in logs)


def test_a_target_that_is_configured_wrongly() -> None:
    wrong = Target("shop", "postgres", host="127.0.0.1", port=1, settings={"sslmode": "perhaps"})
    refused = pytest.raises(psycopg.OperationalError, match="not configured correctly")
    with door(1, targets=FakeTargets(wrong)) as (gate, logs), refused:
        psycopg.connect(gate.conninfo())
    assert any("sslmode" in line.get("reason", "") for line in logs)


def test_names_that_are_not_utf_8(postgres15: PostgresServer) -> None:
    """A LATIN1 application name is no reason to refuse a session, or to lose its tape."""
    with door(postgres15.port) as (gate, logs):
        sent = b"user\0m\xfcller\0database\0shop\0application_name\0caf\xe9\0client_encoding\0LATIN1\0\0"
        packet = struct.pack(">II", len(sent) + 8, startup.PROTOCOL_3_0) + sent
        query = b"Q" + struct.pack(">I", 4 + len(b'SELECT "caf\xe9"\0')) + b'SELECT "caf\xe9"\0'
        answer = raw(gate, packet + startup.encode_password(TOKEN.encode()) + query + b"X\0\0\0\4")
        assert b"C42703\0" in answer and b'"caf\xe9"' in answer
    logged(logs, "session closed", reason="done")
