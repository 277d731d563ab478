"""kill -9 under load: what any psql saw answered is on a tape that verifies, when the gateway is back.

A real gateway in a process of its own (with workers, in several), real psql clients that send the next statement once
the last is answered, a real PostgreSQL. kill -9 loses no page cache, so this tests the order of writing and the
recovery; tests/recorder/test_tape_crashes.py tests what a power cut takes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from proxy.certificates import self_signed
from proxy.identity.commands import token_issue
from recorder.format import Kind, fields
from recorder.reader import TapeReader
from tests.peers.postgres import PostgresServer

pytestmark = pytest.mark.peer
ROOT = Path(__file__).parents[1]
CLIENTS = 6
RULES = "rules: [{name: all, who: {groups: [dev]}, allow: true}]\n"


class Client(threading.Thread):
    """A psql that is fed one statement at a time; answered: what it printed an answer to."""

    def __init__(self, number: str, command: list[str], environment: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.answered: list[str] = []
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )

    def run(self) -> None:
        process, count = self._process, 0
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while True:
                word = f"{self.number}-{count}"
                process.stdin.write(f"SELECT '{word}';\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    return
                assert line.strip() == word
                self.answered.append(word)
                count += 1
        except (BrokenPipeError, ValueError):
            return

    def end(self) -> None:
        """Let psql find out that the gateway is gone."""
        self._process.kill()
        self._process.wait(30)
        self.join(30)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def environment(token: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "GATECAST_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PGPASSWORD": token, "PGCONNECT_TIMEOUT": "20"}


def configure(folder: Path, server: PostgresServer, recording: str, workers: int) -> str:
    self_signed(folder, ["localhost", "127.0.0.1"])
    (folder / "secret").write_text("secret-of-the-target\n")
    (folder / "secret").chmod(0o600)
    (folder / "rules.yaml").write_text(RULES)
    (folder / "gatecast.yaml").write_text(
        "state: state\n"
        f"workers: {workers}\n"
        "listeners: [{name: pg, protocol: postgres, address: '127.0.0.1:0', tls: {cert: tls.crt, key: tls.key}}]\n"
        f"targets: [{{name: shop, host: {server.socket_folder}, port: {server.port}, database: postgres,"
        f" recording: {recording}, credential: {{user: postgres, password_file: secret}}}}]\n"
        "recorder: {reserve: 0, index: false}\n"
        "limits: {drain_seconds: 0}\n"
        "rules_file: rules.yaml\n"
    )
    token: str = token_issue(folder / "state" / "gatecast.db", "ana@example.com", groups=["dev"])["token"]
    return token


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A gateway and its port; it is in a session of its own, so that its workers can be killed with it."""
    log = folder / "log"
    with log.open("w") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve", "--log-json"],
            cwd=folder,
            env=environment(""),
            stderr=file,
            start_new_session=True,
        )
    try:
        yield child, port_of(child, log)
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait(30)


def port_of(child: subprocess.Popen[bytes], log: Path) -> int:
    while child.poll() is None:
        lines = log.read_text().splitlines()
        if any('"started"' in line for line in lines):
            found = next(json.loads(line) for line in lines if '"listening"' in line)
            return int(found["address"].rpartition(":")[2])
        try:
            child.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    pytest.fail(f"gatecast serve ended: {log.read_text()}")


def on_tapes(folder: Path) -> set[str]:
    """Every text of a COMMAND with an allowing VERDICT, on any tape."""
    found = set()
    for path in (folder / "state" / "tapes").rglob("*.000.gct"):
        texts: dict[int, str] = {}
        for record in TapeReader(path).records():
            if record.kind == Kind.COMMAND:
                texts[record.n] = fields(record.payload)["text"]
            elif record.kind == Kind.VERDICT and fields(record.payload)["verdict"] == "allow":
                found.add(texts[fields(record.payload)["command"]])
    return found


def verified(folder: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "verify", "--json"],
        cwd=folder,
        env=environment(""),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 2), (done.stdout, done.stderr)  # never altered, never unknown
    result: dict[str, object] = json.loads(done.stdout)
    return result


def crash(folder: Path, token: str, round_number: int, seconds: float) -> set[str]:
    """Load a gateway and kill it; return the statements that clients saw answered."""
    with serving(folder) as (child, port):
        conninfo = (
            f"host=localhost port={port} user=whoever dbname=shop sslmode=verify-full sslrootcert={folder / 'tls.crt'}"
        )
        clients = [
            Client(f"r{round_number}c{i}", ["psql", "-XAtq", conninfo], environment(token)) for i in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        deadline = time.monotonic() + 60
        while not all(client.answered for client in clients) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(seconds)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(30)
        for client in clients:
            client.end()
    assert all(client.answered for client in clients), (folder / "log").read_text()
    return {f"SELECT '{word}'" for client in clients for word in client.answered}


def killed_often(folder: Path, server: PostgresServer, recording: str, workers: int, times: int) -> None:
    token = configure(folder, server, recording, workers)
    answered: set[str] = set()
    for number in range(times):
        answered |= crash(folder, token, number, 0.05 + 0.07 * (number % 7))
    with serving(folder):  # recovers the last crash
        pass
    report = verified(folder)
    assert answered <= {text.rstrip(";") for text in on_tapes(folder)}
    assert len(answered) > times * CLIENTS
    tapes = report["tapes"]
    assert isinstance(tapes, list)
    assert len(tapes) == times * CLIENTS
    assert {tape["status"] for tape in tapes} == {"incomplete"}  # each was ended by a crash, and says so
    assert all("crash" in tape["fault"]["reason"] for tape in tapes), tapes
    assert not list((folder / "state" / "tapes").rglob("*.gct.*"))  # nothing was set aside


@pytest.mark.parametrize(("recording", "workers"), [("durable", 1), ("written", 1), ("strict", 2)])
def test_what_was_answered_is_on_a_tape(
    tmp_path: Path, postgres15: PostgresServer, recording: str, workers: int
) -> None:
    killed_often(tmp_path, postgres15, recording, workers, 2)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("recording", "workers"), [("durable", 1), ("durable", 2), ("written", 1)])
def test_twenty_kills(tmp_path: Path, postgres15: PostgresServer, recording: str, workers: int) -> None:
    killed_often(tmp_path, postgres15, recording, workers, 20)
