"""BigQuery for tests: bqemulator, a faithful layer before it (tests/peers/bq), and the environments of real clients.

What needs packages lives in environments of its own in the user's cache, made by pip and npm on first use, or ahead of
it: python -m tests.peers.bigquery. The pins below name them, so that new pins make a new one. The emulator's holds the
layer too, which needs no other packages. Nothing is fetched when a test runs: DuckDB's spatial extension, which the
emulator would download at its start, comes from a wheel.

The clients' environment is for programs (tests/peers/bq/worker.py is one) and never imported from here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.peers.bq.names import Names, names
from tests.peers.certificates import Authority
from tests.peers.postgres import PeerMissing, need

ROOT: Final = Path(__file__).parents[2]
DUCKDB: Final = "1.5.5"  # 2.0 has no wheel of the spatial extension
EMULATOR: Final = (
    "bqemulator==1.4.0", f"duckdb=={DUCKDB}", f"duckdb-extension-spatial=={DUCKDB}", "numpy", "pytz",
    "fastapi==0.165.*", "httpx==0.28.*", "starlette==1.*", "sqlglot==30.11.*", "protobuf==6.*", "uvloop", "grpcio",
)  # fmt: skip
CLIENTS: Final = (
    "google-cloud-bigquery==3.47.*", "google-cloud-bigquery-storage==2.43.*", "pandas-gbq==0.35.3",
    "sqlalchemy-bigquery==1.17.3", "pandas==3.1.*", "pyarrow==26.*", "db-dtypes",
)  # fmt: skip
DBT: Final = ("dbt-core==1.11.*", "dbt-bigquery==1.11.3")  # 1.12 wants a wheel that no registry has
DISCOVERY: Final = "google-api-python-client==2.202.0"
NODE: Final = ("@google-cloud/bigquery@8.3.1",)
SETUP_SECONDS: Final = 900.0
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 10.0
START_ATTEMPTS: Final = 3  # a free port may be taken before the emulator binds it
TOKEN: Final = "fakebq-service-account-token-91c4d7"
OTHER_TOKEN: Final = "fakebq-other-account-token-0be2aa"
SUBJECT: Final = "fakebq-subject-token-55d1f0"
ACCOUNT: Final = "gate@test-project.iam.gserviceaccount.com"
OTHER: Final = "other@test-project.iam.gserviceaccount.com"
UNIVERSE: Final = "bq.test"  # a name that no resolver knows (RFC 6761 6.2)
PROJECT: Final = "test-project"


# -- environments ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Environment:
    """Where everything is. clients: the Python of the clients; node: a folder with node_modules."""

    folder: Path

    @property
    def emulator(self) -> Path:
        """The emulator's Python."""
        return self.folder / "emulator" / "bin" / "python"

    @property
    def clients(self) -> Path:
        """The clients' Python."""
        return self.folder / "clients" / "bin" / "python"

    @property
    def node(self) -> Path:
        """The folder whose node_modules has Google's client."""
        return self.folder / "node"

    @property
    def home(self) -> Path:
        """The emulator's HOME, with DuckDB's extension."""
        return self.folder / "home"

    @property
    def discovery(self) -> Path:
        """BigQuery's discovery document, as Google publishes it with its Python client."""
        return self.folder / "bigquery.v2.json"


def environment() -> Environment:
    """Return the environments, made on first use: about 1 GB, a minute. Raises PeerMissing."""
    words = "\n".join([*EMULATOR, *CLIENTS, DISCOVERY, *NODE, sys.version]).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatecast-tests"
    folder = cache / f"bigquery-{hashlib.sha256(words).hexdigest()[:12]}"
    ready = Environment(folder)
    if (folder / ".ready").exists():
        return ready
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "bigquery.lock").open("w") as lock:  # several test processes may come here at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / ".ready").exists():
            return ready
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier attempt left
        folder.mkdir()
        try:
            with concurrent.futures.ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda make: make(ready), (_make_emulator, _make_clients, _make_node)))
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", "") or ""
            raise PeerMissing(f"the environments of BigQuery's tests cannot be made: {error} {said[-500:]}") from error
        (folder / ".ready").touch()
    return ready


def dbt() -> Path:
    """Return the dbt of an environment of its own, made on first use: 730 MB, a minute. Raises PeerMissing."""
    words = "\n".join([*DBT, sys.version]).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatecast-tests"
    folder = cache / f"dbt-{hashlib.sha256(words).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "dbt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            try:
                _venv(folder, DBT)
            except (OSError, subprocess.SubprocessError) as error:
                said = getattr(error, "stderr", "") or ""
                raise PeerMissing(f"dbt cannot be installed: {error} {said[-500:]}") from error
            (folder / ".ready").touch()
    return folder / "bin" / "dbt"


def need_dbt() -> Path:
    """The same for a test: skips where it cannot be had, as it is a guest here."""
    try:
        return dbt()
    except PeerMissing as missing:
        need(missing, optional=True)
        raise AssertionError from missing  # need() does not return


def need_environment() -> Environment:
    """The same for a test: fails in CI, skips elsewhere, where it cannot be had."""
    try:
        return environment()
    except PeerMissing as missing:
        need(missing)
        raise AssertionError from missing  # need() does not return


def _make_emulator(ready: Environment) -> None:
    _venv(ready.folder / "emulator", EMULATOR)
    (packages,) = (ready.folder / "emulator" / "lib").glob("python3*/site-packages")
    kind = "linux_arm64" if platform.machine() in ("aarch64", "arm64") else "linux_amd64"
    place = ready.home / ".duckdb" / "extensions" / f"v{DUCKDB}" / kind
    place.mkdir(parents=True)
    for file in (packages / "duckdb_extension_spatial").rglob("*.duckdb_extension"):
        shutil.move(file, place / file.name)
    fetched = ready.folder / "fetched"
    _run([ready.emulator, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", fetched, DISCOVERY])
    (wheel,) = fetched.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        ready.discovery.write_bytes(archive.read("googleapiclient/discovery_cache/documents/bigquery.v2.json"))
    shutil.rmtree(fetched)


def _make_clients(ready: Environment) -> None:
    _venv(ready.folder / "clients", CLIENTS)


def _make_node(ready: Environment) -> None:
    if shutil.which("npm") is None:
        raise PeerMissing("npm is missing: apt-get install npm")
    ready.node.mkdir()
    (ready.node / "package.json").write_text('{"private": true}')
    _run(["npm", "install", "--silent", "--no-audit", "--no-fund", *NODE], cwd=ready.node)


def _venv(folder: Path, packages: Sequence[str]) -> None:
    _run([sys.executable, "-m", "venv", folder])
    _run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])


def _run(command: Sequence[str | Path], cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=SETUP_SECONDS)


# -- the service ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BigQueryServer:
    """A running layer with its emulator. port: REST with TLS; plain: REST without; storage: gRPC with TLS."""

    port: int
    plain: int
    storage: int
    folder: Path
    authority: Authority
    emulator_pid: int
    layer_pid: int

    @property
    def url(self) -> str:
        """Where REST is."""
        return f"https://localhost:{self.port}"

    @property
    def bucket_root(self) -> Path:
        """What gs://NAME/... is: a folder NAME in it, for loads and extracts."""
        return self.folder / "buckets"

    @property
    def universe(self) -> dict[str, int]:
        """The hosts of the universe domain: for names()."""
        return {
            f"bigquery.{UNIVERSE}:443": self.port, f"sts.{UNIVERSE}:443": self.port,
            f"bigquerystorage.{UNIVERSE}:443": self.storage,
        }  # fmt: skip

    def declare(self, **sizes: int) -> None:
        """Say how large tables of PROJECT are, dataset__table=bytes: for tests of cost. Replaces what was said."""
        declared = {f"{PROJECT}.{name.replace('__', '.')}": size for name, size in sizes.items()}
        (self.folder / "sizes.json").write_text(json.dumps(declared))

    def mark(self) -> int:
        """How far the log of requests is: for requests(since=...)."""
        return len(self._lines())

    def requests(self, since: int = 0, about: str = "") -> list[dict[str, Any]]:
        """What it was asked: method, host, path, query, headers, body, user, code; or grpc, metadata, user, code.

        about: a text that is the same in JSON; requests without it are left out.
        """
        return [json.loads(line) for line in self._lines()[since:] if about in line]

    def _lines(self) -> list[str]:
        return (self.folder / "requests.jsonl").read_text().splitlines()

    def api(self, method: str, path: str, value: object = None, token: str = TOKEN) -> tuple[int, dict[str, Any]]:
        """Ask for a path below /bigquery/v2 without any client: the status and the object."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.plain}/bigquery/v2{path}",
            method=method,
            data=None if value is None else json.dumps(value).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"{}")

    def sql(self, text: str) -> list[list[Any]]:
        """Run a query without any client: its rows, cells as they are on the wire."""
        body = {"query": text, "useLegacySql": False}
        code, value = self.api("POST", f"/projects/{PROJECT}/queries", body)
        assert code == 200, value
        return [[cell["v"] for cell in row["f"]] for row in value.get("rows", [])]


@contextlib.contextmanager
def bigquery_server(ready: Environment | None = None) -> Iterator[BigQueryServer]:
    """Run the emulator and the layer. Raises PeerMissing."""
    ready = ready or environment()
    folder = Path(tempfile.mkdtemp(prefix="gc-bq-"))
    try:
        (folder / "buckets").mkdir()
        authority = Authority(folder, "fakebq-ca")
        served = authority.issue("fakebq", ("localhost", "127.0.0.1", UNIVERSE, f"*.{UNIVERSE}"))
        with _emulator(ready, folder) as (emulator, rest, grpc):
            values = {
                "certificate": str(served.certificate_file), "key": str(served.key_file), "rest": rest, "grpc": grpc,
                "discovery": str(ready.discovery), "subjects": {SUBJECT: ACCOUNT},
                "tokens": {TOKEN: ACCOUNT, OTHER_TOKEN: OTHER},
            }  # fmt: skip
            (folder / "settings.json").write_text(json.dumps(values))
            (folder / "requests.jsonl").touch()
            with _layer(ready, folder) as (layer, said):
                yield BigQueryServer(
                    said["port"], said["plain"], said["storage"], folder, authority, emulator.pid, layer.pid
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _emulator(ready: Environment, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    for _ in range(START_ATTEMPTS):
        rest, grpc = _free_ports()
        program = ready.emulator.parent / "bqemulator"
        command = [
            program, "start", "--ephemeral", "--rest-port", str(rest), "--grpc-port", str(grpc), "--log-level",
            "warning", "--project", PROJECT,
        ]  # fmt: skip
        home = {"HOME": str(ready.home), "BQEMU_GCS_LOCAL_ROOT": str(folder / "buckets")}
        with (folder / "emulator.log").open("wb") as log:
            process = subprocess.Popen(command, env=_plain(home), cwd=folder, stdout=log, stderr=log)
        try:
            if _healthy(process, rest):
                yield process, f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}"
                return
        finally:
            _stop(process)
    raise RuntimeError(f"bqemulator did not start: {(folder / 'emulator.log').read_text()[-2000:]}")


@contextlib.contextmanager
def _layer(ready: Environment, folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    with (folder / "layer.log").open("w") as log:
        process = subprocess.Popen(
            [ready.emulator, "-m", "tests.peers.bq", str(folder)],
            cwd=ROOT, env=_plain({"PYTHONDONTWRITEBYTECODE": "1"}), stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()  # the process says it, or ends
        if not line:
            raise RuntimeError(f"the layer did not start: {(folder / 'layer.log').read_text()[-2000:]}")
        yield process, json.loads(line)
    finally:
        _stop(process)
        process.stdout.close()


def _healthy(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
        except OSError:
            time.sleep(0.1)  # there is nothing to wait for but its port
        else:
            return True
    return False


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]


def _stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _plain(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "TZ") if name in os.environ}
    return {**kept, **more}


__all__ = [
    "ACCOUNT", "OTHER", "OTHER_TOKEN", "PROJECT", "SUBJECT", "TOKEN", "UNIVERSE", "BigQueryServer", "Environment",
    "Names", "bigquery_server", "dbt", "environment", "names", "need_dbt", "need_environment",
]  # fmt: skip


if __name__ == "__main__":
    started = time.monotonic()
    print(f"{environment().folder}: ready after {time.monotonic() - started:.0f} s")
