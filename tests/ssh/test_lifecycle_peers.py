"""The life of an SSH gateway with OpenSSH's own clients: stop, reload, revocation, limits, workers, and what is left.

Whatever ends a connection says why in a DISCONNECT, which ssh prints; every tape is sealed; running connections meet
new rules at their next command. tests/test_app.py has the same without a protocol.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from proxy.certificates import self_signed
from recorder.reader import TapeReader
from tests.peers.postgres import PostgresServer
from tests.peers.ssh import SshServer, children, make_key
from tests.ssh.gateway import ALL_KINDS, ALLOW_ALL, GatewayProcess, story
from tests.ssh.running import Runner, noise, sha256, until
from tests.ssh.scenarios_forwards import shared
from tests.ssh.terminal import terminal
from tests.test_kill_ssh import Place, way

pytestmark = pytest.mark.peer
MIB: Final = 1 << 20
REVOKED: Final = b"the login was revoked or has expired"
NO_WORD: Final = f"""\
rules:
  - {{name: all, who: {{groups: [dev]}}, commands: {{kinds: {ALL_KINDS}, opaque: true}}, allow: true}}
  - {{name: no-word, commands: {{verbs: [exec, line], objects: [echo]}}, deny: {{reason: not a word}}}}
"""


@pytest.fixture
def place(tmp_path: Path, sshd: SshServer) -> Iterator[Place]:
    """A place with a registered key. Its tapes must verify in the end."""
    found = Place(tmp_path, sshd)
    yield found
    verified = found.gatecast("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def ready(place: Place, rules: str = ALLOW_ALL, **more: Any) -> None:
    place.configure(rules, **more)
    place.register(place.user_key)


@contextmanager
def waiting(run: Runner, *options: str, config: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """An ssh whose command waits for its input; it has begun."""
    argv = run.argv(*options, run.host, "echo begun; cat", config=config)
    with run.started(*argv) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        yield process


def ended(process: subprocess.Popen[bytes], seconds: float = 30) -> bytes:
    """Wait until ssh ends as one that was cut off does; returns what it said."""
    assert process.wait(seconds) == 255
    assert process.stderr is not None
    return process.stderr.read()


def reasons(place: Place) -> list[str]:
    """Why the sessions ended, by their tapes' order; '' for those that just ended."""
    found = []
    for path in sorted((place.folder / "state" / "tapes").rglob("*.000.gct")):
        tape = TapeReader(path)
        assert tape.status in ("closed", "failed"), (path, tape.status)
        found.append(str(tape.status))
    return found


# -- stop and reload -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_lets_sessions_go_on_and_then_tells_them(place: Place, workers: int) -> None:
    ready(place, workers=workers, limits={"drain_seconds": 3})
    with place.serving() as gateway, way(gateway) as run:
        with waiting(run) as quick, waiting(run) as slow, shared(run) as path:
            gateway.process.terminate()
            until(lambda: "draining" in gateway.log, "draining")
            refused = run.ssh("true")
            assert refused.returncode == 255
            out, _ = quick.communicate(b"to its end", timeout=30)
            assert (quick.returncode, out) == (0, b"to its end")
            assert run.ssh("echo still", "-S", path).stdout == b"still\n"
            assert b"the gateway stops" in ended(slow)
        assert gateway.process.wait(30) == 0
    assert len(reasons(place)) == 3
    assert '"sessions-ended"' in gateway.log


def test_a_reload_changes_the_next_command_of_a_running_connection(place: Place) -> None:
    ready(place)
    with place.serving() as gateway, way(gateway) as run, shared(run) as path, terminal(run, "box") as seat:
        until(lambda: seat.screen().strip(), "prompt")
        seat.line("echo be''fore")
        seat.until_line("before")
        with waiting(run, "-S", str(path)) as running:
            assert run.ssh("echo before", "-S", path).stdout == b"before\n"
            (place.folder / "rules.yaml").write_text(NO_WORD)
            os.kill(gateway.process.pid, signal.SIGHUP)
            until(lambda: '"reloaded"' in gateway.log, "reload")
            denied = run.ssh("echo after", "-S", path)
            assert (denied.returncode, denied.stdout) == (126, b"")
            assert b'denied by rule "no-word": not a word' in denied.stderr
            seat.line("echo af''ter")
            seat.until('denied by rule "no-word"')
            assert run.ssh("true", "-S", path).returncode == 0
            out, _ = running.communicate(b"what runs goes on", timeout=30)
            assert (running.returncode, out) == (0, b"what runs goes on")
            (place.folder / "rules.yaml").write_text("rules: [{name: broken")
            os.kill(gateway.process.pid, signal.SIGHUP)
            until(lambda: '"old-configuration-kept"' in gateway.log, "complaint")
            assert run.ssh("echo after", "-S", path).returncode == 126
            (place.folder / "rules.yaml").write_text(ALLOW_ALL)
            assert gateway.gatecast("reload").returncode == 0
            assert run.ssh("echo again", "-S", path).stdout == b"again\n"
        seat.line("exit 0")
        seat.until("ENDED")


# -- the ends of proofs ----------------------------------------------------------------------------------


def test_revoking_a_proof_ends_its_sessions_and_no_others(place: Place) -> None:
    ready(place)
    key = make_key(place.folder, "second_key")
    key_id = place.register(key)
    signed = make_key(place.folder, "signed_key")
    done = place.gatecast(
        "ssh", "certificate", str(signed.public), "--subject", "ana@example.com", "--group", "dev",
        "--login", place.server.user, "--out", str(signed.certificate), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    serial = str(json.loads(done.stdout)["serial"])
    with place.serving() as gateway, way(gateway) as run:

        def by(name: str, file: Path) -> Path:
            config = run.folder / name
            config.write_text(run.config.read_text().replace(str(run.key.file), str(file)))
            return config

        configs = {
            "token": run.write("token", place.token),
            "key": by("key", key.file),
            "certificate": by("certificate", signed.file),
        }
        revocations = {
            "token": ("token", "revoke", place.token_id),
            "key": ("ssh", "key", "revoke", key_id),
            "certificate": ("ssh", "revoke", serial),
        }
        with waiting(run) as other:
            for name, config in configs.items():
                with waiting(run, config=config) as first, shared_by(run, config) as (master, path):
                    assert run.ssh("echo x", "-S", path).stdout == b"x\n"
                    started = time.monotonic()
                    assert gateway.gatecast(*revocations[name]).returncode == 0
                    assert REVOKED in ended(first), name
                    assert REVOKED in ended(master), name
                    assert time.monotonic() - started < 10, name
                    assert run.ssh("true", config=config).returncode == 255, name
            assert other.poll() is None
            out, _ = other.communicate(b"alive", timeout=30)
            assert (other.returncode, out) == (0, b"alive")
    assert len(reasons(place)) == 7


@contextmanager
def shared_by(run: Runner, config: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A shared connection by another configuration."""
    path = run.folder / "cm"
    path.unlink(missing_ok=True)
    with run.started(*run.argv("-M", "-N", "-S", path, run.host, config=config)) as master:
        until(path.exists, "control socket")
        yield master, path


def test_an_administrator_ends_a_session(place: Place) -> None:
    ready(place)
    with place.serving() as gateway, way(gateway) as run:
        with waiting(run) as one, waiting(run) as other:
            first, second = sorted(row["id"] for row in gateway.json("sessions", "live"))
            done = gateway.gatecast("sessions", "kill", first)
            assert done.returncode == 0, done.stderr
            assert b"killed" in ended(one)
            assert [row["id"] for row in gateway.json("sessions", "live")] == [second]
            assert gateway.gatecast("sessions", "kill", first).returncode == 1
            assert other.poll() is None
        assert gateway.sealed(gateway.tapes()[0]).status == "closed"


# -- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_connections_are_limited(place: Place, workers: int) -> None:
    ready(
        place, workers=workers, limits={"max_connections": 4},
        targets={"box": {}, "few": {"limits": {"max_connections": 2}}},
    )  # fmt: skip
    with place.serving() as gateway, way(gateway) as run, way(gateway, "few") as few:
        with waiting(few), waiting(few):
            refused = few.ssh("true", "-o", "LogLevel=INFO")
            assert refused.returncode == 255
            assert b'too many connections to "few"' in refused.stderr
            until(lambda: len(gateway.json("sessions", "live")) == 2, "end of the refused one")
            with waiting(run), waiting(run):
                full = run.ssh("true")
                assert full.returncode == 255
                assert b"too many clients" in full.stderr, full.stderr
        until(lambda: not gateway.json("sessions", "live"), "end of the sessions")
        assert few.ssh("echo free").stdout == b"free\n"


def test_idle_connections_end(place: Place) -> None:
    ready(place, limits={"idle_seconds": 2})
    with place.serving() as gateway, way(gateway) as run, waiting(run) as idle, waiting(run) as busy:
        assert busy.stdin is not None
        assert busy.stdout is not None
        started = time.monotonic()
        while idle.poll() is None:
            busy.stdin.write(b"x\n")
            busy.stdin.flush()
            assert busy.stdout.readline() == b"x\n"
            time.sleep(0.2)
            assert time.monotonic() - started < 20
        assert b"idle for 2 seconds" in ended(idle)
        assert time.monotonic() - started > 1.5
        busy.communicate(timeout=30)
        assert busy.returncode == 0


# -- several processes, several protocols ----------------------------------------------------------------


def test_two_workers_serve_everything(place: Place) -> None:
    ready(place, workers=2)
    with place.serving() as gateway, way(gateway) as run:
        source = noise(run.folder / "source", 3_000_000)
        with ThreadPoolExecutor(4) as pool:
            for number in range(2):
                codes = list(pool.map(lambda i: run.ssh(f"echo {i}; exit {i}").returncode, range(4)))
                assert codes == [0, 1, 2, 3], number
        done = run.ssh("cat; echo err >&2; exit 7", input=source.read_bytes())
        assert (done.returncode, done.stdout, done.stderr) == (7, source.read_bytes(), b"err\n")
        assert run.sftp(f"put {source} {run.remote}/copy", f"get {run.remote}/copy back").returncode == 0
        assert sha256(run.folder / "back") == sha256(source)
        with shared(run) as path:
            assert [run.ssh(f"echo {i}", "-S", path).stdout for i in range(3)] == [b"0\n", b"1\n", b"2\n"]
        with terminal(run, "box") as seat:
            until(lambda: seat.screen().strip(), "prompt")
            seat.line("echo on''screen; exit 5")
            seat.until("ENDED 5")
        with waiting(run), waiting(run), waiting(run), waiting(run):
            rows = gateway.json("sessions", "live")
            assert sorted(row["worker"] for row in rows) == [1, 1, 2, 2]
            for row in rows:  # whichever worker has it
                assert gateway.gatecast("sessions", "kill", row["id"]).returncode == 0
        codes = [
            [each["exit"] for each in story(TapeReader(tape)).results if "exit" in each] for tape in gateway.tapes()[:8]
        ]
        assert sorted(code for (code,) in codes) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_ssh_and_postgres_side_by_side(place: Place, postgres15: PostgresServer) -> None:
    self_signed(place.folder, ["localhost", "127.0.0.1"])
    ready(
        place,
        listeners=(
            {"name": "pg", "protocol": "postgres", "address": "127.0.0.1:0",
             "tls": {"cert": "tls.crt", "key": "tls.key"}},
        ),
        other_targets=(
            {"name": "shop", "host": "127.0.0.1", "port": postgres15.port, "database": "postgres", "sslmode": "disable",
             "credential": {"user": "postgres"}},
        ),
    )  # fmt: skip
    with place.serving() as gateway, way(gateway) as run:
        listening = [json.loads(line) for line in gateway.log.splitlines() if '"listening"' in line]
        ports = {line["protocol"]: int(line["address"].rpartition(":")[2]) for line in listening}
        assert ports["ssh"] == gateway.port
        with (
            waiting(run) as process,
            psycopg.connect(
                host="localhost", port=ports["postgres"], user="x", password=place.token, dbname="shop",
                sslmode="verify-full", sslrootcert=str(place.folder / "tls.crt"), autocommit=True,
            ) as connection,
        ):  # fmt: skip
            assert connection.execute("SELECT 1").fetchone() == (1,)
            rows = gateway.json("sessions", "live")
            assert sorted((row["protocol"], row["target"]) for row in rows) == [("postgres", "shop"), ("ssh", "box")]
            # The one token is good for both, and its end ends what it opened at either.
            assert gateway.gatecast("token", "revoke", place.token_id).returncode == 0
            with pytest.raises(psycopg.Error):
                while True:
                    connection.execute("SELECT pg_sleep(0.1)")
            assert process.poll() is None  # it came by a key
        # A target of the one protocol is none of the other.
        done = run.ssh("true", "-o", "LogLevel=INFO", "-l", f"{run.server.user}:shop")
        assert done.returncode == 255
        assert b"shop" in done.stderr


# -- what is left ----------------------------------------------------------------------------------------


def test_thirty_connections_leave_nothing_behind(place: Place) -> None:
    ready(place, targets={"box": {"recording": "written"}})
    with place.serving() as gateway, way(gateway) as run:
        noise(run.remote / "data", 2 * MIB)

        def load() -> None:
            argv = run.argv(run.host, f"cat {run.remote}/data; echo; echo begun; cat")
            clients = [run.start(*argv) for _ in range(30)]
            with ThreadPoolExecutor(30) as pool:
                assert all(pool.map(_begun, clients))
                assert len(gateway.json("sessions", "live")) == 30
                for number, client in enumerate(clients):  # some end well, some by themselves, some are cut off
                    if number % 3 == 0:
                        os.killpg(client.pid, signal.SIGKILL)
                    elif number % 3 == 1:
                        os.killpg(client.pid, signal.SIGTERM)
                codes = list(pool.map(lambda client: _closed(client), clients))
            assert [code == 0 for code in codes] == [number % 3 == 2 for number in range(30)]
            run.close()
            until(lambda: not gateway.json("sessions", "live"), "end of the sessions")
            until(lambda: not run.server.connections(), "end of the sessions at the target")

        load()  # what the first ones make stays: modules, pools, the allocator's arenas
        descriptors, memory = until(lambda: _descriptors(gateway)), gateway.resident_bytes
        load()
        until(lambda: _descriptors(gateway) <= descriptors, "descriptors let go of")
        assert gateway.resident_bytes <= memory + 20 * MIB
        threads = len(list(Path(f"/proc/{gateway.process.pid}/task").iterdir()))
        assert threads < 40
        assert run.ssh("echo alive").stdout == b"alive\n"


def _begun(client: subprocess.Popen[bytes]) -> bool:
    assert client.stdout is not None
    while line := client.stdout.readline():
        if line == b"begun\n":
            return True
    return False


def _closed(client: subprocess.Popen[bytes]) -> int:
    client.communicate(timeout=60)
    return client.returncode


def _descriptors(gateway: GatewayProcess) -> int:
    pids = [gateway.process.pid, *children(gateway.process.pid)]
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
