"""dial() against scripted targets: those that cheat, stall, babble and leave; and the settings."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop
from structlog.testing import capture_logs

from protocols.postgres import dial as dialling
from protocols.postgres import startup
from protocols.postgres.dial import TargetLink, TargetLoginError, TargetStartupError, cancel, dial
from protocols.postgres.dial_settings import read_settings
from protocols.postgres.scram import MECHANISM, MECHANISM_PLUS, ScramServer, make_verifier
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.parties import Credential, Secret, Target
from tests.peers.certificates import Authority, Pair

T = TypeVar("T")
CANARY = "canary-5e1c"
MINE = Credential("svc_canary", Secret(CANARY))
READY = startup.encode_message(b"Z", b"I")
OK = startup.encode_auth(startup.AUTH_OK)


class Scripted:
    """One connection of a fake target."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = b""

    async def packet(self) -> bytes:
        """Read a start-up packet's body."""
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        self.received += (body := await self.reader.readexactly(size - 4))
        return body

    async def message(self) -> bytes:
        """Read a message's body."""
        header = await self.reader.readexactly(5)
        self.received += (body := await self.reader.readexactly(int.from_bytes(header[1:], "big") - 4))
        return body

    async def end(self) -> None:
        """Read until the gate has closed."""
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(4096):
                self.received += data

    def send(self, *messages: bytes) -> None:
        self.writer.write(b"".join(messages))


Script = Callable[[Scripted], Awaitable[None]]


@contextlib.asynccontextmanager
async def fake(script: Script) -> AsyncIterator[tuple[Target, list[Scripted]]]:
    """Serve the script on a free port; what it received is in the list. A failing script fails the test."""
    seen: list[Scripted] = []
    failures: list[BaseException] = []
    done = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        scripted = Scripted(reader, writer)
        seen.append(scripted)
        try:
            await script(scripted)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gate left, which the test looks at by itself
        except Exception as error:
            failures.append(error)
        finally:
            scripted.writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await scripted.writer.wait_closed()
            done.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings: dict[str, object] = {"sslmode": "disable", "connect_timeout_seconds": 5}
    try:
        yield Target("t", "postgres", "127.0.0.1", port, settings=settings), seen
        if seen:
            await done.wait()
    finally:
        server.close()
        await server.wait_closed()
    assert not failures, failures


def run(work: Coroutine[object, object, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):  # a signal's exception would not get out of uvloop
            return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


def with_settings(target: Target, **settings: object) -> Target:
    merged = {**target.settings, **settings}
    return Target(target.name, target.protocol, target.host, target.port, settings=merged)


def outcome(script: Script, credential: Credential = MINE, **settings: object) -> tuple[TargetPeerError, Scripted]:
    """Dial the scripted target, which must fail, and check that nothing of the credential shows anywhere."""

    async def work() -> tuple[TargetPeerError, Scripted]:
        async with fake(script) as (target, seen):
            with pytest.raises(TargetPeerError) as caught:
                link = await dial(with_settings(target, **settings), credential, {"database": "d"})
                link.stream.abort()  # type: ignore[attr-defined]  # a SocketStream; only where the test fails
            return caught.value, seen[0]

    with capture_logs() as logs:
        error, scripted = run(work())
    told = repr(logs)
    step: BaseException | None = error
    while step is not None:
        told += f"{step!r} {step} {getattr(step, 'reason', '')} {getattr(step, 'fields', '')}"
        step = step.__cause__ or step.__context__
    assert CANARY not in told
    assert "svc_canary" not in str(error) + repr(logs)
    return error, scripted


def reason(script: Script, credential: Credential = MINE, **settings: object) -> str:
    error, _ = outcome(script, credential, **settings)
    assert isinstance(error, TargetLoginError), error
    assert str(error) in (dialling.LOGIN_FAILED, "the target did not answer in time")
    return error.reason


def linked(script: Script, credential: Credential = MINE, **settings: object) -> TargetLink:
    """Dial the scripted target, which must work, and hang up."""

    async def work() -> TargetLink:
        async with fake(script) as (target, _):
            link = await dial(with_settings(target, **settings), credential, {"user": "u", "database": "d"})
            await link.stream.close()
            return link

    return run(work())


def answers(*messages: bytes) -> Script:
    """A target that reads the start-up, says all of this, and waits for the gate to leave."""

    async def script(scripted: Scripted) -> None:
        await scripted.packet()
        scripted.send(*messages)
        await scripted.end()

    return script


# -- what works --------------------------------------------------------------------------------------------


def test_all_between_ok_and_ready_is_handed_over_as_it_came() -> None:
    notice = startup.encode_error({"S": "NOTICE", "C": "00000", "M": "welcome"}, b"N")
    between = (
        startup.encode_parameter_status("b", "2"),
        notice,
        startup.encode_backend_key(4_000_000_000, b"\0\1\2\3"),
        startup.encode_parameter_status("a", "1"),
        startup.encode_parameter_status("b", "3"),
    )
    link = linked(answers(OK, *between, READY))
    assert link.messages == b"".join(between) + READY
    assert (link.pid, link.secret, link.parameters) == (4_000_000_000, b"\0\1\2\3", {"b": "3", "a": "1"})


def test_not_a_byte_behind_ready_is_read() -> None:
    async def work() -> None:
        later = startup.encode_parameter_status("late", "x")
        async with fake(answers(OK, READY + later)) as (target, _):
            link = await dial(target, MINE, {})
            assert await link.stream.read(100) == later
            await link.stream.close()

    run(work())


def test_byte_by_byte() -> None:
    async def script(scripted: Scripted) -> None:
        await scripted.packet()
        for byte in OK + startup.encode_backend_key(7, b"abcd") + READY:
            scripted.writer.write(bytes([byte]))
            await scripted.writer.drain()
            await asyncio.sleep(0)
        await scripted.end()

    assert linked(script).pid == 7


def test_no_cancel_key_is_borne() -> None:
    """RDS Proxy sends none."""
    link = linked(answers(OK, READY))
    assert (link.pid, link.secret) == (0, b"")


def test_a_notice_during_authentication_is_borne_and_not_shown() -> None:
    notice = startup.encode_error({"S": "WARNING", "C": "01000", "M": "svc_canary: password expires"}, b"N")
    link = linked(answers(notice, OK, READY))
    assert link.messages == READY


def test_the_start_up_is_the_users_but_for_the_user() -> None:
    async def script(scripted: Scripted) -> None:
        message = startup.parse_startup(await scripted.packet())
        assert list(message.parameters.items()) == [("user", "svc_canary"), ("database", "d")]
        assert message.version == startup.PROTOCOL_3_0
        scripted.send(OK, READY)
        await scripted.end()

    linked(script)


# -- targets that are down, silent, or something else --------------------------------------------------------


def test_nobody_listens() -> None:
    async def work() -> None:
        async with fake(answers()) as (target, _):
            pass
        with pytest.raises(TargetLoginError, match="could not reach the target") as caught:
            await dial(target, MINE, {})
        assert caught.value.code == "08001" and "Connection refused" in caught.value.reason

    run(work())


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".example", "/no/such/folder"])
def test_a_host_that_is_nowhere(host: str) -> None:
    with pytest.raises(TargetLoginError, match="could not reach") as caught:
        run(dial(Target("t", "postgres", host, 1, settings={"sslmode": "disable"}), MINE, {}))
    assert host not in str(caught.value)


@pytest.mark.parametrize("stage", ["at once", "after the start-up", "after ok", "TLS answer", "TLS handshake"])
@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_target_that_stalls(stage: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def script(scripted: Scripted) -> None:
        if stage != "at once":
            await scripted.packet()
        if stage == "after ok":
            scripted.send(OK)
        if stage == "TLS handshake":
            scripted.send(b"S")
        await scripted.end()

    async def work() -> None:
        async with fake(script) as (target, _):
            mode = "require" if stage.startswith("TLS") else "disable"
            with pytest.raises(TargetLoginError, match="did not answer in time"):
                await dial(with_settings(target, sslmode=mode, connect_timeout_seconds=0.1), MINE, {})

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(work())


@pytest.mark.parametrize("mode", ["disable", "require"])
@pytest.mark.parametrize(
    "banner",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64, b"\xff" * 64, b"E" * 64, b"R"],
)
def test_a_target_that_speaks_something_else(banner: bytes, mode: str) -> None:
    async def script(scripted: Scripted) -> None:
        scripted.send(banner)
        scripted.writer.write_eof()
        await scripted.end()

    assert reason(script, sslmode=mode)


@pytest.mark.parametrize(
    "messages",
    [
        startup.encode_message(b"T", b""),
        startup.encode_message(b"R", b"\0\0"),
        startup.encode_message(b"R", b"\0\0\0\x0a" + b"x" * 2000),
        startup.encode_message(b"E", b"Mno end"),
        startup.encode_negotiate(startup.PROTOCOL_3_0, []),
        b"R\0\0\0\3",
        b"R\x7f\xff\xff\xff",
        OK + startup.encode_message(b"K", b"\0\0\0\1abc"),
        OK + startup.encode_message(b"K", b"\0\0\0\1" + b"k" * 257),
        OK + startup.encode_message(b"S", b"name only\0"),
        OK + startup.encode_message(b"D", b""),
        OK + OK,
    ],
)
def test_a_broken_message(messages: bytes) -> None:
    assert reason(answers(messages))


@pytest.mark.parametrize(("spare", "fits"), [(-1, True), (0, True), (1, False)])
def test_the_limit_of_one_message(spare: int, fits: bool) -> None:
    size = startup.LOGIN_MESSAGE_LIMIT - len(b"name\0\0") + spare
    script = answers(OK, startup.encode_parameter_status("name", "x" * size), READY)
    if fits:
        assert linked(script).parameters == {"name": "x" * size}
    else:
        assert "too long" in reason(script)


def test_the_limit_of_the_whole_login() -> None:
    many = startup.encode_parameter_status("name", "x" * 20_000) * 60
    assert "too much" in reason(answers(OK, many, READY))
    notice = startup.encode_error({"S": "NOTICE", "M": "x" * 20_000}, b"N") * 60
    assert "too much" in reason(answers(notice, OK, READY))


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["53300", "57P03", "3D000"])
def test_errors_before_the_login_that_are_not_about_it(code: str) -> None:
    fields = {"S": "FATAL", "V": "FATAL", "C": code, "M": "not now", "H": "later"}
    error, _ = outcome(answers(startup.encode_error(fields)))
    assert isinstance(error, TargetStartupError) and error.fields == fields and error.code == code


@pytest.mark.parametrize("code", ["28P01", "28000", "08P01", "XX000", "42501", "", "no code", "53\nxx"])
def test_other_errors_before_the_login_are_ours(code: str) -> None:
    fields = {"S": "FATAL", "M": f'password authentication failed for user "svc_canary" {CANARY}'}
    if code:
        fields["C"] = code
    assert "refused the login" in reason(answers(startup.encode_error(fields)))


def test_errors_after_the_login() -> None:
    error, _ = outcome(answers(OK, startup.encode_error({"S": "FATAL", "C": "42704", "M": "unrecognized"})))
    assert isinstance(error, TargetStartupError) and error.code == "42704"
    assert "28000" in reason(answers(OK, startup.encode_error({"S": "FATAL", "C": "28000", "M": "role svc_canary"})))


def test_a_target_that_quotes_the_password_back() -> None:
    async def script(scripted: Scripted) -> None:
        await scripted.packet()
        scripted.send(startup.encode_auth(startup.AUTH_CLEARTEXT))
        password = (await scripted.message())[:-1].decode()
        assert password == CANARY
        scripted.send(OK, startup.encode_error({"S": "FATAL", "C": "53300", "M": f"<{password}>", "D": password}))
        await scripted.end()

    error, _ = outcome(script)
    assert isinstance(error, TargetStartupError) and error.fields["M"] == "<***>" and error.fields["D"] == "***"


def test_parameters_that_no_packet_can_hold() -> None:
    async def work(parameters: dict[str, str]) -> None:
        async with fake(answers()) as (target, _):
            with pytest.raises(TargetStartupError) as caught:
                await dial(target, MINE, parameters)
            assert caught.value.fields["C"] == "08P01"

    run(work({"options": "x" * startup.STARTUP_LIMIT}))
    run(work({"options": "a\0b"}))


# -- passwords -----------------------------------------------------------------------------------------------


def test_no_password_in_the_clear_to_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "_trusted", lambda stream, address: False)
    error, scripted = outcome(answers(startup.encode_auth(startup.AUTH_CLEARTEXT)))
    assert isinstance(error, TargetLoginError) and "in the clear" in error.reason
    assert CANARY.encode() not in scripted.received


@pytest.mark.parametrize(
    ("address", "tls", "trusted"),
    [
        (("127.0.0.1", 5432), False, True),
        (("::1", 5432, 0, 0), False, True),
        (("fe80::1%eth0", 5432, 0, 2), False, False),
        (("10.0.0.1", 5432), False, False),
        (("10.0.0.1", 5432), True, True),
        ("/run/postgresql/.s.PGSQL.5432", False, True),
    ],
)
def test_who_is_trusted_with_a_password(address: dialling.Address, tls: bool, trusted: bool) -> None:
    class Known:
        def info(self, key: str) -> object:
            return tls if key == "tls" else None

    assert dialling._trusted(Known(), address) is trusted  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [2, 6, 7, 8, 9, 11, 12, 13, 4_000_000_000])
def test_authentication_that_the_gate_does_not_speak(code: int) -> None:
    found = reason(answers(startup.encode_auth(code, b"xxxx")))
    assert "GSSAPI" in found if code in (7, 8, 9) else "unknown" in found


@pytest.mark.parametrize("password", ["", "a\0b", "x" * startup.PASSWORD_LIMIT])
def test_a_password_that_no_packet_can_hold(password: str) -> None:
    found = reason(answers(startup.encode_auth(startup.AUTH_CLEARTEXT)), Credential("svc_canary", Secret(password)))
    assert "empty, too long" in found


def test_the_proof_is_asked_for_once() -> None:
    async def script(scripted: Scripted) -> None:
        await scripted.packet()
        scripted.send(startup.encode_auth(startup.AUTH_MD5, b"salt"))
        await scripted.message()
        scripted.send(startup.encode_auth(startup.AUTH_CLEARTEXT))
        await scripted.end()

    error, scripted = outcome(script)
    assert isinstance(error, TargetLoginError) and "second proof" in error.reason
    assert CANARY.encode() not in scripted.received


def test_an_md5_salt_of_the_wrong_size() -> None:
    assert "salt" in reason(answers(startup.encode_auth(startup.AUTH_MD5, b"sal")))


# -- SCRAM ---------------------------------------------------------------------------------------------------


def scram_script(*, cut: str = "", password: str = CANARY, offer: tuple[str, ...] = (MECHANISM,)) -> Script:
    """A target that speaks SCRAM, up to where it begins to cheat."""

    async def script(scripted: Scripted) -> None:
        await scripted.packet()
        scripted.send(startup.encode_sasl_mechanisms(offer))
        server = ScramServer("u", make_verifier(password), b"key")
        mechanism, first = startup.parse_sasl_initial(await scripted.message())
        challenge = server.begin(mechanism, first)
        if cut == "ok without challenge":
            scripted.send(OK, READY)
            return await scripted.end()
        if cut == "nonce":
            challenge = b"r=evil" + challenge[2:]
        if cut == "iterations":
            challenge = challenge.replace(b"i=4096", b"i=2000000000")
        scripted.send(startup.encode_auth(startup.AUTH_SASL_CONTINUE, challenge))
        final = await scripted.message()
        if cut == "ok without proof":
            scripted.send(OK, READY)
            return await scripted.end()
        if cut == "second challenge":
            scripted.send(startup.encode_auth(startup.AUTH_SASL_CONTINUE, challenge))
            return await scripted.end()
        proof = server.finish(final) or b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
        if cut == "false proof":
            proof = b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
        scripted.send(startup.encode_auth(startup.AUTH_SASL_FINAL, proof), OK, READY)
        return await scripted.end()

    return script


def test_scram_with_a_target_that_plays_fair() -> None:
    assert linked(scram_script()).messages == READY


@pytest.mark.parametrize(
    ("cut", "text"),
    [
        ("ok without challenge", "without its own proof"),
        ("ok without proof", "without its own proof"),
        ("nonce", "nonce"),
        ("iterations", "iteration"),
        ("second challenge", "second SCRAM challenge"),
        ("false proof", "signature is wrong"),
    ],
)
def test_scram_with_a_target_that_cheats(cut: str, text: str) -> None:
    assert text in reason(scram_script(cut=cut))


def test_scram_with_a_target_that_does_not_know_the_password() -> None:
    assert "signature is wrong" in reason(scram_script(password="other"))


@pytest.mark.parametrize("offer", [("SCRAM-SHA-1",), ("OAUTHBEARER",), (MECHANISM_PLUS,), ()])
def test_no_mechanism_in_common(offer: tuple[str, ...]) -> None:
    assert "no SASL mechanism" in reason(scram_script(offer=offer))


def test_channel_binding_cannot_be_had_without_tls() -> None:
    async def script(scripted: Scripted) -> None:
        await scripted.packet()
        scripted.send(b"N")
        await scram_script(offer=(MECHANISM_PLUS, MECHANISM))(scripted)

    assert "channel binding is required" in reason(script, sslmode="prefer", channel_binding="require")


# -- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("dial"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("localhost")


def tls_script(pair: Pair, then: Script, *, stuffed: bytes = b"", alpn: bool = True) -> Script:
    async def script(scripted: Scripted) -> None:
        assert startup.parse_first(await scripted.packet()) == startup.SSLRequest()
        scripted.send(b"S" + stuffed)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate_file, pair.key_file)
        if alpn:
            context.set_alpn_protocols(["postgresql"])
        with contextlib.suppress(ssl.SSLError):
            await scripted.writer.start_tls(context)
            await then(scripted)

    return script


def test_scram_plus_is_used_where_it_is_offered(authority: Authority, pair: Pair) -> None:
    async def then(scripted: Scripted) -> None:
        await scripted.packet()
        server = ScramServer("u", make_verifier(CANARY), b"key", certificate=pair.der)
        scripted.send(startup.encode_sasl_mechanisms(server.mechanisms))
        mechanism, first = startup.parse_sasl_initial(await scripted.message())
        assert mechanism == MECHANISM_PLUS
        scripted.send(startup.encode_auth(startup.AUTH_SASL_CONTINUE, server.begin(mechanism, first)))
        proof = server.finish(await scripted.message())
        assert proof is not None
        scripted.send(startup.encode_auth(startup.AUTH_SASL_FINAL, proof), OK, READY)
        await scripted.end()

    roots = str(authority.ca_file)
    assert linked(tls_script(pair, then), sslmode="verify-full", sslrootcert=roots).messages == READY


def test_a_stripped_offer_of_plus_is_told_to_the_target(authority: Authority, pair: Pair) -> None:
    """Somebody between took PLUS out of the list: flag y lets the real target notice."""

    async def then(scripted: Scripted) -> None:
        await scripted.packet()
        scripted.send(startup.encode_sasl_mechanisms([MECHANISM]))
        _, first = startup.parse_sasl_initial(await scripted.message())
        assert first is not None and first.startswith(b"y,,")
        await scripted.end()

    async def work() -> None:
        async with fake(tls_script(pair, then)) as (target, _):
            wanted = with_settings(target, sslmode="require", connect_timeout_seconds=0.5)
            with pytest.raises(TargetLoginError):
                await dial(wanted, MINE, {})

    run(work())


def test_clear_text_behind_the_s_is_never_read(authority: Authority, pair: Pair) -> None:
    """CVE-2021-23222: what a man in the middle stuffs in front of TLS breaks TLS and is not obeyed."""
    stuffed = OK + READY
    assert reason(tls_script(pair, answers(OK, READY), stuffed=stuffed), sslmode="require")


def test_no_where_tls_is_a_must() -> None:
    async def script(scripted: Scripted) -> None:
        await scripted.packet()
        scripted.send(b"N")
        await scripted.end()

    error, scripted = outcome(script, sslmode="require")
    assert isinstance(error, TargetLoginError) and "has no TLS" in error.reason
    assert b"svc_canary" not in scripted.received  # nothing was told in the clear


def test_no_where_tls_is_a_wish() -> None:
    async def script(scripted: Scripted) -> None:
        await scripted.packet()
        scripted.send(b"N")
        await scripted.packet()
        scripted.send(OK, READY)
        await scripted.end()

    assert linked(script, sslmode="prefer").messages == READY


def test_an_error_before_tls_is_not_believed() -> None:
    """CVE-2024-10977: its text would come from nobody we know."""

    async def script(scripted: Scripted) -> None:
        await scripted.packet()
        scripted.send(startup.encode_error({"S": "FATAL", "C": "53300", "M": "believe me"}))
        await scripted.end()

    found = reason(script, sslmode="require")
    assert "believe me" not in found


def test_direct_tls_without_alpn_is_refused(authority: Authority, pair: Pair) -> None:
    async def work() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate_file, pair.key_file)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                received.append(await reader.read(100))
            writer.close()

        received: list[bytes] = []
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            settings: dict[str, object] = {
                "sslmode": "verify-full",
                "sslrootcert": str(authority.ca_file),
                "sslnegotiation": "direct",
            }
            with pytest.raises(TargetLoginError) as caught:
                await dial(Target("t", "postgres", "127.0.0.1", port, settings=settings), MINE, {})
        assert "ALPN" in caught.value.reason
        assert b"svc_canary" not in b"".join(received)

    run(work())


@pytest.mark.parametrize("file", ["sslrootcert", "sslcert"])
def test_certificate_files_that_cannot_be_read(pair: Pair, tmp_path: Path, file: str) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")

    async def work(path: Path) -> None:
        async with fake(tls_script(pair, answers())) as (target, _):
            settings = {"sslmode": "verify-ca", "sslrootcert": str(pair.certificate_file), file: str(path)}
            with pytest.raises(TargetLoginError, match="not configured correctly") as caught:
                await dial(with_settings(target, **settings), MINE, {})
            assert "read" in caught.value.reason and str(path) not in str(caught.value)

    run(work(junk))
    run(work(tmp_path / "missing.pem"))


# -- cancel --------------------------------------------------------------------------------------------------


def test_cancel_goes_where_the_session_is() -> None:
    async def script(scripted: Scripted) -> None:
        assert startup.parse_first(await scripted.packet()) == startup.CancelRequest(7, b"abcd")

    async def work() -> None:
        async with fake(script) as (target, seen):
            elsewhere = Target("t", "postgres", "no-such-host.invalid", 1, settings=target.settings)
            await cancel(elsewhere, MINE, 7, b"abcd", ("127.0.0.1", target.port))
            assert len(seen) == 1

    run(work())


def test_a_cancel_that_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "CANCEL_SECONDS", 0.1)

    async def script(scripted: Scripted) -> None:
        await scripted.end()

    async def work() -> None:
        async with fake(script) as (target, _):
            with pytest.raises(TargetPeerError, match="in time"):
                await cancel(target, MINE, 7, b"abcd")
        with pytest.raises(TargetPeerError, match="could not reach"):
            await cancel(target, MINE, 7, b"abcd")

    run(work())


# -- settings ------------------------------------------------------------------------------------------------


def test_the_default_of_sslmode() -> None:
    def found(host: str, **settings: object) -> tuple[str, str]:
        read = read_settings(Target("t", "postgres", host, settings=settings))
        return read.sslmode, read.verify

    assert found("db.example") == ("verify-full", "name")
    assert found("10.0.0.1") == ("verify-full", "name")
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "LOCALHOST."):
        assert found(host) == ("prefer", "nothing")
    assert found("localhost.example") == ("verify-full", "name")
    assert found("/run/postgresql", sslmode="verify-full") == ("disable", "nothing")
    assert found("db.example", sslmode="require") == ("require", "nothing")
    assert found("db.example", sslmode="require", sslrootcert="ca") == ("require", "chain")
    assert found("db.example", hostaddr="127.0.0.1") == ("prefer", "nothing")
    assert read_settings(Target("t", "postgres", "/run/x/", 77)).unix_path == "/run/x/.s.PGSQL.77"


@pytest.mark.parametrize(
    "settings",
    [
        {"sslmode": "allow"},
        {"sslmode": True},
        {"sslnegotiation": "direct", "sslmode": "prefer"},
        {"sslnegotiation": "late"},
        {"channel_binding": "require", "sslmode": "disable"},
        {"channel_binding": "yes"},
        {"require_auth": "scram-sha-256,gss"},
        {"sslkey": "key"},
        {"connect_timeout_seconds": 0},
        {"connect_timeout_seconds": 601},
        {"connect_timeout_seconds": "5"},
        {"connect_timeout_seconds": True},
    ],
)
def test_settings_that_contradict(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="target t"):
        read_settings(Target("t", "postgres", "db.example", settings=settings))
    with pytest.raises(TargetLoginError, match="not configured correctly"):
        run(dial(Target("t", "postgres", "db.example", settings=settings), MINE, {}))


def test_a_target_without_a_host() -> None:
    with pytest.raises(ConfigError, match="host"):
        read_settings(Target("t", "postgres"))
