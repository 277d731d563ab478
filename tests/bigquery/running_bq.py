"""How a real client of BigQuery reaches the service: by an API endpoint or by the universe domain.

Access says where and with what; it does not know whether that is the service itself or a gateway before it. Clients are
programs of their own environments (tests/peers/bigquery.py): Python's run in a worker that stays, as its packages take
seconds to import; bq and node are started for each test.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tests.peers.bigquery import PROJECT, ROOT, UNIVERSE, Environment
from tests.peers.postgres import PeerMissing

Door = Literal["endpoint", "universe"]
CLIENT_SECONDS: Final = 90.0
STOP_SECONDS: Final = 10.0
KEPT: Final = ("PATH", "LANG", "TMPDIR", "TZ")  # of the machine's environment, for a client


@dataclass(frozen=True, slots=True)
class Access:
    """Where the service is, and a caller's tokens.

    url: the API endpoint; storage: host:port of the Storage API beside it. token: a bearer token; subject: what is
    exchanged for one with door "universe". proxy: what knows the universe's names (tests/peers/bq/names.py).
    bq takes a bearer token by both doors: with a credential to exchange, gcloud sends the token that it got to
    sts.googleapis.com/v1/introspect, whatever the universe. bearer: that, where it is another than token.
    """

    door: Door
    url: str
    storage: str
    token: str
    authority: Path
    subject: str = ""
    proxy: str = ""
    bearer: str = ""

    def environment(self, folder: Path) -> dict[str, str]:
        """A client's environment; folder gets the files that it names."""
        authority = str(self.authority)
        values = {name: os.environ[name] for name in KEPT if name in os.environ} | {
            "HOME": str(folder), "GOOGLE_CLOUD_PROJECT": PROJECT, "REQUESTS_CA_BUNDLE": authority,
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": authority, "NODE_EXTRA_CA_CERTS": authority, "SSL_CERT_FILE": authority,
            "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": authority, "CLOUDSDK_CONFIG": str(folder / "gcloud"),
            "CLOUDSDK_CORE_PROJECT": PROJECT, "BQ_URL": self.url, "BQ_STORAGE": self.storage, "BQ_DOOR": self.door,
            "NO_GCE_CHECK": "true",
        }  # fmt: skip
        if self.proxy:
            values |= {"HTTPS_PROXY": self.proxy, "https_proxy": self.proxy}
        values["CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"] = _secret(folder / "token", self.bearer or self.token)
        if self.door == "endpoint":
            return {**values, "BQ_TOKEN": self.token, "CLOUDSDK_API_ENDPOINT_OVERRIDES_BIGQUERY": f"{self.url}/"}
        credential = {
            "type": "external_account", "audience": "//gatecast/warehouse",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "universe_domain": UNIVERSE,
            "token_url": f"https://sts.{UNIVERSE}/v1/token",
            "credential_source": {"file": _secret(folder / "subject", self.subject)},
        }  # fmt: skip
        return values | {
            "GOOGLE_APPLICATION_CREDENTIALS": _secret(folder / "credential.json", json.dumps(credential)),
            "GOOGLE_CLOUD_UNIVERSE_DOMAIN": UNIVERSE, "CLOUDSDK_CORE_UNIVERSE_DOMAIN": UNIVERSE,
        }  # fmt: skip


def _secret(path: Path, text: str) -> str:
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


class Worker:
    """A Python of the clients' environment that runs the scenarios of a module (tests/peers/bq/worker.py)."""

    def __init__(self, ready: Environment, access: Access, module: types.ModuleType, folder: Path) -> None:
        self._stderr = folder / "worker.log"
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [ready.clients, "-W", "ignore", "-m", "tests.peers.bq.worker", module.__name__],
                cwd=ROOT, env={**access.environment(folder), "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip

    def run(self, scenario: str, **values: object) -> None:
        """Run one; fails with its traceback."""
        self.begin(scenario, **values)
        self.finish()

    def begin(self, scenario: str, **values: object) -> None:
        """Let one run, while the test does something else."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"scenario": scenario, **values}) + "\n")
        self._process.stdin.flush()

    def finish(self) -> None:
        """Wait for its end; fails with its traceback."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()  # pytest-timeout is the limit
        assert line, f"the worker ended: {self._stderr.read_text()[-3000:]}"
        error = json.loads(line)["error"]
        assert error is None, f"in the client:\n{error}"

    def close(self) -> None:
        """End it, by the end of its stdin; one that hangs in a scenario that has failed is killed."""
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextlib.contextmanager
def worker(ready: Environment, access: Access, module: types.ModuleType, folder: Path) -> Iterator[Worker]:
    """Run a worker."""
    running = Worker(ready, access, module, folder)
    try:
        yield running
    finally:
        running.close()


def names_of(module: types.ModuleType) -> list[str]:
    """The scenarios of a module: its public functions."""
    return [
        name
        for name, each in vars(module).items()
        if isinstance(each, types.FunctionType) and each.__module__ == module.__name__ and not name.startswith("_")
    ]


@contextlib.contextmanager
def started(
    access: Access, folder: Path, command: Sequence[str], more: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a client, both outputs in one, and end it after the block if it still runs."""
    process = subprocess.Popen(
        command, env={**access.environment(folder), **(more or {})}, cwd=folder, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with process:  # waits, and closes its pipe
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a client's end: its status, and what it said."""
    text, _ = process.communicate(timeout=CLIENT_SECONDS)
    return process.returncode, text


def bq_command(*arguments: str) -> list[str]:
    """Google's bq. Raises PeerMissing."""
    program = shutil.which("bq")
    if program is None:
        raise PeerMissing("bq is missing: it comes with Google's google-cloud-cli alone")
    return [program, "--headless", "--quiet", *arguments]


def bq(access: Access, folder: Path, *arguments: str, more: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run Google's bq: its status, and what it said on both outputs. Raises PeerMissing."""
    with started(access, folder, bq_command(*arguments), more) as process:
        return said(process)


def node_command(program: str) -> list[str]:
    """A program for Node.js of tests/peers/bq; it wants BQ_NODE in its environment."""
    return ["node", str(ROOT / "tests" / "peers" / "bq" / program)]


def node(ready: Environment, access: Access, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run tests/peers/bq/node_client.mjs: its output is a JSON line for each of its scenarios."""
    return subprocess.run(
        node_command("node_client.mjs"),
        env={**access.environment(folder), "BQ_NODE": str(ready.node)}, cwd=folder, stdin=subprocess.DEVNULL,
        check=False, capture_output=True, text=True, timeout=CLIENT_SECONDS,
    )  # fmt: skip
