"""pgjdbc, prepared statements, batches, cursors and COPY included: the same lines through the gateway as directly."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.peers.postgres import PeerMissing, PostgresServer, need
from tests.postgres.own_process import ROOT, environment, own_gateway

pytestmark = pytest.mark.peer

SOURCE = ROOT / "tests" / "peers" / "java" / "PostgresClient.java"
DRIVER = Path("/usr/share/java/postgresql.jar")
MODES = ("extended", "extendedForPrepared", "simple")
RUN_SECONDS = 60.0
# What was tried and has to have worked, lest two failures look like agreement.
EXPECTED = (
    "committed: id int4 (1)(2)(3)(11)",
    "batch: 3000",
    "fetch size: 761995",
    "copy out: 20000 true",
    "large object: 10 300000",
    "heard: 1newstoldtrue",
    "own pid: ?column? bool (t)",
    "after cancel: one int4 (1)",
    "terminated: true",
    "end: true",
)


def lines(classes: Path, mode: str, port: int) -> list[str]:
    done = subprocess.run(
        ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", f"{classes}:{DRIVER}", "PostgresClient", mode],
        env=environment(port, "jdbc_peers"), capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("javac") is None or not DRIVER.exists():
        need(PeerMissing("a JDK and pgjdbc are missing: apt-get install default-jdk-headless libpostgresql-jdbc-java"))
    folder = tmp_path_factory.mktemp("classes")
    subprocess.run(["javac", "-d", str(folder), "-cp", str(DRIVER), str(SOURCE)], check=True, timeout=RUN_SECONDS)
    return folder


def test_pgjdbc_sees_the_same(postgres15: PostgresServer, classes: Path) -> None:
    with postgres15.database("jdbc_peers"), own_gateway(postgres15) as port:
        for mode in MODES:
            direct = lines(classes, mode, postgres15.port)
            assert lines(classes, mode, port) == direct, mode
            assert set(EXPECTED) <= set(direct), mode
            assert mode == "simple" or "large: 2000000 true" in direct
