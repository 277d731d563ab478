"""How a scenario reaches the machine "box": directly, through the gateway, or through it by ``ssh -J``.

A scenario is a function that takes a Runner and asserts on real results; it does not know the way. scenarios*.py hold
them, each registered with the ways that it is for; cases() makes the parameters of one test of each pair.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Final, Literal

import pytest

from tests.peers.ssh import KeyPair, SshServer, askpass, client_environment, program, write_config
from tests.ssh.gateway import GatewayProcess

Via = Literal["direct", "gateway", "jump"]
Argument = str | bytes | os.PathLike[str]
PATIENCE_SECONDS: Final = 60.0
Scenario = Callable[["Runner"], None]


@dataclass(frozen=True, slots=True)
class Listed:
    """A scenario, and the ways that it is tried."""

    function: Scenario
    vias: tuple[Via, ...]
    nightly: bool


_LISTED: Final[dict[str, list[Listed]]] = {}  # by the module's name


def scenario(
    *, main: bool = False, vias: tuple[Via, ...] = (), nightly: bool = False
) -> Callable[[Scenario], Scenario]:
    """Register a scenario: direct and through the gateway; a main one by ``ssh -J`` as well."""

    def register(function: Scenario) -> Scenario:
        ways = vias or (("direct", "gateway", "jump") if main else ("direct", "gateway"))
        _LISTED.setdefault(function.__module__, []).append(Listed(function, ways, nightly))
        return function

    return register


def cases(module: ModuleType) -> list[Any]:
    """Return pytest's parameters (run, scenario) of a module's scenarios, way by way."""
    found = _LISTED[module.__name__]
    return [
        pytest.param(via, each.function, id=f"{via}-{each.function.__name__}", marks=pytest.mark.nightly)
        if each.nightly
        else pytest.param(via, each.function, id=f"{via}-{each.function.__name__}")
        for via in ("direct", "gateway", "jump")
        for each in found
        if via in each.vias
    ]


@dataclass(slots=True)
class Runner:
    """One way to the target, with a folder of its own at each end (both are on this machine)."""

    via: Via
    server: SshServer
    gateway: GatewayProcess | None
    folder: Path
    remote: Path
    target: str = "box"
    host: str = "box"
    config: Path = field(init=False)
    environment: dict[str, str] = field(init=False)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.environment = client_environment(self.folder)
        self.config = self.write("ssh_config", None)

    # -- who and where, for clients that do not read ssh_config ---------------------------------------

    @property
    def port(self) -> int:
        """The port to connect to."""
        return self.gateway.port if self.gateway is not None else self.server.port

    @property
    def login(self) -> str:
        """The user's name, with the target in it where the gateway asks for that."""
        return self.server.user if self.gateway is None else f"{self.server.user}:{self.target}"

    @property
    def key(self) -> KeyPair:
        """The user's key."""
        return self.server.login if self.gateway is None else self.gateway.user_key

    # -- OpenSSH --------------------------------------------------------------------------------------

    def write(self, name: str, secret: str | None, **options: object) -> Path:
        """Write another configuration for this way; options are of the host "box".

        secret: log in with this password, not with the key.
        """
        known = self.folder / f"{name}.known_hosts"
        proof: dict[str, object] = {"IdentityFile": self.key.file}
        if secret is not None:
            proof = {"PreferredAuthentications": "password", "PubkeyAuthentication": "no", "BatchMode": "no"}
            self.environment |= askpass(self.folder, secret)
        base: dict[str, object] = {**options, **proof, "UserKnownHostsFile": known}
        near: dict[str, object] = {"HostName": "127.0.0.1", "Port": self.port}
        hosts: dict[str, dict[str, object]]
        if self.gateway is None:
            known.write_text(self.server.known_hosts("box"))
            hosts = {self.host: {**base, **near, "User": self.server.user, "HostKeyAlias": "box"}}
        elif self.via == "gateway":
            known.write_text(f"gatecast {self.gateway.host_key}\n")
            hosts = {self.host: {**base, **near, "User": self.login, "HostKeyAlias": "gatecast"}}
        else:
            known.write_text(f"@cert-authority * {self.gateway.host_authority}\n")  # gateway and targets alike
            outer = {**proof, **near, "UserKnownHostsFile": known, "User": "ana", "HostKeyAlias": "gatecast"}
            inner = {**base, "HostName": self.target, "User": self.server.user, "ProxyJump": "gate"}
            hosts = {self.host: inner, "gate": outer}
        return write_config(self.folder / name, hosts)

    def argv(self, *arguments: Argument, config: Path | None = None) -> list[Argument]:
        """The command line of ssh with this way's configuration."""
        return [program("ssh", "openssh-client"), "-F", config or self.config, *arguments]

    def ssh(
        self,
        command: str | bytes | None = None,
        *options: Argument,
        input: bytes | None = b"",
        config: Path | None = None,
        timeout: float = PATIENCE_SECONDS,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ssh to its end. options come before the host."""
        words = self.argv(*options, self.host, *([command] if command is not None else []), config=config)
        return self.run(*words, input=None if stdin else input, timeout=timeout, stdin=stdin, stdout=stdout)

    def run(
        self,
        *argv: Argument,
        input: bytes | None = b"",
        timeout: float = PATIENCE_SECONDS,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run any client in this way's environment."""
        with subprocess.Popen(
            [os.fsencode(word) for word in argv],
            stdin=stdin if stdin is not None else subprocess.PIPE,
            stdout=stdout if stdout is not None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd or self.folder,
            env=self.environment | dict(env or {}),
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(input, timeout=timeout)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                pytest.fail(f"{argv!r} hung: out {out[-500:]!r}, err {err[-500:]!r}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out or b"", err)

    def start(self, *argv: Argument, **popen: Any) -> subprocess.Popen[bytes]:
        """Start a client that goes on; close() ends what is left of it."""
        streams: dict[str, Any] = {
            "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.folder,
            "start_new_session": True,
        }  # fmt: skip
        process = subprocess.Popen([os.fsencode(word) for word in argv], env=self.environment, **(streams | popen))
        self._started.append(process)
        return process

    @contextlib.contextmanager
    def started(self, *argv: Argument, **popen: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Start a client, and end it after the block if it still runs."""
        process = self.start(*argv, **popen)
        try:
            yield process
        finally:
            _end(process)
            self._started.remove(process)

    def close(self) -> None:
        """End what the scenario left running."""
        for process in self._started:
            _end(process)
        self._started.clear()

    # -- files ----------------------------------------------------------------------------------------

    def sftp(self, *commands: str, options: Sequence[Argument] = (), timeout: float = PATIENCE_SECONDS) -> Any:
        """Run a batch of sftp; it stops at the first command that fails, unless that begins with '-'."""
        words = [program("sftp", "openssh-client"), "-F", self.config, *options, "-b", "-", self.host]
        return self.run(*words, input="\n".join(commands).encode() + b"\n", timeout=timeout)

    def scp(self, *arguments: Argument, timeout: float = PATIENCE_SECONDS) -> subprocess.CompletedProcess[bytes]:
        """Run scp."""
        return self.run(program("scp", "openssh-client"), "-F", self.config, *arguments, timeout=timeout)

    @property
    def shell(self) -> str:
        """The command line of ssh for programs that take one: rsync -e, GIT_SSH_COMMAND."""
        return shlex.join(["ssh", "-F", str(self.config)])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


# -- what scenarios share -----------------------------------------------------------------------------


def until(condition: Callable[[], object], what: str = "", seconds: float = 30.0) -> Any:
    """Look until the condition holds; return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in {seconds:.0f} s there was no {what or condition}"
        time.sleep(0.02)
    return found


def still(reading: Callable[[], int], *, seconds: float = 0.5, deadline_seconds: float = 30.0) -> int:
    """Wait until a number has not changed for so long; return it."""
    deadline = time.monotonic() + deadline_seconds
    last, since = reading(), time.monotonic()
    while time.monotonic() - since < seconds:
        assert time.monotonic() < deadline, f"it never came to rest: {last}"
        time.sleep(0.02)
        if (now := reading()) != last:
            last, since = now, time.monotonic()
    return last


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def noise(path: Path, size_bytes: int) -> Path:
    """Write a file that does not compress."""
    with path.open("wb") as file:
        for start in range(0, size_bytes, 1 << 22):
            file.write(os.urandom(min(1 << 22, size_bytes - start)))
    return path
