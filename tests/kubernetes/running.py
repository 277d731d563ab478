"""How a scenario reaches the API server: directly or through the gateway, with a kubectl of some generation.

A scenario is a function that takes a Runner and asserts on real results; it does not know the way. scenarios*.py hold
them, each registered with the generations that it is for; cases() makes the parameters of one test of each pair. The
server is shared: what a scenario makes has a name of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Final, Literal, cast

import pytest

from tests.kubernetes.gateway import TARGET, KubeGateway
from tests.peers.kubernetes import GENERATIONS, TOKEN, Generation, KubeServer, need_kubectl, write_kubeconfig
from tests.ssh.terminal import Terminal

Via = Literal["direct", "gateway"]
Argument = str | os.PathLike[str]
PATIENCE_SECONDS: Final = 60.0
NEWEST: Final[Generation] = "1.37"
KEPT: Final = ("PATH", "LANG", "TMPDIR", "TZ")  # of the machine's environment, for a client
SPDY: Final = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
WEBSOCKET: Final = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "true", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "true"}
Scenario = Callable[["Runner"], None]


@dataclass(frozen=True, slots=True)
class Way:
    """How a test goes there."""

    via: Via
    generation: Generation
    switches: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For pytest."""
        return f"{self.via}-{self.generation}{'-spdy' if self.switches == SPDY else ''}"


@dataclass(frozen=True, slots=True)
class Listed:
    """A scenario, and the ways that it is tried."""

    function: Scenario
    ways: tuple[Way, ...]
    nightly: bool


_LISTED: Final[dict[str, list[Listed]]] = {}  # by the module's name


def scenario(
    *, every: bool = False, switched: bool = False, vias: tuple[Via, ...] = ("direct", "gateway"), nightly: bool = False
) -> Callable[[Scenario], Scenario]:
    """Register a scenario: for the newest kubectl, or every one; switched: also with WebSocket turned off."""

    def register(function: Scenario) -> Scenario:
        ways = [Way(via, each) for via in vias for each in (GENERATIONS if every else (NEWEST,))]
        if switched:
            ways += [Way(via, NEWEST, SPDY) for via in vias]
        _LISTED.setdefault(function.__module__, []).append(Listed(function, tuple(ways), nightly))
        return function

    return register


def cases(module: ModuleType) -> list[Any]:
    """Return pytest's parameters (run, scenario) of a module's scenarios, way by way."""
    found = [(way, each) for each in _LISTED[module.__name__] for way in each.ways]
    found.sort(key=lambda pair: pair[0].via)
    marks = {True: (pytest.mark.nightly, pytest.mark.timeout(1800)), False: ()}
    return [
        pytest.param(way, each.function, id=f"{way.name}-{each.function.__name__}", marks=marks[each.nightly])
        for way, each in found
    ]


Done = subprocess.CompletedProcess[bytes]


@dataclass(slots=True)
class Runner:
    """One way to the server. folder: the client's HOME, with its kubeconfig."""

    way: Way
    server: KubeServer
    gateway: KubeGateway | None
    folder: Path
    kubectl: Path = field(init=False)
    version: tuple[int, int] = field(init=False)
    kubeconfig: Path = field(init=False)
    environment: dict[str, str] = field(init=False)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        found = need_kubectl(self.way.generation)
        self.kubectl, self.version = found.path, found.version
        self.kubeconfig = write_kubeconfig(self.folder / "kubeconfig", self.url, self.authority, {"token": self.token})
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.environment = {
            **kept, "HOME": str(self.folder), "LC_ALL": "C.UTF-8", "TERM": "xterm-256color",
            "KUBECONFIG": str(self.kubeconfig), **self.way.switches,
        }  # fmt: skip

    # -- where ----------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The server's address in a kubeconfig."""
        return self.server.url if self.gateway is None else self.gateway.url()

    @property
    def prefix(self) -> str:
        """What kubectl get --raw wants before a path: up to 1.32 at least, it forgets the server's."""
        return "" if self.gateway is None or self.version >= (1, 37) else f"/k8s/{TARGET}"

    @property
    def authority(self) -> Path:
        """What the server's certificate is checked by."""
        return self.server.authority.ca_file if self.gateway is None else self.gateway.authority

    @property
    def token(self) -> str:
        """The user's token."""
        return TOKEN if self.gateway is None else self.gateway.token

    def name(self, prefix: str) -> str:
        """A name that nobody has."""
        return f"{prefix}-{uuid.uuid4().hex[:8]}"

    def scratch(self) -> str:
        """A folder in a pod that nobody has; where pods are processes, it is on this machine."""
        return f"/tmp/gc-{uuid.uuid4().hex[:8]}"

    # -- kubectl --------------------------------------------------------------------------------------

    def argv(self, *arguments: Argument) -> list[Argument]:
        """The command line of kubectl."""
        return [self.kubectl, *arguments]

    def do(
        self,
        *arguments: Argument,
        input: bytes | None = b"",
        timeout: float = PATIENCE_SECONDS,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run kubectl to its end."""
        argv = self.argv(*arguments)
        with self.started(
            *argv,
            stdin=stdin if stdin is not None else subprocess.PIPE,
            stdout=stdout if stdout is not None else subprocess.PIPE,
            env=self.environment | dict(env or {}),
        ) as process:
            try:
                out, err = process.communicate(None if stdin else input, timeout=timeout)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                pytest.fail(f"{argv!r} hung: out {(out or b'')[-500:]!r}, err {err[-500:]!r}")
            return subprocess.CompletedProcess(argv, process.returncode, out or b"", err)

    def ok(self, *arguments: Argument, **options: Any) -> str:
        """Run kubectl, which must succeed; return what it printed."""
        done = self.do(*arguments, **options)
        assert done.returncode == 0, f"{arguments!r}: {done.stdout[-500:]!r} {done.stderr[-2000:]!r}"
        return done.stdout.decode()

    def json(self, *arguments: Argument) -> Any:
        """Run kubectl with -o json."""
        return json.loads(self.ok(*arguments, "-o", "json"))

    def sh(self, script: str, *options: Argument, pod: str = "web-0", **more: Any) -> Done:
        """Run a script in the container main of a pod."""
        return self.do("exec", *options, pod, "-c", "main", "--", "sh", "-c", script, **more)

    @contextlib.contextmanager
    def started(self, *argv: Argument, **popen: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Start a client, and end it after the block if it still runs."""
        streams: dict[str, Any] = {
            "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.folder,
            "start_new_session": True, "env": self.environment,
        }  # fmt: skip
        process = subprocess.Popen([os.fspath(word) for word in argv], **(streams | popen))
        self._started.append(process)
        try:
            yield process
        finally:
            _end(process)
            self._started.remove(process)

    @contextlib.contextmanager
    def terminal(self, *arguments: Argument, columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
        """Run kubectl in a terminal, with a person at it."""
        # A Terminal wants a folder and an environment of the runner, no more.
        seat = Terminal(cast("Any", self), self.argv(*arguments), columns, rows)
        try:
            yield seat
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                seat.tmux("kill-server")

    @contextlib.contextmanager
    def forward(self, remote: int, *, pod: str = "web-0") -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
        """Run a port-forward; yields the local port."""
        argv = self.argv("port-forward", f"pod/{pod}", f":{remote}", "--address", "127.0.0.1")
        with self.started(*argv, stdin=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            line = process.stdout.readline()  # the client says it, or ends
            found = re.search(rb"127\.0\.0\.1:(\d+) ->", line)
            if found is None:
                process.kill()
                pytest.fail(f"no port-forward: {line!r} {process.communicate()[1][-500:]!r}")
            yield int(found[1]), process

    def close(self) -> None:
        """End what the scenario left running."""
        for process in self._started:
            _end(process)
        self._started.clear()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def connected(port: int, seconds: float = 10.0) -> socket.socket:
    """Connect to a port of this machine, as soon as somebody listens there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"nobody listens on {port}"
            time.sleep(0.02)


def lines_of(stream: IO[bytes] | None, wanted: Callable[[str], bool]) -> list[str]:
    """Read lines until one is what is wanted, or the stream ends; return them."""
    assert stream is not None
    found: list[str] = []
    for raw in iter(stream.readline, b""):
        found.append(raw.decode())
        if wanted(found[-1]):
            break
    return found
