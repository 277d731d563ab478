"""dial() against real servers: each way to log in, with each way of TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop
from psycopg import sql
from structlog.testing import capture_logs

from protocols.postgres import scram, startup
from protocols.postgres.dial import TargetLink, TargetLoginError, TargetStartupError, cancel, dial
from proxy.core.parties import Credential, Secret, Target
from proxy.core.stream import read_exactly
from tests.peers.certificates import Authority
from tests.peers.postgres import PASSWORD, PostgresServer

pytestmark = pytest.mark.peer

T = TypeVar("T")
CANARY = "canary-7f3a"


def run(work: Coroutine[object, object, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):  # a signal's exception would not get out of uvloop
            return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


def target_of(server: PostgresServer, **settings: object) -> Target:
    if server.authority is not None:
        settings.setdefault("sslmode", "verify-full")
        settings.setdefault("sslrootcert", str(server.authority.ca_file))
    host = str(settings.pop("host", "localhost"))
    return Target("t", "postgres", host, server.port, settings={k: v for k, v in settings.items() if v is not None})


def credential(user: str, password: str | None = PASSWORD) -> Credential:
    return Credential(user, Secret(password) if password is not None else None)


async def query(link: TargetLink, text: str) -> list[tuple[bytes, bytes]]:
    """Run one simple query on the link and return its messages, up to ReadyForQuery."""
    await link.stream.write(startup.encode_message(b"Q", text.encode() + b"\0"))
    found: list[tuple[bytes, bytes]] = []
    while not found or found[-1][0] != b"Z":
        header = await read_exactly(link.stream, 5)
        found.append((header[:1], await read_exactly(link.stream, int.from_bytes(header[1:], "big") - 4)))
    return found


async def one_value(link: TargetLink, text: str) -> str:
    """Return the one text value of a query of one row and one column."""
    (row,) = [body for kind, body in await query(link, text) if kind == b"D"]
    return row[6:].decode()


async def ask(target: Target, who: Credential, text: str, **parameters: str) -> str:
    link = await dial(target, who, {"database": "postgres", **parameters})
    try:
        return await one_value(link, text)
    finally:
        await link.stream.close()


@pytest.fixture(params=["15", "18", "18tls"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found = request.getfixturevalue(f"postgres{request.param}")
    assert isinstance(found, PostgresServer)
    return found


@pytest.fixture(params=["15", "18tls"])
def tls_server(request: pytest.FixtureRequest) -> PostgresServer:
    found = request.getfixturevalue(f"postgres{request.param}")
    assert isinstance(found, PostgresServer)
    return found


@pytest.mark.parametrize("user", ["by_trust", "by_password", "by_md5", "by_scram"])
@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require", "verify-ca", "verify-full"])
def test_every_method_in_every_tls_mode(server: PostgresServer, user: str, sslmode: str) -> None:
    if not server.has_tls and sslmode not in ("disable", "prefer"):
        with pytest.raises(TargetLoginError, match="could not log in") as caught:
            run(ask(target_of(server, sslmode=sslmode), credential(user), "select 1"))
        assert "has no TLS" in caught.value.reason
        return
    target = target_of(server, sslmode=sslmode)
    text = "select current_user || ' ' || ssl from pg_stat_ssl where pid = pg_backend_pid()"
    tls = server.has_tls and sslmode != "disable"
    assert run(ask(target, credential(user), text)) == f"{user} {'true' if tls else 'false'}"


def test_the_link_tells_what_the_target_sent(server: PostgresServer) -> None:
    async def work() -> None:
        link = await dial(target_of(server), credential("by_scram"), {"user": "mallory", "database": "postgres"})
        try:
            assert await one_value(link, "select pg_backend_pid()") == str(link.pid)
            assert await one_value(link, "select session_user") == "by_scram"
            assert len(link.secret) == 4
            assert link.messages.endswith(startup.encode_message(b"Z", b"I"))
            assert startup.encode_backend_key(link.pid, link.secret) in link.messages
            assert link.messages.startswith(b"S")
            assert link.parameters["server_version"].startswith(("15", "18"))
            assert link.address[:2] == ("127.0.0.1", server.port)
            assert "secret" not in repr(link)
        finally:
            await link.stream.close()

    run(work())


def test_start_up_parameters_reach_the_target_as_they_are(server: PostgresServer) -> None:
    wishes = {"application_name": 'o\'br\u00efen "x" host=evil', "options": "-c work_mem=1234kB", "DateStyle": "German"}

    async def work() -> None:
        link = await dial(target_of(server), credential("by_scram"), {"database": "postgres", **wishes})
        try:
            assert await one_value(link, "show work_mem") == "1234kB"
            assert await one_value(link, "show datestyle") == "German, DMY"
            shown = await one_value(link, "show application_name")
            assert shown.startswith("o'br") and shown.endswith('en "x" host=evil')
        finally:
            await link.stream.close()

    run(work())


def test_a_database_with_quotes_spaces_and_host_is_only_a_name(server: PostgresServer) -> None:
    name = 'it\'s "odd" host=127.0.0.2 user=postgres'
    with server.database(name):
        target = target_of(server)
        assert run(ask(target, credential("by_scram"), "select current_database()", database=name)) == name


def test_through_the_unix_socket(server: PostgresServer) -> None:
    target = target_of(server, host=server.socket_folder, sslmode="verify-full")
    assert run(ask(target, credential("by_trust", None), "select inet_client_addr() is null")) == "t"


@pytest.mark.parametrize("user", ["by_password", "by_md5", "by_scram"])
def test_a_wrong_password_shows_nothing_of_the_login(server: PostgresServer, user: str) -> None:
    with capture_logs() as logs, pytest.raises(TargetLoginError) as caught:
        run(ask(target_of(server), credential(user, CANARY), "select 1"))
    assert str(caught.value) == "the gateway could not log in to the target"
    assert "28P01" in caught.value.reason
    told = repr(caught.value) + str(caught.value.__cause__) + str(caught.value.__context__) + caught.value.reason
    assert CANARY not in told + repr(logs) and user not in told + repr(logs)
    assert logs[0]["event"] == "target login failed"


def test_a_missing_password_is_our_failure(server: PostgresServer) -> None:
    with pytest.raises(TargetLoginError) as caught:
        run(ask(target_of(server), credential("by_scram", None), "select 1"))
    assert "credential has none" in caught.value.reason


@pytest.mark.parametrize(
    ("parameters", "code", "text"),
    [
        ({"database": "no_such"}, "3D000", 'database "no_such" does not exist'),
        ({"options": "-c no_such_setting=1"}, "42704", 'unrecognized configuration parameter "no_such_setting"'),
        ({"DateStyle": "nonsense"}, "22023", 'invalid value for parameter "DateStyle": "nonsense"'),
    ],
)
def test_errors_about_the_users_wishes_pass(
    server: PostgresServer, parameters: dict[str, str], code: str, text: str
) -> None:
    with pytest.raises(TargetStartupError) as caught:
        run(ask(target_of(server), credential("by_scram"), "select 1", **parameters))
    assert (caught.value.code, caught.value.fields["M"], caught.value.fields["S"]) == (code, text, "FATAL")


def test_a_role_that_may_not_log_in_is_our_failure(server: PostgresServer) -> None:
    with pytest.raises(TargetLoginError) as caught:
        run(ask(target_of(server), credential("pg_monitor", None), "select 1"))
    assert "28000" in caught.value.reason and "pg_monitor" not in str(caught.value)


@pytest.mark.parametrize("kind", ["rsa", "rsa-pss", "ecdsa", "ecdsa-sha384"])
def test_channel_binding_with_every_signature(tls_server: PostgresServer, tmp_path: Path, kind: str) -> None:
    """require succeeds only if PLUS was offered, chosen and right, so success is the proof."""
    authority = Authority(tmp_path, kind=kind)  # type: ignore[arg-type]
    target = target_of(tls_server, sslrootcert=str(authority.ca_file), channel_binding="require")
    assert tls_server.certificate is not None
    tls_server.use_certificate(authority.issue("localhost"))
    try:
        assert run(ask(target, credential("by_scram"), "select 1")) == "1"
    finally:
        tls_server.use_certificate(tls_server.certificate)


def test_ed25519_has_no_channel_binding(tls_server: PostgresServer, tmp_path: Path) -> None:
    authority = Authority(tmp_path, kind="ed25519")
    assert tls_server.certificate is not None
    tls_server.use_certificate(authority.issue("localhost"))
    try:
        target = target_of(tls_server, sslrootcert=str(authority.ca_file))
        assert run(ask(target, credential("by_scram"), "select 1")) == "1"
        target = target_of(tls_server, sslrootcert=str(authority.ca_file), channel_binding="require")
        with pytest.raises(TargetLoginError) as caught:
            run(ask(target, credential("by_scram"), "select 1"))
        assert "channel binding is required" in caught.value.reason
    finally:
        tls_server.use_certificate(tls_server.certificate)


@pytest.mark.parametrize("user", ["by_trust", "by_password", "by_md5"])
def test_channel_binding_required_refuses_what_cannot_bind(tls_server: PostgresServer, user: str) -> None:
    with pytest.raises(TargetLoginError) as caught:
        run(ask(target_of(tls_server, channel_binding="require"), credential(user), "select 1"))
    assert "channel binding is required" in caught.value.reason


@pytest.mark.parametrize("user", ["by_trust", "by_password", "by_md5"])
def test_require_auth_refuses_other_methods(server: PostgresServer, user: str) -> None:
    with pytest.raises(TargetLoginError) as caught:
        run(ask(target_of(server, require_auth="scram-sha-256"), credential(user), "select 1"))
    assert "require_auth" in caught.value.reason


def test_a_certificate_that_nobody_trusts(tls_server: PostgresServer, tmp_path: Path) -> None:
    other = Authority(tmp_path, "another CA")
    for sslmode in ("verify-ca", "verify-full", "require"):  # require with a root certificate is verify-ca
        with pytest.raises(TargetLoginError) as caught:
            run(
                ask(target_of(tls_server, sslmode=sslmode, sslrootcert=str(other.ca_file)), credential("by_scram"), "x")
            )
        assert "certificate was not accepted" in caught.value.reason
        assert "certificate" not in str(caught.value)
    target = target_of(tls_server, sslmode="require", sslrootcert=None)
    assert run(ask(target, credential("by_scram"), "select 1")) == "1"


def test_a_certificate_of_another_name(tls_server: PostgresServer) -> None:
    assert tls_server.authority is not None and tls_server.certificate is not None
    tls_server.use_certificate(tls_server.authority.issue("elsewhere", ("db.example",)))
    try:
        with pytest.raises(TargetLoginError) as caught:
            run(ask(target_of(tls_server, sslmode="verify-full"), credential("by_scram"), "select 1"))
        assert "certificate was not accepted" in caught.value.reason
        assert run(ask(target_of(tls_server, sslmode="verify-ca"), credential("by_scram"), "select 1")) == "1"
        named = target_of(tls_server, host="db.example", hostaddr="127.0.0.1", sslmode="verify-full")
        assert run(ask(named, credential("by_scram"), "select 1")) == "1"
    finally:
        tls_server.use_certificate(tls_server.certificate)


def test_a_client_certificate_logs_in(tls_server: PostgresServer) -> None:
    assert tls_server.authority is not None
    pair = tls_server.authority.issue("by_cert", client=True)
    mine = Credential("by_cert", None, str(pair.certificate_file), str(pair.key_file))
    text = "select client_dn from pg_stat_ssl where pid = pg_backend_pid()"
    assert run(ask(target_of(tls_server), mine, text)) == "/CN=by_cert"
    files = {"sslcert": str(pair.certificate_file), "sslkey": str(pair.key_file)}
    assert run(ask(target_of(tls_server, **files), Credential("by_cert"), text)) == "/CN=by_cert"
    for wrong in (Credential("by_cert"), Credential("by_cert", None, str(pair.certificate_file), "/nowhere")):
        with pytest.raises(TargetLoginError):
            run(ask(target_of(tls_server), wrong, text))


def test_a_foreign_client_certificate_does_not(tls_server: PostgresServer, tmp_path: Path) -> None:
    pair = Authority(tmp_path, "another CA").issue("by_cert", client=True)
    mine = Credential("by_cert", None, str(pair.certificate_file), str(pair.key_file))
    with pytest.raises(TargetLoginError, match="could not log in"):
        run(ask(target_of(tls_server), mine, "select 1"))


def test_direct_tls(postgres18tls: PostgresServer) -> None:
    target = target_of(postgres18tls, sslnegotiation="direct", channel_binding="require")
    assert run(ask(target, credential("by_scram"), "select 1")) == "1"


def test_direct_tls_at_a_server_that_has_none(postgres15: PostgresServer) -> None:
    with pytest.raises(TargetLoginError, match="could not log in"):
        run(ask(target_of(postgres15, sslnegotiation="direct"), credential("by_scram"), "select 1"))


def test_cancel_stops_the_running_statement(server: PostgresServer) -> None:
    async def work(target: Target) -> None:
        link = await dial(target, credential("by_scram"), {"database": "postgres"})
        try:
            await link.stream.write(startup.encode_message(b"Q", b"select pg_sleep(60)\0"))
            watch = await dial(target, credential("by_scram"), {"database": "postgres"})
            active = f"select count(*) from pg_stat_activity where pid = {link.pid} and wait_event = 'PgSleep'"
            while await one_value(watch, active) != "1":
                pass
            await cancel(target, credential("by_scram"), link.pid, link.secret, link.address)
            header = b""
            fields: dict[str, str] = {}
            while header[:1] != b"Z":
                header = await read_exactly(link.stream, 5)
                body = await read_exactly(link.stream, int.from_bytes(header[1:], "big") - 4)
                if header[:1] == b"E":
                    fields = startup.error_fields(body)
            assert fields["C"] == "57014"
            await watch.stream.close()
        finally:
            await link.stream.close()

    run(work(target_of(server)))
    if server.version == "18tls":
        run(work(target_of(server, sslnegotiation="direct")))
    run(work(target_of(server, host=server.socket_folder)))


def test_a_cancel_with_a_wrong_key_does_nothing(server: PostgresServer) -> None:
    run(cancel(target_of(server), credential("by_scram"), 1, b"abcd"))
    assert "wrong key in cancel request" in server.log or "did not match any process" in server.log


def test_nothing_of_ours_runs_in_the_session(server: PostgresServer) -> None:
    """The target sees no statement before the user's first (CVE-2025-12819)."""

    async def work() -> None:
        link = await dial(target_of(server), credential("by_scram"), {"database": "postgres"})
        try:
            with server.connect() as other:
                row = other.execute("select query from pg_stat_activity where pid = %s", [link.pid]).fetchone()
            assert row == ("",)
        finally:
            await link.stream.close()

    run(work())


ODD_PASSWORDS = (
    *("pencil", "I\u00adX", "\u00aa", "\u2168", "a\u00a0b", "\x07", "\u0627\u0031", "\u06271\u0628", "\u0221"),
    *("\u00ad", "\u1100\u1161", "e\u0301\u0345", "\u200b", "\ufb01", "\u0340a", "x\ufffdy", "\u2028"),
    *("\U0001f600", "\u0130\u0307"),
)


def test_saslprep_is_the_servers(server: PostgresServer) -> None:
    """The verifier that the server stores is the one that we make, whatever the password."""
    with server.connect() as connection:
        connection.execute("create role prepared login")
        try:
            for password in ODD_PASSWORDS:
                connection.execute(sql.SQL("alter role prepared password {}").format(password))
                row = connection.execute("select rolpassword from pg_authid where rolname = 'prepared'").fetchone()
                assert row is not None and isinstance(row[0], str)
                salt = scram.parse_verifier(row[0]).salt
                assert scram.make_verifier(password, salt=salt) == row[0], ascii(password)
        finally:
            connection.execute("drop role prepared")
