"""The whole house with real peers: an unmodified psql, gatecast serve in a process of its own, a real PostgreSQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.certificates import self_signed
from proxy.identity.commands import token_issue
from tests.peers.postgres import PostgresServer

pytestmark = pytest.mark.peer
ROOT = Path(__file__).parents[1]
RULES = """\
rules:
  - {name: read, who: {groups: [dev]}, commands: {kinds: [read]}, allow: true}
  - {name: hide, mask: [{columns: [public.people.email], action: redact}]}
  - {name: hold, who: {groups: [dev]}, commands: {verbs: [INSERT]}, hold: {approvers: ["local:USER"], timeout: 1m}}
"""


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway, and how to talk to it."""

    folder: Path
    port: int
    token: str

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "GATECAST_"))}
        return {**kept, "PYTHONPATH": str(ROOT), "PGPASSWORD": self.token, "PGCONNECT_TIMEOUT": "20"}

    def conninfo(self, token: str = "") -> str:
        return (
            f"host=localhost port={self.port} user=whoever dbname=shop sslmode=verify-full "
            f"sslrootcert={self.folder / 'tls.crt'}" + (f" password={token}" if token else "")
        )

    def psql(self, *statements: str, token: str = "") -> subprocess.CompletedProcess[str]:
        wanted = [part for text in statements for part in ("-c", text)]
        return subprocess.run(
            ["psql", "-XAtq", self.conninfo(token), *wanted],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def verify(self) -> subprocess.CompletedProcess[str]:
        """gatecast verify, once the session that just ended is sealed and in the node's log: a second or two."""
        deadline = time.monotonic() + 20
        while (done := self.gatecast("verify")).returncode == 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        return done

    def gatecast(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "proxy", *arguments],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def gateway(tmp_path: Path, postgres15: PostgresServer) -> Iterator[Running]:
    import getpass

    self_signed(tmp_path, ["localhost", "127.0.0.1"])
    (tmp_path / "secret").write_text("CANARY-of-the-target\n")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "rules.yaml").write_text(RULES.replace("USER", getpass.getuser()))
    with postgres15.database("shop", "CREATE TABLE people AS SELECT 1 AS id, 'ana@example.com'::text AS email"):
        (tmp_path / "gatecast.yaml").write_text(
            "state: state\n"
            "listeners: [{name: pg, protocol: postgres, address: '127.0.0.1:0', tls: {cert: tls.crt, key: tls.key}}]\n"
            f"targets: [{{name: shop, host: {postgres15.socket_folder}, port: {postgres15.port}, database: shop,"
            " credential: {user: postgres, password_file: secret}}]\n"
            "limits: {drain_seconds: 0}\n"
            "rules_file: rules.yaml\n"
        )
        token = token_issue(tmp_path / "state" / "gatecast.db", "ana@example.com", groups=["dev"])["token"]
        with (tmp_path / "log").open("w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "proxy", "serve", "--log-json"],
                cwd=tmp_path,
                env=Running(tmp_path, 0, "").environment(),
                stderr=log,
            )
            try:
                yield Running(tmp_path, _port(child, tmp_path / "log"), token)
            finally:
                child.terminate()
                assert child.wait(timeout=30) == 0, (tmp_path / "log").read_text()


def _port(child: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for the line that says where it listens, or for the end of the process."""
    while child.poll() is None:
        for line in log.read_text().splitlines():
            if '"listening"' in line:
                return int(json.loads(line)["address"].rpartition(":")[2])
        try:
            child.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    pytest.fail(f"gatecast serve ended: {log.read_text()}")


def test_psql_is_allowed_masked_and_denied(gateway: Running) -> None:
    done = gateway.psql("SELECT * FROM people", "DELETE FROM people", "SELECT count(*) FROM people")
    assert done.stdout.splitlines() == ["1|[redacted]", "1"]
    assert "default-deny" in done.stderr
    assert gateway.psql("SELECT 1", token="gct_wrong").returncode == 2
    listed = json.loads(gateway.gatecast("sessions", "list", "--json").stdout)
    assert [row["status"] for row in listed] == ["closed"]
    shown = json.loads(gateway.gatecast("sessions", "show", listed[0]["sid"], "--json").stdout)
    # Opening the session comes first: CONNECT, and the settings of the start-up packet as SETs.
    texts = [command["text"] for command in shown["commands"]]
    assert texts[0] == "connect to shop/shop"
    assert [text for text in texts[1:] if not text.startswith("SET ")] == [
        "SELECT * FROM people",
        "DELETE FROM people",
        "SELECT count(*) FROM people",
    ]
    verified = gateway.verify()
    assert (verified.returncode, verified.stdout.splitlines()[-1][:16]) == (0, "verified: 1 tape")
    assert "SELECT * FROM people" in gateway.gatecast("replay", listed[0]["sid"], "--speed", "64").stdout
    for path in [gateway.folder / "log", *(gateway.folder / "state").rglob("*.gct")]:
        data = path.read_bytes()
        assert b"CANARY" not in data
        assert gateway.token.encode() not in data


def test_a_held_statement_waits_for_a_human(gateway: Running) -> None:
    with subprocess.Popen(
        ["psql", "-XAtq", gateway.conninfo(), "-c", "INSERT INTO people VALUES (2, 'bob')"],
        env=gateway.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as psql:
        assert psql.stderr is not None
        said = psql.stderr.readline()
        assert 'held by rule "hold"' in said
        (row,) = json.loads(gateway.gatecast("approvals", "list", "--json").stdout)
        assert row["id"] in said
        decided = gateway.gatecast("approvals", "approve", row["id"], "--json")
        assert json.loads(decided.stdout)["state"] == "approved", decided.stderr
        assert psql.wait(timeout=30) == 0
    assert gateway.psql("SELECT count(*) FROM people").stdout == "2\n"
