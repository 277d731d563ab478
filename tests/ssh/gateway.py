"""``gatecast serve`` in a process of its own in front of a real sshd, for tests with real clients.

The configuration file is an operator's own: an ssh listener, targets with the server's host key pinned and a key as
credential, rules in a file beside it. On leaving, the process must end cleanly, every tape must verify, no secret may
be on a tape or in the log, and the log may hold no traceback.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from proxy.identity.commands import token_issue
from recorder.format import ERR, OUT, USER, Kind
from recorder.reader import TapeReader
from tests.peers.ssh import KeyPair, SshServer, children, make_key, resident_bytes

ROOT: Final = Path(__file__).parents[2]
SUBJECT: Final = "ana@example.com"
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 60.0
# Everything but what is of kind admin (agents, X11): that would need a rule of its own.
ALL_KINDS: Final = "[session, read, write, define, delete, execute, transfer]"
ALLOW_ALL: Final = f"""\
rules:
  - {{name: all, who: {{groups: [dev]}}, commands: {{kinds: {ALL_KINDS}, opaque: true}}, allow: true}}
"""
CHANNELS: Final = {"user": USER, "out": OUT, "err": ERR}


@dataclass(slots=True)
class GatewayProcess:
    """A running gateway. token is ana's, user_key a registered key of hers."""

    folder: Path
    port: int
    token: str
    user_key: KeyPair
    process: subprocess.Popen[bytes]
    host_key: str = ""
    host_authority: str = ""
    server: SshServer | None = None
    canaries: list[bytes] = field(default_factory=list)

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def resident_bytes(self) -> int:
        """Its memory, with its workers'."""
        return sum(resident_bytes(pid) for pid in [self.process.pid, *children(self.process.pid)])

    def gatecast(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line beside it, as its operator would."""
        return _gatecast(self.folder, *arguments)

    def json(self, *arguments: str) -> Any:
        """The same with --json, read."""
        done = self.gatecast(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def verify(self) -> subprocess.CompletedProcess[str]:
        """gatecast verify, once the sessions that just ended are sealed and in the node's log: a second or two."""
        deadline = time.monotonic() + 20
        while (done := self.gatecast("verify")).returncode == 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        return done

    def tapes(self) -> list[Path]:
        """The tapes' first segments, the oldest first."""
        return sorted((self.folder / "state").rglob("*.000.gct"))

    def sealed(self, path: Path, seconds: float = 30.0) -> TapeReader:
        """Wait until a session's tape is sealed, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := TapeReader(path)).status:
            assert time.monotonic() < deadline, "the session's tape was not sealed"
            time.sleep(0.05)
        return found


@dataclass(frozen=True, slots=True)
class Story:
    """A tape, decoded: its commands, verdicts and results as maps, and the exact bytes of its flows."""

    commands: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    approvals: list[dict[str, Any]]
    results: list[dict[str, Any]]
    flows: dict[tuple[int, str], bytes]

    def of(self, verb: str) -> list[dict[str, Any]]:
        """The commands of one verb."""
        return [command for command in self.commands if command["verb"] == verb]

    def sha256(self, flow: int, stream: str) -> str:
        """The SHA-256 of one stream of a flow."""
        return hashlib.sha256(self.flows.get((flow, stream), b"")).hexdigest()


def story(tape: TapeReader) -> Story:
    """Read a whole tape."""
    told = Story([], [], [], [], {})
    streams: dict[tuple[int, str], bytearray] = {}
    names = {channel: name for name, channel in CHANNELS.items()}
    lists = {
        Kind.COMMAND: told.commands, Kind.VERDICT: told.verdicts, Kind.APPROVAL: told.approvals,
        Kind.RESULT: told.results,
    }  # fmt: skip
    for record in tape.records():
        if record.kind in lists:
            lists[Kind(record.kind)].append(msgpack.unpackb(record.payload))
        elif record.kind == Kind.WIRE and (flow := record.flow) is not None:
            streams.setdefault((flow, names[record.channel]), bytearray()).extend(record.payload)
    told.flows.update({place: bytes(data) for place, data in streams.items()})
    return told


def environment() -> dict[str, str]:
    """The environment of our own programs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "GATECAST_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def ssh_gateway(
    folder: Path,
    server: SshServer,
    rules: str = ALLOW_ALL,
    *,
    targets: Mapping[str, Mapping[str, Any]] | None = None,
    listener: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
) -> Iterator[GatewayProcess]:
    """Run a gateway whose target "box" is the server.

    targets: further ones, by what differs from box; listener: keys of the listener's ssh section.
    """
    folder.mkdir(parents=True, exist_ok=True)
    credential = folder / "target_key"
    credential.write_bytes(server.login.file.read_bytes())
    credential.chmod(0o600)
    (folder / "rules.yaml").write_text(rules)
    config = _config(server, targets or {}, listener or {}, limits or {})
    (folder / "gatecast.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML
    token = token_issue(_state(folder) / "gatecast.db", SUBJECT, groups=["dev"])["token"]
    user_key = make_key(folder, "user_key")
    _checked(_gatecast(folder, "ssh", "key", "add", str(user_key.public), "--subject", SUBJECT, "--group", "dev"))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve", "--log-json"], cwd=folder, env=environment(), stderr=log
        )
    try:
        port = _port(process, folder / "log")
        running = GatewayProcess(folder, port, token, user_key, process, server=server)
        running.host_key = _public(folder / "state" / "ssh" / "host_ed25519")
        running.host_authority = _public(folder / "state" / "ssh" / "host_ca")
        secret_lines = server.login.file.read_text().splitlines()[1:-1]
        running.canaries += [token.encode(), *(line.encode() for line in secret_lines[1:-1])]
        yield running
    finally:
        process.terminate()
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"the gateway did not stop: {(folder / 'log').read_text()[-4000:]}")
    assert code == 0, running.log[-4000:]
    inspect(running)


def inspect(gateway: GatewayProcess) -> None:
    """After its end: every tape verifies, and neither log nor tapes hold a secret or a traceback."""
    assert "Traceback" not in gateway.log, gateway.log[-6000:]
    verified = gateway.verify()
    assert verified.returncode == 0, verified.stdout + verified.stderr
    for path in [gateway.folder / "log", *gateway.tapes()]:
        data = path.read_bytes()
        assert not [canary for canary in gateway.canaries if canary in data], f"a secret is in {path.name}"
    for path in gateway.tapes():
        for record in TapeReader(path).records():
            data = bytes(record.payload)
            assert not [canary for canary in gateway.canaries if canary in data], f"a secret is on {path.name}"


def _config(
    server: SshServer, targets: Mapping[str, Mapping[str, Any]], listener: Mapping[str, Any], limits: Mapping[str, Any]
) -> dict[str, Any]:
    box: dict[str, Any] = {
        "protocol": "ssh",
        "host": server.host,
        "port": server.port,
        "credential": {"user": server.user, "key_file": "target_key"},
        "recording": "written",
    }
    pinned = {"host_keys": [server.host_key.line]}
    return {
        "state": "state",
        "listeners": [{
            "name": "ssh", "protocol": "ssh", "address": "127.0.0.1:0", "ssh": {"names": ["gatecast"], **listener},
        }],
        "targets": [
            {"name": name, **box, **{key: value for key, value in more.items() if key != "ssh"},
             "ssh": {**pinned, **more.get("ssh", {})}}
            for name, more in {"box": {}, **targets}.items()
        ],
        "limits": {"drain_seconds": 0, **limits},
        "rules_file": "rules.yaml",
    }  # fmt: skip


def _state(folder: Path) -> Path:
    state = folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    return state


def _gatecast(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _public(file: Path) -> str:
    """The public half of a private key."""
    done = subprocess.run(["ssh-keygen", "-y", "-f", str(file)], check=True, capture_output=True, text=True, timeout=60)
    return " ".join(done.stdout.split()[:2])


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for the line that says where it listens, or for the end of the process."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if '"listening"' in line:
                return int(json.loads(line)["address"].rpartition(":")[2])
        time.sleep(0.05)
    pytest.fail(f"gatecast serve did not start: {log.read_text()[-4000:]}")
