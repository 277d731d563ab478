"""Clients at work until they are cut off, and whether tapes know all of what they did and were told.

What was done is asked of the other side: the stand-in's log of requests, a file that an exec writes, a server behind a
port-forward. A client that is cut off in the middle may have done one thing more than it knows of, and never less.
"""

from __future__ import annotations

import contextlib
import re
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.kubernetes.place import Api, Tale
from tests.kubernetes.running import Runner, connected
from tests.peers.kubernetes import KubeServer
from tests.ssh.running import until

LOAD_SECONDS: Final = 60.0  # for every client to have done something, on a busy machine


class Load(threading.Thread):
    """A client. done: how much of what it did was answered; failure: why it ended."""

    def __init__(self, label: str) -> None:
        super().__init__(daemon=True)
        self.label = label
        self.done = 0
        self.failure = b""
        self.enough = threading.Event()  # set, it ends by itself

    def run(self) -> None:
        try:
            while not self.enough.is_set() and self.step(f"{self.label}-{self.done}"):
                self.done += 1
        except (OSError, EOFError) as error:  # cut off; http.client's errors about that are OSErrors, but one
            self.failure = self.failure or repr(error).encode()
        except Exception as error:
            self.failure = self.failure or repr(error).encode()
        finally:
            self.leave()

    def step(self, word: str) -> bool:
        """Do one thing; returns whether it was done."""
        raise NotImplementedError

    def leave(self) -> None:
        """Let go of what it holds."""

    def finish(self) -> None:
        """Have it end what it does, and leave."""
        self.enough.set()
        self.join(60)
        assert not self.is_alive(), self.label

    def check(self, told: list[Tale]) -> None:
        """Whatever was done, and whatever it was told, is on the tapes."""
        raise NotImplementedError


class Creates(Load):
    """ConfigMaps, one after the other, over one connection or one each."""

    def __init__(self, label: str, api: Api, server: KubeServer, *, anew: bool = False) -> None:
        super().__init__(label)
        self._api = api
        self._server = server
        self._since = server.mark()
        self._anew = anew
        self.answers: dict[str, bytes] = {}

    def step(self, word: str) -> bool:
        answer = self._api.create(word, word=word)
        if answer.status != 201:
            self.failure = answer.body
            return False
        self.answers[word] = answer.body
        if self._anew:
            self._api.close()
        return True

    def leave(self) -> None:
        self._api.close()

    def reached(self) -> dict[str, str]:
        """The bodies of those that reached the API server, by name."""
        bodies = [each["body"] for each in self._server.requests(self._since) if each["method"] == "POST"]
        found = {body: re.search(rf'"name": "({self.label}-\d+)"', body) for body in bodies}
        return {name[1]: body for body, name in found.items() if name is not None}

    def check(self, told: list[Tale]) -> None:
        reached = self.reached()
        assert len(reached) >= self.done > 2, (self.label, self.done, len(reached))
        asked, answered = set(), {}
        for each in told:
            for flow in each.allowed if each.http else ():
                _, _, body = each.bytes_of(flow, "user").partition(b"\r\n\r\n")
                asked.add(body.decode("latin-1"))
                head, _, said = each.bytes_of(flow, "out").partition(b"\r\n\r\n")
                if head.startswith(b"HTTP/1.1 201 "):
                    answered[body.decode("latin-1")] = said
        assert set(reached.values()) <= asked, self.label
        assert {name: answered.get(reached[name]) for name in self.answers} == self.answers, self.label


class Kubectls(Load):
    """kubectl create, again and again: in protobuf, and a connection each."""

    def __init__(self, label: str, run: Runner) -> None:
        super().__init__(label)
        self._run = run
        self._since = run.server.mark()

    def step(self, word: str) -> bool:
        done = self._run.do("create", "configmap", word, "--from-literal=a=1")
        self.failure = done.stderr
        return done.returncode == 0 and done.stdout == f"configmap/{word} created\n".encode()

    def check(self, told: list[Tale]) -> None:
        bodies = [each["body"] for each in self._run.server.requests(self._since) if each["method"] == "POST"]
        reached = {body for body in bodies if re.search(rf"{self.label}-\d+", body)}
        assert len(reached) >= self.done > 0, (self.label, self.done, reached)
        asked = {
            each.bytes_of(flow, "user").partition(b"\r\n\r\n")[2].decode("latin-1")
            for each in told for flow in each.allowed if each.http
        }  # fmt: skip
        assert reached <= asked, self.label


class Streamed(Load):
    """Words into a stream, each answered before the next: a step is a line, "also <line>" its answer."""

    sent: Callable[[bytes], Any]
    got: Callable[[], bytes]

    def step(self, word: str) -> bool:
        self.sent(word.encode() + b"\n")
        line = self.got()
        assert line in (b"", f"also {word}\n".encode()), line
        return line != b""

    def words(self) -> list[str]:
        """What the other side read."""
        raise NotImplementedError

    def check(self, told: list[Tale]) -> None:
        words = self.words()
        assert len(words) >= self.done > 2, (self.label, self.done, words)
        first = f"{self.label}-0\n".encode()
        found = [
            (each, flow) for each in told if not each.http
            for flow in each.allowed if each.bytes_of(flow, "user").startswith(first)
        ]  # fmt: skip
        assert len(found) == 1, (self.label, found)
        each, flow = found[0]
        assert each.bytes_of(flow, "user").decode().split()[: len(words)] == words, self.label
        answers = "".join(f"also {self.label}-{number}\n" for number in range(self.done))
        assert each.bytes_of(flow, "out").startswith(answers.encode()), self.label


class Execs(Streamed):
    """kubectl exec -i of a shell loop that leaves each line in a file."""

    def __init__(self, label: str, run: Runner, effects: Path) -> None:
        super().__init__(label)
        self.file = effects / label
        script = f'while read -r word; do echo "$word" >> {self.file}; echo "also $word"; done'
        self.process = subprocess.Popen(
            [str(word) for word in run.argv("exec", "-i", "web-0", "-c", "main", "--", "sh", "-c", script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=run.environment,
            start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.got = self.process.stdout.readline

    def sent(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def leave(self) -> None:
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        self.failure = self.process.stderr.read()
        self.process.wait(30)
        self.process.stderr.close()
        self.process.stdout.close()

    def words(self) -> list[str]:
        return self.file.read_text().split() if self.file.exists() else []


class Forwards(Streamed):
    """A connection through kubectl port-forward to a server of the test's own."""

    def __init__(self, label: str, run: Runner, service: Service) -> None:
        super().__init__(label)
        self._service = service
        self._held = contextlib.ExitStack()
        port, self.process = self._held.enter_context(run.forward(service.port))
        self._wire = self._held.enter_context(connected(port))
        self.sent = self._wire.sendall
        self.got = self._wire.makefile("rb").readline

    def leave(self) -> None:
        self._held.close()

    def words(self) -> list[str]:
        return [word for word in self._service.read if word.startswith(f"{self.label}-")]


class Service(socketserver.ThreadingTCPServer):
    """Says "also" to each line. read: all lines."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Line)
        self.read: list[str] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])


class _Line(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Service)
        with contextlib.suppress(OSError):
            for line in self.rfile:
                if line.endswith(b"\n"):
                    self.server.read.append(line.decode().strip())
                    self.wfile.write(b"also " + line)


@contextlib.contextmanager
def service() -> Iterator[Service]:
    """Run it."""
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def loads(run: Runner, mark: str, effects: Path, behind: Service) -> list[Load]:
    """Every sort of client."""
    assert run.gateway is not None
    return [
        Creates(f"{mark}a", Api(run.gateway), run.server),
        Creates(f"{mark}b", Api(run.gateway), run.server, anew=True),
        Kubectls(f"{mark}k", run),
        Execs(f"{mark}e", run, effects),
        Execs(f"{mark}f", run, effects),
        Forwards(f"{mark}p", run, behind),
        Forwards(f"{mark}q", run, behind),
    ]


def begin(every: list[Load]) -> None:
    """Start them, and wait until each has done some of its work."""
    for one in every:
        one.start()

    def busy() -> bool:
        return all(one.done > (0 if isinstance(one, Kubectls) else 2) for one in every)

    with contextlib.suppress(AssertionError):  # who does nothing is told below
        until(lambda: busy() or not all(one.is_alive() for one in every), "work", LOAD_SECONDS)
    assert busy(), [(one.label, one.is_alive(), one.done, one.failure) for one in every]


def ended(every: list[Load], seconds: float = 60) -> None:
    """Wait until they were cut off."""
    deadline = time.monotonic() + seconds
    for one in every:
        one.join(max(0.0, deadline - time.monotonic()))
        assert not one.is_alive(), one.label
