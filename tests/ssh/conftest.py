"""Fixtures of the SSH scenarios: one sshd for the whole run, one gateway a module, a fresh way there for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.peers.ssh import SshServer, ssh_server
from tests.ssh.gateway import GatewayProcess, ssh_gateway
from tests.ssh.running import Runner, Via


@pytest.fixture(scope="session")
def sshd() -> Iterator[SshServer]:
    """The system's OpenSSH server; see tests/peers/ssh.py."""
    with ssh_server() as server:
        yield server


@pytest.fixture(scope="module")
def box_gateway(sshd: SshServer) -> Iterator[GatewayProcess]:
    """A gateway in front of it whose one rule allows everything to ana's group."""
    with tempfile.TemporaryDirectory(prefix="gatecast-") as folder, ssh_gateway(Path(folder) / "gw", sshd) as gateway:
        yield gateway


@pytest.fixture
def run(request: pytest.FixtureRequest, sshd: SshServer) -> Iterator[Runner]:
    """The way that the test's parameter names: direct, gateway or jump."""
    via = cast("Via", request.param)
    gateway = None if via == "direct" else request.getfixturevalue("box_gateway")
    # Not tmp_path: a Unix socket's path has 108 characters at most.
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:
        near, far = Path(folder) / "near", Path(folder) / "far"
        near.mkdir(mode=0o700)
        far.mkdir()
        runner = Runner(via, sshd, gateway, near, far)
        try:
            yield runner
        finally:
            runner.close()
