"""The gateway as a whole, with a toy protocol: start, sessions, reload, revocation, limits, drain, seals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import uvloop

import protocols
from proxy import app, logging, services
from proxy.admin.client import AdminClient
from proxy.admin.wire import AdminError
from proxy.app import Gateway
from proxy.certificates import self_signed
from proxy.core.errors import ConfigError
from proxy.identity.commands import token_issue, token_revoke
from proxy.services import file_system, open_services, secret_file
from recorder.cli import list_sessions, show, verify_path
from recorder.seal import public_path
from tests import toy

CONFIG = """\
state: state
listeners:
  - {name: toy, protocol: toy, address: "127.0.0.1:0", plain: true}
targets:
  - {name: shelf, protocol: toy, host: nowhere, credential: {user: x}, recording: written}
limits: {max_connections: 3, drain_seconds: 0}
rules_file: rules.yaml
"""
RULES = """\
rules:
  - name: look
    commands: {verbs: [LOOK]}
    allow: true
"""
PATIENCE = 10.0


@pytest.fixture(autouse=True)
def toy_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**protocols.load(), "toy": toy.PROTOCOL}
    monkeypatch.setattr(protocols, "load", lambda: known)


@pytest.fixture
def logs() -> Iterator[StringIO]:
    stream = StringIO()
    logging.configure("debug", stream, as_json=True)
    yield stream
    logging.configure("info", StringIO())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gatecast.yaml").write_text(CONFIG)
    (tmp_path / "rules.yaml").write_text(RULES)
    return tmp_path


def token_of(folder: Path, subject: str = "ana@example.com") -> tuple[str, str]:
    issued = token_issue(folder / "state" / "gatecast.db", subject)
    return issued["token"], issued["id"]


Body = Callable[[Gateway], Coroutine[Any, Any, None]]


def run(folder: Path, body: Body) -> None:
    """Run a gateway, the body beside it, and stop; as app.run() does, without its signals."""
    with open_services(folder / "gatecast.yaml") as made, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def main() -> None:
            gateway = Gateway(made)
            started = asyncio.Event()
            async with asyncio.timeout(PATIENCE * 3), asyncio.TaskGroup() as group:
                group.create_task(gateway.run(lambda _: started.set()))
                await started.wait()
                try:
                    await body(gateway)
                finally:
                    gateway.stop()

        runner.run(main())


class Talk:
    """A user of the toy protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.session = ""

    async def say(self, line: str) -> str:
        self.writer.write(f"{line}\n".encode())
        return await self.hear()

    async def hear(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return (await self.reader.readline()).decode().strip()


@contextlib.asynccontextmanager
async def talk(gateway: Gateway, token: str = "", **kwargs: Any) -> AsyncIterator[Talk]:
    host, port = gateway.addresses()["toy"][0].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), **kwargs)
    talking = Talk(reader, writer)
    try:
        if token:
            answer = await talking.say(f"{token} shelf")
            talking.session = answer.removeprefix("session ")
        yield talking
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def until(true: Callable[[], bool]) -> None:
    """Let the loop turn until it is so."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.005)


def events(logs: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logs.getvalue().splitlines()]


def verified(folder: Path) -> str:
    return str(verify_path(folder / "state" / "tapes", public_path(folder / "state" / "seal.key"))["status"])


def test_a_session_is_decided_and_recorded(folder: Path, logs: StringIO) -> None:
    async def body(gateway: Gateway) -> None:
        token, _ = token_of(folder)
        async with talk(gateway, token) as user:
            assert await user.say("look here") == "ok look here"
            assert await user.say("touch it") == "denied default-deny"
            assert [row["id"] for row in gateway.connections.live()] == [user.session]
        await until(lambda: len(gateway.connections) == 0)

    run(folder, body)
    (row,) = list_sessions(folder / "state" / "tapes")
    assert (row["status"], row["commands_count"], row["subject"]) == ("closed", 2, "ana@example.com")
    assert show(Path(row["path"]))["header"]["policy_rev"]
    assert verified(folder) == "verified"
    assert "gct_" not in logs.getvalue()


def test_new_rules_count_at_the_next_command_of_a_running_session(folder: Path) -> None:
    async def body(gateway: Gateway) -> None:
        token, _ = token_of(folder)
        async with talk(gateway, token) as user:
            assert await user.say("touch it") == "denied default-deny"
            before = gateway.services.live.snapshot.rules.revision
            (folder / "rules.yaml").write_text(RULES.replace("[LOOK]", "[TOUCH]"))
            await until(lambda: gateway.services.live.snapshot.rules.revision != before)  # by the watch alone
            assert await user.say("touch it") == "ok touch it"
            assert await user.say("look here") == "denied default-deny"

    run(folder, body)


def test_a_bad_file_keeps_the_old_rules_and_says_which_line(folder: Path, logs: StringIO) -> None:
    async def body(gateway: Gateway) -> None:
        token, _ = token_of(folder)
        async with talk(gateway, token) as user:
            (folder / "rules.yaml").write_text(RULES.replace("verbs", "verbes"))
            assert not await gateway.reload_or_keep("the test")
            assert await user.say("look here") == "ok look here"
            with pytest.raises(AdminError, match=r"rules\.yaml:3: "):
                await asyncio.to_thread(AdminClient(folder / "state" / "admin.sock").call, "config.reload")

    run(folder, body)
    failed = [event for event in events(logs) if event["event"] == "reload-failed"]
    assert failed[0]["level"] == "error"
    assert f"{folder / 'rules.yaml'}:3: " in failed[0]["problem"]


def test_targets_come_and_go_with_a_reload(folder: Path) -> None:
    async def body(gateway: Gateway) -> None:
        token, _ = token_of(folder)
        (folder / "gatecast.yaml").write_text(CONFIG.replace("name: shelf", "name: table"))
        await gateway.reload()
        async with talk(gateway) as user:
            assert await user.say(f"{token} shelf") == "no such target"
        async with talk(gateway) as user:
            assert (await user.say(f"{token} table")).startswith("session ")

    run(folder, body)


def test_what_a_reload_cannot_change_is_named(folder: Path, logs: StringIO) -> None:
    async def body(gateway: Gateway) -> None:
        (folder / "gatecast.yaml").write_text(CONFIG.replace("state: state", "state: other").replace(":0", ":1"))
        await gateway.reload()
        async with talk(gateway, token_of(folder)[0]) as user:
            assert await user.say("look") == "ok look"

    run(folder, body)
    assert {event["key"] for event in events(logs) if event["event"] == "restart-needed"} == {"state", "listeners"}
    assert not (folder / "other").exists()


def test_a_revoked_token_ends_its_sessions(folder: Path) -> None:
    async def body(gateway: Gateway) -> None:
        token, number = token_of(folder)
        other, _ = token_of(folder, "bob@example.com")
        async with talk(gateway, token) as user, talk(gateway, other) as bystander:
            assert await user.say("look") == "ok look"
            token_revoke(folder / "state" / "gatecast.db", number)
            assert await user.hear() == "goodbye"
            assert await bystander.say("look") == "ok look"

    run(folder, body)
    assert verified(folder) == "verified"


def test_one_connection_that_fails_ends_no_other(folder: Path, logs: StringIO) -> None:
    async def body(gateway: Gateway) -> None:
        token, _ = token_of(folder)
        async with talk(gateway, token) as user, talk(gateway, token) as broken:
            assert await broken.say("crash") == ""
            assert await user.say("look") == "ok look"

    run(folder, body)
    (failure,) = [event for event in events(logs) if event["event"] == "connection-failed"]
    assert (failure["error"], failure["at"].split(":")[0]) == ("RuntimeError", "toy.py")
    assert "CANARY" not in logs.getvalue()  # an unexpected error may quote a frame
    assert verified(folder) == "verified"


def test_a_tape_that_serve_forgot_is_sealed(folder: Path) -> None:
    async def body(gateway: Gateway) -> None:
        async with talk(gateway, token_of(folder)[0]) as user:
            assert await user.say("leave-open") == ""

    run(folder, body)
    assert verified(folder) == "verified"


def test_the_limit_of_connections(folder: Path, logs: StringIO) -> None:
    async def body(gateway: Gateway) -> None:
        token, _ = token_of(folder)
        async with talk(gateway, token) as one, talk(gateway, token), talk(gateway, token):
            async with talk(gateway) as fourth:
                assert await fourth.hear() == "refused: sorry, too many clients already"
            assert gateway.connections.refused == 1
            assert await one.say("look") == "ok look"
        await until(lambda: len(gateway.connections) == 0)
        async with talk(gateway, token) as again:
            assert await again.say("look") == "ok look"

    run(folder, body)
    assert any(event["event"] == "too-many-connections" for event in events(logs))


def test_guessing_is_slowed_down(folder: Path) -> None:
    async def body(gateway: Gateway) -> None:
        answers = []
        for _ in range(30):
            async with talk(gateway) as user:
                answers.append(await user.say("gct_wrong shelf"))
            await until(lambda: len(gateway.connections) == 0)
        assert answers[0] == "refused: the login was refused"
        assert answers[-1] == "refused: too many failed logins from this address"

    run(folder, body)


def test_the_operator_ends_a_session(folder: Path) -> None:
    async def body(gateway: Gateway) -> None:
        admin = AdminClient(folder / "state" / "admin.sock")
        async with talk(gateway, token_of(folder)[0]) as user:
            (row,) = await asyncio.to_thread(admin.call, "sessions.live")
            assert (row["id"], row["identity"], row["target"]) == (user.session, "ana@example.com", "shelf")
            await asyncio.to_thread(lambda: admin.call("sessions.kill", id=user.session))
            assert await user.hear() == "goodbye"
        with pytest.raises(AdminError, match="no session"):
            await asyncio.to_thread(lambda: admin.call("sessions.kill", id="01NONE"))
        status = await asyncio.to_thread(admin.call, "status")
        assert status["targets"] == ["shelf"]
        assert status["approvals_waiting"] == 0

    run(folder, body)


def test_drain_waits_for_sessions_and_then_ends_them(folder: Path) -> None:
    (folder / "gatecast.yaml").write_text(CONFIG.replace("drain_seconds: 0", "drain_seconds: 60"))

    async def body(gateway: Gateway) -> None:
        token, _ = token_of(folder)
        host, port = gateway.addresses()["toy"][0].rsplit(":", 1)
        async with talk(gateway, token) as user:
            gateway.stop()
            await until(lambda: gateway.addresses()["toy"] == [])
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(host, int(port))
            assert await user.say("look") == "ok look"  # it goes on while the gateway drains
            gateway.stop()  # a second signal: no longer
            assert await user.hear() == "goodbye"

    run(folder, body)
    assert verified(folder) == "verified"


def test_signals_of_the_process(folder: Path) -> None:
    """The real thing: app.run() in a process of its own, ended by SIGTERM."""
    script = (
        "import sys; sys.path.insert(0, '.'); import protocols; from tests import toy;"
        "known = {**protocols.load(), 'toy': toy.PROTOCOL}; protocols.load = lambda: known;"
        "from pathlib import Path; from proxy import app, logging; logging.configure();"
        f"app.run(Path({str(folder / 'gatecast.yaml')!r}), lambda g: print(g.addresses()['toy'][0], flush=True))"
    )

    async def body() -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        async with asyncio.timeout(PATIENCE * 2):
            host, port = (await child.stdout.readline()).decode().strip().rsplit(":", 1)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"{token_of(folder)[0]} shelf\n".encode())
            assert (await reader.readline()).startswith(b"session ")
            child.terminate()
            assert await reader.readline() == b"goodbye\n"
            writer.close()
            _, errors = await child.communicate()
        assert child.returncode == 0, errors.decode()

    asyncio.run(body())
    assert verified(folder) == "verified"


def test_a_state_directory_has_one_gateway(folder: Path) -> None:
    with (
        open_services(folder / "gatecast.yaml"),
        pytest.raises(ConfigError, match="another gatecast"),
        open_services(folder / "gatecast.yaml"),
    ):
        pytest.fail("two gateways on one directory")
    with open_services(folder / "gatecast.yaml") as again:
        assert again.state == folder / "state"


def test_an_address_that_is_taken(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (folder / "gatecast.yaml").write_text(CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        with pytest.raises(ConfigError, match="another process listens there"):
            app.run(folder / "gatecast.yaml")


def test_a_unix_listener(folder: Path) -> None:
    path = folder / "toy.sock"
    (folder / "gatecast.yaml").write_text(CONFIG.replace('"127.0.0.1:0", plain: true', f'"unix:{path}"'))

    async def body(gateway: Gateway) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(f"{token_of(folder)[0]} shelf\n".encode())
        assert (await reader.readline()).startswith(b"session ")
        writer.close()

    for _ in range(2):
        run(folder, body)
        assert not path.exists()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # as a killed process leaves it
    run(folder, body)
    path.write_text("precious")
    with pytest.raises(ConfigError, match="a file is in its place"):
        app.run(folder / "gatecast.yaml")
    assert path.read_text() == "precious"


def test_tls_listener_takes_a_renewed_certificate(folder: Path) -> None:
    self_signed(folder, ["127.0.0.1"])
    (folder / "gatecast.yaml").write_text(CONFIG.replace("plain: true", "tls: {cert: tls.crt, key: tls.key}"))

    async def served(gateway: Gateway) -> bytes:
        context = ssl.create_default_context(cafile=str(folder / "tls.crt"))
        context.set_alpn_protocols(["toy"])
        async with talk(gateway, ssl=context) as user:
            tls = user.writer.get_extra_info("ssl_object")
            assert tls.version() in ("TLSv1.2", "TLSv1.3")
            assert tls.selected_alpn_protocol() == "toy"
            found: bytes = tls.getpeercert(binary_form=True)
            return found

    async def body(gateway: Gateway) -> None:
        before = await served(gateway)
        (folder / "tls.crt").unlink()
        (folder / "tls.key").unlink()
        self_signed(folder, ["127.0.0.1"])
        front = gateway.fronts["toy"]
        await until(lambda: gateway.fronts["toy"] is not front)  # by the watch alone
        assert await served(gateway) != before
        (folder / "tls.key").write_text("no key")
        assert not await gateway.reload_or_keep("the test")
        await served(gateway)

    run(folder, body)


def test_old_tls_is_not_spoken(folder: Path) -> None:
    self_signed(folder, ["127.0.0.1"])
    (folder / "gatecast.yaml").write_text(CONFIG.replace("plain: true", "tls: {cert: tls.crt, key: tls.key}"))
    old = ssl.create_default_context(cafile=str(folder / "tls.crt"))
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1

    async def body(gateway: Gateway) -> None:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with talk(gateway, ssl=old):
                pytest.fail("a handshake below TLS 1.2")

    run(folder, body)


def test_keys_of_the_state_directory(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = secret_file(path)
    assert (len(key), path.stat().st_mode & 0o777, secret_file(path)) == (32, 0o600, key)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read"):
        secret_file(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="32 random bytes"):
        secret_file(path)


def test_a_state_directory_that_others_may_write_is_refused(folder: Path) -> None:
    (folder / "state").mkdir()
    (folder / "state").chmod(0o770)
    with pytest.raises(ConfigError, match="chmod 700"), open_services(folder / "gatecast.yaml"):
        pytest.fail("opened")


def test_the_kind_of_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(tmp_path) not in ("", "proc")


def test_tapes_in_memory_are_warned_of(folder: Path, logs: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "file_system", lambda path: "tmpfs")
    with open_services(folder / "gatecast.yaml"):
        pass
    assert [event["level"] for event in events(logs) if event["event"] == "tapes-not-durable"] == ["warning"]
