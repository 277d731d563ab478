"""kill -9 under load: whatever ssh, sftp and a typed line did at the target is on a tape that verifies afterwards.

A real gateway in a process of its own (with workers, in several), real OpenSSH clients at each end. Commands leave a
word in a file of the target, so that the question is the one that counts: not what a client was told, but what was
done. kill -9 loses no page cache, so this tests the order of writing and the recovery;
tests/recorder/test_tape_crashes.py tests what a power cut takes.

The other tests of promises under trouble use what stands here: Place, a folder with a gateway's configuration.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from proxy.identity.commands import token_issue
from recorder.format import OUT, Kind, fields
from recorder.reader import TapeReader
from tests.peers.ssh import KeyPair, SshServer, make_key, program, ssh_server
from tests.ssh.gateway import ALLOW_ALL, SUBJECT, GatewayProcess, environment
from tests.ssh.running import Runner, noise, sha256, until
from tests.test_kill_psql import port_of

pytestmark = pytest.mark.peer
UPLOAD_BYTES: Final = 100_000
LOAD_SECONDS: Final = 60.0  # for every client to have done something, on a busy machine
STOP_SECONDS: Final = 60.0


@dataclass(slots=True)
class Place:
    """A gateway's folder: configured once, served as often as a test needs it."""

    folder: Path
    server: SshServer
    user_key: KeyPair = field(init=False)
    token: str = field(init=False)
    token_id: str = field(init=False)

    def __post_init__(self) -> None:
        credential = self.folder / "target_key"
        credential.write_bytes(self.server.login.file.read_bytes())
        credential.chmod(0o600)
        (self.folder / "state").mkdir(mode=0o700, exist_ok=True)
        issued = token_issue(self.folder / "state" / "gatecast.db", SUBJECT, groups=["dev"])
        self.token, self.token_id = issued["token"], issued["id"]
        self.user_key = make_key(self.folder, "user_key")

    def configure(
        self,
        rules: str = ALLOW_ALL,
        *,
        workers: int = 1,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        listeners: tuple[Mapping[str, Any], ...] = (),
        other_targets: tuple[Mapping[str, Any], ...] = (),
        recorder: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Write gatecast.yaml and rules.yaml. targets: by name, by what differs from the target "box"."""
        box: dict[str, Any] = {
            "protocol": "ssh",
            "host": self.server.host,
            "port": self.server.port,
            "credential": {"user": self.server.user, "key_file": "target_key"},
        }
        pinned = {"host_keys": [self.server.host_key.line]}
        ours = [
            {"name": name, **box, **changed, "ssh": {**pinned, **changed.get("ssh", {})}}
            for name, changed in (targets or {"box": {}}).items()
        ]
        config = {
            "state": "state",
            "workers": workers,
            "node": {"name": "little"},
            "listeners": [
                {"name": "ssh", "protocol": "ssh", "address": "127.0.0.1:0", "ssh": {"names": ["gatecast"]}},
                *listeners,
            ],
            "targets": [*ours, *other_targets],
            "recorder": {"reserve": 0, "index": False, **(recorder or {})},
            "limits": {"drain_seconds": 0, **(limits or {})},
            "rules_file": "rules.yaml",
            **(more or {}),
        }
        (self.folder / "rules.yaml").write_text(rules)
        (self.folder / "gatecast.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML

    def register(self, key: KeyPair, subject: str = SUBJECT, group: str = "dev") -> str:
        """Register a user's public key; returns its id."""
        arguments = ["ssh", "key", "add", str(key.public), "--subject", subject, "--group", group, "--json"]
        done = self.gatecast(*arguments)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["id"])

    @contextmanager
    def serving(self, log: str = "log", more: Mapping[str, str] | None = None) -> Iterator[GatewayProcess]:
        """Run the gateway, in a session of its own, so that its workers can be killed with it.

        It may be killed meanwhile; if it was not, it must end by itself, and without a complaint.
        """
        path = self.folder / log
        with path.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "proxy", "serve", "--log-json"],
                cwd=self.folder, env=environment() | dict(more or {}), stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        try:
            port = port_of(process, path)
            host_key = (self.folder / "state" / "ssh" / "host_ed25519").read_bytes()
            assert b"PRIVATE KEY" in host_key
            running = GatewayProcess(self.folder, port, self.token, self.user_key, process, server=self.server)
            running.host_key = _public(self.folder / "state" / "ssh" / "host_ed25519")
            running.host_authority = _public(self.folder / "state" / "ssh" / "host_ca")
            yield running
        finally:
            killed = process.poll() is not None
            if not killed:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(STOP_SECONDS)
                    raise
        assert killed or process.returncode == 0, path.read_text()[-4000:]
        assert "Traceback" not in path.read_text(), path.read_text()[-6000:]

    def gatecast(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line there."""
        return subprocess.run(
            [sys.executable, "-m", "proxy", *arguments],
            cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def verified(self) -> dict[str, Any]:
        """What verify says of the directory: never that something was altered, never that it cannot say."""
        done = self.gatecast("verify", "--json")
        assert done.returncode in (0, 2), (done.stdout, done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _public(file: Path) -> str:
    done = subprocess.run(["ssh-keygen", "-y", "-f", str(file)], check=True, capture_output=True, text=True, timeout=60)
    return " ".join(done.stdout.split()[:2])


@contextmanager
def way(gateway: GatewayProcess, target: str = "box") -> Iterator[Runner]:
    """Clients with a folder of their own, and a folder at the target."""
    assert gateway.server is not None
    with tempfile.TemporaryDirectory(prefix="gc-") as name:  # not tmp_path: a socket's path has 108 characters
        near, far = Path(name) / "near", Path(name) / "far"
        near.mkdir(mode=0o700)
        far.mkdir()
        runner = Runner("gateway", gateway.server, gateway, near, far, target=target)
        try:
            yield runner
        finally:
            runner.close()


@contextmanager
def shared_folder() -> Iterator[Path]:
    """The target's folder, where it must outlive a gateway."""
    with tempfile.TemporaryDirectory(prefix="gc-") as name:
        yield Path(name)


# -- clients that leave words at the target ------------------------------------------------------------


class Load(threading.Thread):
    """A client at work until it is cut off. done: how many of its commands were answered."""

    def __init__(self, run: Runner, name: str, effects: Path) -> None:
        super().__init__(daemon=True)
        self.way = run
        self.label = name
        self.effects = effects
        self.done = 0
        self.said = b""  # what the client wrote to stderr in the end
        self.enough = threading.Event()  # set, it ends by itself

    def finish(self) -> None:
        """Let it end what it does, and leave."""
        self.enough.set()
        self.join(60)
        assert not self.is_alive(), self.label

    def words(self) -> list[str]:
        """What was done at the target, by name."""
        path = self.effects / self.label
        return path.read_text().split() if path.exists() else []


class Execs(Load):
    """ssh, again and again: on a connection each, or on a shared one."""

    def __init__(self, run: Runner, name: str, effects: Path, *, shared: bool) -> None:
        super().__init__(run, name, effects)
        self.answers: dict[str, bytes] = {}
        self._options: list[str] = []
        self._master: subprocess.Popen[bytes] | None = None
        if shared:
            path = run.folder / f"cm-{name}"
            self._options = ["-S", str(path), "-o", "ControlMaster=no"]
            self._master = run.start(*run.argv("-M", "-N", "-S", path, run.host))
            until(path.exists, "control socket")

    def run(self) -> None:
        file = self.effects / self.label
        while not self.enough.is_set():
            word = f"{self.label}-{self.done}"
            command = f"echo {word} >> {file}; cat {file}"
            done = self.way.ssh(command, *self._options)
            if done.returncode != 0:
                self.said = done.stderr
                if self._master is not None:
                    self._master.wait(30)
                    assert self._master.stderr is not None
                    self.said += self._master.stderr.read()
                return
            assert done.stdout.split()[-1] == word.encode()
            self.answers[command] = done.stdout
            self.done += 1


class Puts(Load):
    """sftp, which puts the same file under one name after the other."""

    def __init__(self, run: Runner, name: str, effects: Path) -> None:
        super().__init__(run, name, effects)
        source = noise(run.folder / f"{name}.source", UPLOAD_BYTES)
        self.sha256 = sha256(source)
        (effects / name).mkdir()
        argv = [program("sftp", "openssh-client"), "-F", run.config, "-b", "-", run.host]
        self._errors = run.folder / f"{name}.errors"
        with self._errors.open("wb") as errors:
            self._process = run.start(*argv, stdout=subprocess.DEVNULL, stderr=errors)

    def run(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        number = 0
        try:
            while self._process.poll() is None and not self.enough.is_set():
                stdin.write(
                    f"put {self.way.folder}/{self.label}.source {self.effects}/{self.label}/{number}\n".encode()
                )
                stdin.flush()
                number += 1
                while len(self.words()) < number and self._process.poll() is None:  # one in the pipe is enough
                    time.sleep(0.002)
                self.done = number - 1
            stdin.close()
        except BrokenPipeError:
            pass
        self._process.wait(30)
        self.said = self._errors.read_bytes()

    def words(self) -> list[str]:
        return sorted((path.name for path in (self.effects / self.label).iterdir()), key=int)


class Typed(Load):
    """A person who types one line after the other."""

    def __init__(self, run: Runner, name: str, effects: Path) -> None:
        super().__init__(run, name, effects)
        self._process = run.start(*run.argv("-tt", run.host), stderr=subprocess.STDOUT)
        self.screen = b""

    def run(self) -> None:
        process = self._process
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._line(f"cd {self.effects}; echo rea''dy", b"ready")
            while process.poll() is None and not self.enough.is_set():
                word = f"{self.label}-{self.done}"
                if not self._line(f"echo {word} >> {self.label}; echo al''so {word}", f"also {word}".encode()):
                    break
                self.done += 1
            if self.enough.is_set():
                self._line("exit", b"logout")
        process.wait(30)
        self.said = self.screen

    def _line(self, text: str, answer: bytes) -> bool:
        """Type a line and wait for its answer; False at the end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(text.encode() + b"\r")
        self._process.stdin.flush()
        seen = len(self.screen)
        # A line that is typed before the prompt is there is read less well: that is not what is asked here.
        while answer not in self.screen[seen:] or not self.screen.endswith((b"# ", b"$ ", b"logout\r\n")):
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                return False
            self.screen += data
        return True


def loads(run: Runner, mark: str, effects: Path) -> list[Load]:
    """Every sort of client."""
    return [
        Execs(run, f"{mark}a", effects, shared=False),
        Execs(run, f"{mark}b", effects, shared=True),
        Execs(run, f"{mark}c", effects, shared=True),
        Puts(run, f"{mark}p", effects),
        Puts(run, f"{mark}q", effects),
        Typed(run, f"{mark}s", effects),
    ]


def begin(every: list[Load]) -> None:
    """Start them, and wait until each has done some of its work."""
    for one in every:
        one.start()

    def busy() -> bool:
        return all(one.done > 2 for one in every)

    with contextlib.suppress(AssertionError):  # who does nothing is told below
        until(lambda: busy() or not all(one.is_alive() for one in every), "work", LOAD_SECONDS)
    assert busy(), [(one.label, one.is_alive(), one.done, one.said) for one in every]


# -- what tapes say -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Told:
    """What all tapes of a directory say together."""

    allowed: set[str] = field(default_factory=set)  # texts of allowed execs and lines
    written: set[str] = field(default_factory=set)  # paths of allowed file-writes
    sums: dict[str, str] = field(default_factory=dict)  # of the uploads that ended, by path
    out: dict[str, bytes] = field(default_factory=dict)  # stdout by the text of an exec


def told(tapes: Path) -> Told:
    """Read every tape below a directory."""
    found = Told()
    for path in sorted(tapes.rglob("*.000.gct")):
        commands: dict[int, dict[str, Any]] = {}
        flows: dict[int, str] = {}
        for record in TapeReader(path).records():
            if record.kind == Kind.COMMAND:
                commands[record.n] = fields(record.payload)
                if commands[record.n]["verb"] == "exec":
                    flows[commands[record.n]["flow"]] = commands[record.n]["text"]
            elif record.kind == Kind.VERDICT and fields(record.payload)["verdict"] == "allow":
                command = commands[fields(record.payload)["command"]]
                if command["verb"] in ("exec", "line"):
                    found.allowed.add(command["text"])
                elif command["verb"] == "file-write":
                    found.written.update(command["objects"])
            elif record.kind == Kind.RESULT and fields(record.payload).get("direction") == "upload":
                result = fields(record.payload)
                found.sums[result["path"]] = result.get("sha256", "")
            elif record.kind == Kind.WIRE and record.channel == OUT and record.flow in flows:
                text = flows[record.flow]
                found.out[text] = found.out.get(text, b"") + bytes(record.payload)
    return found


def check(every: list[Load], found: Told) -> None:
    """Whatever these clients did is on the tapes, and what they were told as well."""
    for one in every:
        words = one.words()
        assert len(words) >= one.done > 2, (one.label, one.done, words)
        match one:
            case Puts():
                paths = [f"{one.effects}/{one.label}/{word}" for word in words]
                assert set(paths) <= found.written, one.label
                # sftp goes on to the next when it has the answer to the last: all but the last one were answered.
                assert {found.sums.get(path) for path in paths[:-1]} == {one.sha256}, one.label
                for path in paths[:-1]:
                    assert sha256(Path(path)) == one.sha256
            case Execs():
                texts = {f"echo {word} >> {one.effects}/{one.label}; cat {one.effects}/{one.label}" for word in words}
                assert texts <= found.allowed, (one.label, texts - found.allowed)
                assert {text: found.out.get(text) for text in one.answers} == one.answers, one.label
            case _:
                texts = {f"echo {word} >> {one.label}; echo al''so {word}" for word in words}
                assert texts <= found.allowed, (one.label, texts - found.allowed)


# -- the test -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sshd() -> Iterator[SshServer]:
    with ssh_server() as server:
        yield server


def crash(place: Place, mark: str, effects: Path, seconds: float) -> list[Load]:
    """Load a gateway and kill it; return its clients."""
    with place.serving() as gateway, way(gateway) as run:
        every = loads(run, mark, effects)
        begin(every)
        time.sleep(seconds)  # the moment of the kill is to be any
        os.killpg(gateway.process.pid, signal.SIGKILL)
        gateway.process.wait(30)
        for one in every:
            one.join(60)
            assert not one.is_alive(), one.label
    until(lambda: not place.server.connections(), "end of what ran at the target")
    return every


def killed_often(folder: Path, server: SshServer, recording: str, workers: int, times: int) -> None:
    place = Place(folder, server)
    place.configure(workers=workers, targets={"box": {"recording": recording}})
    place.register(place.user_key)
    with shared_folder() as effects:
        every: list[Load] = []
        for number in range(times):
            every += crash(place, f"r{number}", effects, 0.03 + 0.07 * (number % 7))
        with place.serving():  # recovers the last crash
            pass
        report = place.verified()
        check(every, told(folder / "state" / "tapes"))
    tapes = report["tapes"]
    assert {tape["status"] for tape in tapes} <= {"verified", "incomplete"}
    broken = [tape for tape in tapes if tape["status"] == "incomplete"]
    # These connections lasted to the kill: two shared ones, two sftp, one terminal. Others had ended, perhaps unsealed.
    assert len(broken) >= 5 * times, [tape["status"] for tape in tapes]
    reasons = {tape["fault"]["reason"] for tape in broken}
    assert all("crash" in reason for reason in reasons), reasons
    assert not list((folder / "state" / "tapes").rglob("*.gct.*"))  # nothing was set aside


@pytest.mark.parametrize(("recording", "workers"), [("durable", 1), ("durable", 2), ("written", 1)])
def test_what_was_done_is_on_a_tape(tmp_path: Path, sshd: SshServer, recording: str, workers: int) -> None:
    killed_often(tmp_path, sshd, recording, workers, 2)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("recording", "workers"), [("durable", 1), ("durable", 2), ("written", 1)])
def test_twenty_kills(tmp_path: Path, sshd: SshServer, recording: str, workers: int) -> None:
    killed_often(tmp_path, sshd, recording, workers, 20)
