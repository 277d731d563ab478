"""Logins at the gateway with OpenSSH's own client: tokens, keys, certificates, jumps; and those that are refused."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko  # type: ignore[import-untyped]  # it ships no types
import pytest

from proxy.identity.commands import token_issue
from tests.peers.ssh import KeyPair, SshServer, certify, free_port, make_key, ssh_server
from tests.ssh.gateway import ALLOW_ALL, GatewayProcess, ssh_gateway, story
from tests.ssh.running import Runner, Via

pytestmark = pytest.mark.peer

LOGIN_SECONDS = 8
TOLD = ("-o", "LogLevel=INFO")  # what the answer to an open says is no error to OpenSSH
BANNER = "This gateway records what you do."


@pytest.fixture(scope="module")
def certified() -> Iterator[KeyPair]:
    """An authority of somebody else, whose user certificates the gateway takes."""
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:
        yield make_key(Path(folder), "other_ca")


@pytest.fixture(scope="module")
def moved() -> Iterator[SshServer]:
    """A server that shows another host key than the one that is pinned."""
    with ssh_server() as server:
        yield server


@pytest.fixture(scope="module")
def doors(sshd: SshServer, moved: SshServer, certified: KeyPair) -> Iterator[GatewayProcess]:
    nowhere = free_port()
    known = f"[127.0.0.1]:{sshd.port} {sshd.host_key.line}\n"
    with tempfile.TemporaryDirectory(prefix="gatecast-") as name:
        folder = Path(name) / "gw"
        folder.mkdir()
        (folder / "other_ca.pub").write_text(certified.line + "\n")
        (folder / "known_hosts").write_text(known)
        wrong_key = make_key(folder, "wrong_key")
        targets: dict[str, dict[str, Any]] = {
            "moved": {"port": moved.port},
            "nowhere": {"port": nowhere},
            "locked": {"credential": {"user": sshd.user, "key_file": str(wrong_key.file)}},
            "known": {"ssh": {"known_hosts": "known_hosts", "host_keys": []}},
            "by-authority": {"ssh": {"host_ca": [sshd.host_authority.line], "host_keys": []}},
        }
        listener = {
            "banner": BANNER,
            "user_cas": [{"file": "other_ca.pub", "subject": "key_id", "groups": ["dev"]}],
        }
        limits = {"login_seconds": LOGIN_SECONDS}
        with ssh_gateway(folder, sshd, ALLOW_ALL, targets=targets, listener=listener, limits=limits) as gateway:
            yield gateway


@pytest.fixture
def make(sshd: SshServer, doors: GatewayProcess) -> Iterator[Any]:
    """Make a Runner: make(via, target)."""
    with contextlib.ExitStack() as stack:

        def one(via: Via = "gateway", target: str = "box") -> Runner:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gc-")))
            (folder / "near").mkdir(mode=0o700)
            (folder / "far").mkdir()
            runner = Runner(via, sshd, doors, folder / "near", folder / "far", target=target)
            stack.callback(runner.close)
            return runner

        yield one


def header(gateway: GatewayProcess) -> dict[str, Any]:
    """The header of the tape of the session that began last."""
    return dict(gateway.sealed(gateway.tapes()[-1]).header.map_)


# -- those that are let in ----------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["gateway", "jump"])
@pytest.mark.parametrize("method", ["password", "keyboard-interactive"])
def test_a_token_is_a_password(make: Any, doors: GatewayProcess, via: Via, method: str) -> None:
    run = make(via)
    config = run.write("by_token", doors.token)
    done = run.ssh("echo in", "-o", f"PreferredAuthentications={method}", config=config)
    assert done.stdout == b"in\n", done.stderr
    assert header(doors)["identity"]["subject"] == "ana@example.com"


def test_a_banner_is_shown(make: Any) -> None:
    assert BANNER.encode() in make().ssh("true", "-o", "LogLevel=INFO").stderr


@pytest.mark.parametrize("target", ["known", "by-authority"])
def test_the_ways_to_know_a_target(make: Any, target: str) -> None:
    assert make(target=target).ssh("echo in").stdout == b"in\n"


@pytest.mark.parametrize("via", ["gateway", "jump"])
def test_a_certificate_of_the_gateway(make: Any, doors: GatewayProcess, via: Via) -> None:
    run = make(via)
    key = make_key(run.folder, "mine")
    _certificate(doors, key, "--subject", "bob@example.com", "--group", "dev", "--login", run.server.user)
    assert _with_key(run, key).stdout == b"in\n"
    found = header(doors)
    assert found["identity"]["subject"] == "bob@example.com"
    assert run.ssh("true").returncode == 0  # the registered key is somebody else's still
    assert header(doors)["identity"]["subject"] == "ana@example.com"


def test_a_certificate_for_another_login(make: Any, doors: GatewayProcess) -> None:
    run = make()
    key = make_key(run.folder, "mine")
    _certificate(doors, key, "--subject", "bob@example.com", "--group", "dev", "--login", "somebody-else")
    done = _with_key(run, key)
    assert (done.returncode, done.stdout) == (255, b"")


def test_a_certificate_that_forces_a_command(make: Any, doors: GatewayProcess) -> None:
    run = make()
    key = make_key(run.folder, "mine")
    _certificate(
        doors, key, "--subject", "bob@example.com", "--group", "dev", "--login", run.server.user,
        "--force-command", "echo forced",
    )  # fmt: skip
    assert _with_key(run, key).stdout == b"forced\n"


def test_a_certificate_of_another_authority(make: Any, doors: GatewayProcess, certified: KeyPair) -> None:
    run = make()
    key = make_key(run.folder, "mine")
    certify(certified, key, [run.server.user], key_id="carl@example.com")
    assert _with_key(run, key).stdout == b"in\n"
    assert header(doors)["identity"]["subject"] == "carl@example.com"
    for more in ({"valid": "-2h:-1h"}, {"options": ["source-address=192.0.2.0/24"]}, {"options": ["critical:x@y=z"]}):
        certify(certified, key, [run.server.user], key_id="carl@example.com", **more)
        assert _with_key(run, key).returncode == 255, more
    stranger = make_key(run.folder, "stranger_ca")
    certify(stranger, key, [run.server.user], key_id="carl@example.com")
    assert _with_key(run, key).returncode == 255


def test_a_certificate_without_permissions(make: Any, certified: KeyPair) -> None:
    run = make()
    key = make_key(run.folder, "mine")
    certify(certified, key, [run.server.user], key_id="carl@example.com", options=["clear"])
    config = _key_config(run, key)
    assert run.ssh("echo in", config=config).stdout == b"in\n"
    assert b"PTY allocation request failed" in run.ssh("true", "-tt", config=config).stderr
    assert run.ssh(None, "-W", f"127.0.0.1:{run.server.port}", config=config).returncode == 255


def test_a_revoked_key_and_token_count_no_more(make: Any, doors: GatewayProcess) -> None:
    run = make()
    key = make_key(run.folder, "mine")
    added = doors.json("ssh", "key", "add", str(key.public), "--subject", "dan@example.com", "--group", "dev")
    assert _with_key(run, key).stdout == b"in\n"
    assert doors.gatecast("ssh", "key", "revoke", added["id"]).returncode == 0
    token = token_issue(doors.folder / "state" / "gatecast.db", "dan@example.com", groups=["dev"])
    config = run.write("by_token", token["token"])
    assert run.ssh("echo in", config=config).stdout == b"in\n"
    assert doors.gatecast("token", "revoke", token["id"]).returncode == 0
    deadline = time.monotonic() + 10  # a running gate sees the change within a second
    while _with_key(run, key).returncode == 0 or run.ssh("true", config=config).returncode == 0:
        assert time.monotonic() < deadline, "a revoked proof still counts"


def _certificate(gateway: GatewayProcess, key: KeyPair, *arguments: str) -> None:
    done = gateway.gatecast("ssh", "certificate", str(key.public), *arguments, "--out", str(key.certificate))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cert-v01@openssh.com" in key.certificate.read_text()


def _key_config(run: Runner, key: KeyPair) -> Path:
    config = run.folder / "by_key"
    config.write_text(run.config.read_text().replace(str(run.key.file), str(key.file)))
    return config


def _with_key(run: Runner, key: KeyPair) -> Any:
    return run.ssh("echo in", *TOLD, config=_key_config(run, key))


# -- those that are not -------------------------------------------------------------------------------


def test_a_wrong_token_and_a_wrong_target_look_alike(make: Any) -> None:
    said = []
    for target in ("box", "no-such-target"):
        run = make(target=target)
        config = run.write("wrong", "gct_wrong")
        done = run.ssh("echo in", "-o", "NumberOfPasswordPrompts=1", config=config)
        assert (done.returncode, done.stdout) == (255, b"")
        said.append(done.stderr.replace(target.encode(), b"T"))
    assert said[0] == said[1]
    assert b"Permission denied" in said[0]


def test_a_wrong_token_is_told_before_the_next_prompt(make: Any) -> None:
    run = make()
    config = run.write("wrong", "gct_wrong")
    alone = ("-o", "PreferredAuthentications=keyboard-interactive", "-o", "LogLevel=INFO")
    once = run.ssh("true", *alone, "-o", "NumberOfPasswordPrompts=1", config=config)
    assert b"no valid token" not in once.stderr
    twice = run.ssh("true", *alone, "-o", "NumberOfPasswordPrompts=2", config=config)
    assert twice.stderr.count(b"This is no valid token of the gateway") == 1


def test_an_unknown_target_is_told_after_the_login(make: Any) -> None:
    done = make(target="no-such-target").ssh("echo in", *TOLD)
    assert (done.returncode, done.stdout) == (255, b"")
    assert b'prohibited: gatecast: there is no target "no-such-target"' in done.stderr
    assert b"\nchannel 0:" in done.stderr  # the banner ends its line
    run = make("jump", target="no-such-target")
    run.config.write_text(run.config.read_text().replace("LogLevel ERROR", "LogLevel INFO"))  # of the jump's own ssh
    done = run.ssh("echo in")
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"no-such-target" in done.stderr


def test_who_no_rule_lets_in(make: Any, doors: GatewayProcess) -> None:
    run = make()
    key = make_key(run.folder, "mine")
    added = doors.gatecast("ssh", "key", "add", str(key.public), "--subject", "eve@example.com", "--group", "guests")
    assert added.returncode == 0, added.stderr
    done = _with_key(run, key)
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"default-deny" in done.stderr
    told = story(doors.sealed(doors.tapes()[-1]))
    assert [command["verb"] for command in told.commands] == ["CONNECT"]


@pytest.mark.parametrize("via", ["gateway", "jump"])
@pytest.mark.parametrize(
    ("target", "words"), [("moved", b"host key"), ("nowhere", b"refused"), ("locked", b"login")]
)  # fmt: skip
def test_a_target_that_cannot_be_reached(make: Any, doors: GatewayProcess, via: Via, target: str, words: bytes) -> None:
    started = time.monotonic()
    done = make(via, target).ssh("echo in", *TOLD)
    assert (done.returncode, done.stdout) == (255, b"")
    assert words in done.stderr.lower(), done.stderr
    assert time.monotonic() - started < 15
    for canary in doors.canaries:
        assert canary not in done.stderr


def test_a_login_that_is_not_configured(make: Any) -> None:
    run = make()
    config = run.folder / "other_login"
    config.write_text(run.config.read_text().replace(f"User {run.login}", "User daemon:box"))
    done = run.ssh("echo in", *TOLD, config=config)
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"daemon" in done.stderr


def test_attempts_are_limited(doors: GatewayProcess) -> None:
    transport = paramiko.Transport(("127.0.0.1", doors.port))
    try:
        transport.start_client(timeout=30)
        tries = 0
        while transport.is_active() and tries < 50:
            tries += 1
            with contextlib.suppress(paramiko.SSHException, EOFError):
                transport.auth_password("ana:box", f"gct_wrong{tries}", fallback=False)
    finally:
        transport.close()
    assert tries <= 7


def test_no_proof_is_no_login(doors: GatewayProcess) -> None:
    for user in ("root:box", "", ":", "box", "x" * 10_000):
        transport = paramiko.Transport(("127.0.0.1", doors.port))
        try:
            transport.start_client(timeout=30)
            with pytest.raises(paramiko.SSHException):
                transport.auth_none(user)
            assert not transport.is_authenticated()
        finally:
            transport.close()


def test_many_keys_may_be_offered(make: Any) -> None:
    run = make()
    keys = [make_key(run.folder, f"key{i}") for i in range(8)]
    options = [part for key in keys for part in ("-o", f"IdentityFile={key.file}")]
    done = run.ssh("echo in", *options)
    assert done.stdout in (b"in\n", b"")  # the right one is the last: the limit may come first
    assert (done.returncode == 0) == (done.stdout == b"in\n")


def test_a_login_has_a_time(doors: GatewayProcess) -> None:
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        silent = stack.enter_context(socket.create_connection(("127.0.0.1", doors.port), LOGIN_SECONDS + 20))
        half = stack.enter_context(socket.create_connection(("127.0.0.1", doors.port), LOGIN_SECONDS + 20))
        half.sendall(b"SSH-2.0-half\r\n")
        transport = paramiko.Transport(("127.0.0.1", doors.port))
        stack.callback(transport.close)
        transport.start_client(timeout=30)
        for connection in (silent, half):
            with contextlib.suppress(ConnectionError):
                while connection.recv(65536):
                    pass
        assert time.monotonic() - started < LOGIN_SECONDS + 10
        transport.join(10)
        assert not transport.is_active()


def test_the_gateway_says_no_version(doors: GatewayProcess) -> None:
    with socket.create_connection(("127.0.0.1", doors.port), 30) as connection:
        version = connection.recv(255).split(b"\r\n")[0]
    assert version == b"SSH-2.0-gatecast"
