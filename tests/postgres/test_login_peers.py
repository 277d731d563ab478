"""How real clients get in: every sslmode, direct TLS, SCRAM and channel binding, OAUTHBEARER, versions, GSSENC."""

from __future__ import annotations

import asyncio
import select
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from protocols.postgres import startup
from protocols.postgres.scram import make_verifier
from tests.fakes import TOKEN, FakeIdentities
from tests.peers.certificates import Authority, Pair
from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import Gateway, gateway

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def context_of(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate_file, pair.key_file)
    context.set_alpn_protocols(["postgresql"])
    return context


@pytest.fixture(scope="module")
def tls_gate(postgres15: PostgresServer, authority: Authority) -> Iterator[Gateway]:
    pair = authority.issue("localhost")
    with gateway(postgres15.port, tls=context_of(pair), listener_settings={"plain_allowed": False}) as running:
        yield running


@pytest.fixture(scope="module")
def plain_gate(postgres15: PostgresServer) -> Iterator[Gateway]:
    with gateway(postgres15.port) as running:
        yield running


def one(conninfo: str) -> Any:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        row = connection.execute("SELECT 1").fetchone()
        assert row is not None
        return connection.pgconn.ssl_in_use


@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
def test_every_sslmode_that_can_be_tls_is(tls_gate: Gateway, authority: Authority, mode: str) -> None:
    root = {"sslrootcert": str(authority.ca_file)} if mode.startswith("verify") else {}
    assert one(tls_gate.conninfo(sslmode=mode, host="localhost", **root)) is True


def test_without_tls_the_error_says_what_to_do(tls_gate: Gateway) -> None:
    with pytest.raises(psycopg.OperationalError, match="sslmode=require"):
        one(tls_gate.conninfo(sslmode="disable"))


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
def test_a_plain_listener_answers_no_to_tls(plain_gate: Gateway, mode: str) -> None:
    assert one(plain_gate.conninfo(sslmode=mode)) is False


def test_a_plain_listener_and_a_user_who_insists(plain_gate: Gateway) -> None:
    with pytest.raises(psycopg.OperationalError, match="does not support SSL"):
        one(plain_gate.conninfo(sslmode="require"))


def test_direct_tls(tls_gate: Gateway) -> None:
    assert one(tls_gate.conninfo(sslmode="require", sslnegotiation="direct")) is True


def test_direct_tls_without_alpn_is_refused(tls_gate: Gateway) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((tls_gate.host, tls_gate.port), timeout=10) as raw, context.wrap_socket(raw) as tls:
        assert b"ALPN" in tls.recv(1000)


def test_bytes_stuffed_behind_sslrequest_are_never_read_as_clear(tls_gate: Gateway) -> None:
    """CVE-2021-23222: a query smuggled before the handshake."""
    with socket.create_connection((tls_gate.host, tls_gate.port), timeout=10) as raw:
        hello = startup.encode_startup({"user": "mallory", "database": "shop"})
        raw.sendall(startup.encode_ssl_request() + hello)
        assert raw.recv(1) == b"S"
        rest = raw.recv(1000)
        assert rest == b"" or rest[0] == 0x15  # closed, or a TLS alert


def test_an_early_client_hello_is_read_as_tls(tls_gate: Gateway) -> None:
    """warpgate #1421: the ClientHello came with the SSLRequest."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with socket.create_connection((tls_gate.host, tls_gate.port), timeout=10) as raw:
        raw.sendall(startup.encode_ssl_request() + outgoing.read())
        assert raw.recv(1) == b"S"
        while True:
            incoming.write(raw.recv(10_000))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        raw.sendall(outgoing.read())
        assert tls.version() in ("TLSv1.2", "TLSv1.3")


def test_gssenc_request_is_answered_no_and_the_connection_goes_on(tls_gate: Gateway, plain_gate: Gateway) -> None:
    for gate, wanted in ((tls_gate, b"S"), (plain_gate, b"N")):
        with socket.create_connection((gate.host, gate.port), timeout=10) as raw:
            for byte in startup.encode_gssenc_request():
                raw.sendall(bytes((byte,)))
            assert raw.recv(1) == b"N"
            raw.sendall(startup.encode_ssl_request())
            assert raw.recv(1) == wanted


def test_a_wrong_token_is_told_natively(plain_gate: Gateway) -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        one(plain_gate.conninfo(password="wrong-canary"))
    assert "token" in str(caught.value) and "wrong-canary" not in str(caught.value)


def scram_gate(port: int, pair: Pair | None) -> Any:
    identities = FakeIdentities()
    identities.verifiers["leo"] = make_verifier("péncil", 4096)
    settings = {"login": "scram", "scram_mock_key": b"m" * 32, "certificate": pair.der if pair else None}
    return gateway(port, tls=context_of(pair) if pair else None, listener_settings=settings, identities=identities)


def test_scram_with_and_without_channel_binding(postgres15: PostgresServer, authority: Authority) -> None:
    with scram_gate(postgres15.port, authority.issue("localhost", file_name="scram")) as gate:
        for binding in ("require", "prefer", "disable"):
            assert one(gate.conninfo(user="leo", password="péncil", sslmode="require", channel_binding=binding))
        for user, password in (("leo", "wrong"), ("nobody", "péncil")):
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                one(gate.conninfo(user=user, password=password, sslmode="require"))

        async def other_driver() -> None:
            connection = await asyncpg.connect(
                host=gate.host, port=gate.port, user="leo", password="péncil", database="shop", ssl=_anyone()
            )
            assert await connection.fetchval("SELECT 1") == 1
            await connection.close()

        asyncio.run(other_driver())
    with scram_gate(postgres15.port, None) as gate:
        assert one(gate.conninfo(user="leo", password="péncil")) is False


def _anyone() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def raw_login(gate: Gateway, version: int, parameters: dict[str, str], options: tuple[str, ...] = ()) -> bytes:
    """Log in by hand; returns all that came up to ReadyForQuery or the end."""
    with socket.create_connection((gate.host, gate.port), timeout=10) as raw:
        pairs = {**parameters, **dict.fromkeys(options, "1")}
        raw.sendall(startup.encode_startup(pairs, version))
        got = b""
        sent = False
        while b"Z\0\0\0\5I" not in got:
            data = raw.recv(10_000)
            if not data:
                break
            got += data
            if not sent and startup.encode_auth(startup.AUTH_CLEARTEXT) in got:
                raw.sendall(startup.encode_password(TOKEN.encode()))
                sent = True
        return got


WHO = {"user": "agent", "database": "shop"}


def test_protocol_versions_are_negotiated(plain_gate: Gateway) -> None:
    assert raw_login(plain_gate, startup.PROTOCOL_3_0, WHO).startswith(b"R")
    newest = startup.PROTOCOL_3_2
    for version, options, answer in (
        (newest, (), b""),
        (0x0003270F, (), startup.encode_negotiate(newest, ())),  # 3.9999, PostgreSQL 19's grease
        (newest, ("_pq_.grease", "_pq_.other"), startup.encode_negotiate(newest, ("_pq_.grease", "_pq_.other"))),
        (startup.PROTOCOL_3_0, ("_pq_.x",), startup.encode_negotiate(startup.PROTOCOL_3_0, ("_pq_.x",))),
    ):
        got = raw_login(plain_gate, version, WHO, options)
        assert got.startswith(answer + b"R"), got[:60]
        assert b"Z\0\0\0\5I" in got
        at = got.index(b"K\0\0\0")
        length = struct.unpack(">I", got[at + 1 : at + 5])[0]
        assert length == (40 if version & 0xFFFF >= 2 else 12)
    with socket.create_connection((plain_gate.host, plain_gate.port), timeout=10) as raw:
        raw.sendall(startup.encode_startup(WHO, 0x00020000))
        assert b"unsupported frontend protocol" in raw.recv(1000)


def _cancelled(connection: psycopg.Connection[Any]) -> Any:
    """Cancel until there is a result: a cancel that overtakes its statement hits nothing, here as anywhere.

    Nothing here holds the GIL while it waits, for the gateway is in this process.
    """
    line = connection.pgconn
    while line.is_busy():
        connection.cancel_safe()
        select.select([line.socket], [], [], 0.2)
        line.consume_input()
    result = line.get_result()
    while line.is_busy():
        select.select([line.socket], [], [], 20)
        line.consume_input()
    assert line.get_result() is None
    return result


@pytest.mark.parametrize("wanted", ["3.0", "3.2", "latest"])
def test_libpq_18_speaks_what_it_wants(plain_gate: Gateway, wanted: str) -> None:
    """psycopg's own libpq is 18: long cancel keys reach the right query too."""
    with psycopg.connect(plain_gate.conninfo(max_protocol_version=wanted), autocommit=True) as connection:
        connection.pgconn.send_query(b"SELECT pg_sleep(20)")
        result = _cancelled(connection)
        assert result is not None and result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"57014"


def test_database_names_targets(postgres15: PostgresServer, plain_gate: Gateway) -> None:
    with psycopg.connect(plain_gate.conninfo(dbname="shop/template1")) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("template1",)
    for name, text in (("nowhere", "no target"), ("shop/none", 'database "none" does not exist')):
        with pytest.raises(psycopg.OperationalError, match=text):
            one(plain_gate.conninfo(dbname=name))
    with pytest.raises(psycopg.OperationalError, match="no target"):
        one(plain_gate.conninfo(dbname="shop' host=evil"))


def test_startup_parameters_reach_the_target(plain_gate: Gateway) -> None:
    options = "-c gatecast.intent=clean\\ up -c statement_timeout=4321"
    with psycopg.connect(plain_gate.conninfo(options=options, application_name="agent 7")) as connection:
        for name, value in (("statement_timeout", "4321ms"), ("application_name", "agent 7")):
            assert connection.execute(f"SHOW {name}".encode()).fetchone() == (value,)
    with pytest.raises(psycopg.OperationalError, match="unrecognized configuration parameter"):
        one(plain_gate.conninfo(options="-c nothing_like_it=1"))


def test_oauth_bearer_of_libpq_18(postgres15: PostgresServer, tmp_path: Path) -> None:
    """Discovery is a connection of its own; a user with a token sends it at once. By hand: no browser flow here."""
    settings = {"login": "oauth", "oauth": {"issuer": "https://issuer.example", "scope": "openid gatecast"}}
    with gateway(postgres15.port, listener_settings=settings) as gate:
        for token, wanted in (("", b"openid-configuration"), (TOKEN, b"Z\0\0\0\5I"), ("wrong", b"28P01")):
            with socket.create_connection((gate.host, gate.port), timeout=10) as raw:
                raw.sendall(startup.encode_startup(WHO))
                offered = raw.recv(1000)
                assert offered == startup.encode_sasl_mechanisms(("OAUTHBEARER",))
                auth = f"Bearer {token}" if token else ""
                raw.sendall(startup.encode_sasl_initial("OAUTHBEARER", f"n,,\x01auth={auth}\x01\x01".encode()))
                got = raw.recv(1000)
                if not token:
                    assert b"https://issuer.example/.well-known/openid-configuration" in got
                    raw.sendall(startup.encode_sasl_response(b"\x01"))
                while wanted not in got or not token:
                    data = raw.recv(10_000)
                    if not data:
                        break
                    got += data
                assert wanted in got


def test_system_psql_uses_tls(tls_gate: Gateway, authority: Authority) -> None:
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("psql is missing: apt-get install postgresql-client")
    done = subprocess.run(
        [psql, tls_gate.conninfo(host="localhost", sslmode="verify-full", sslrootcert=str(authority.ca_file)),
         "-XAtc", "SELECT 41 + 1"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout == "42\n", done.stderr
