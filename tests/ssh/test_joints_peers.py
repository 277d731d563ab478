"""Masks beside real programs: who waits for bytes without a line break gets them; what cannot be masked is refused."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import quote

import pytest

from tests.peers.ssh import SshServer, program
from tests.ssh.gateway import ALL_KINDS, GatewayProcess, ssh_gateway
from tests.ssh.running import Runner

pytestmark = pytest.mark.peer

RULES = """\
rules:
  - {name: all, who: {groups: [dev]}, commands: {kinds: KINDS, opaque: true}, allow: true}
  - {name: emails, mask: [{detectors: [email], action: redact}]}
"""
REFUSED = b'rule "emails" masks what this target gives out, and a copied file cannot be masked'


@pytest.fixture(scope="module")
def masking(sshd: SshServer) -> Iterator[GatewayProcess]:
    rules = RULES.replace("KINDS", ALL_KINDS)
    with (
        tempfile.TemporaryDirectory(prefix="gatecast-") as folder,
        ssh_gateway(Path(folder) / "gw", sshd, rules) as gateway,
    ):
        yield gateway


@pytest.fixture
def way(sshd: SshServer, masking: GatewayProcess) -> Iterator[Runner]:
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:
        near, far = Path(folder) / "near", Path(folder) / "far"
        near.mkdir(mode=0o700)
        far.mkdir()
        runner = Runner("gateway", sshd, masking, near, far)
        try:
            yield runner
        finally:
            runner.close()


def test_a_prompt_without_a_terminal_is_seen(way: Runner) -> None:
    script = "printf 'who? '; read name; echo $name; echo ana@example.com"
    with way.started(*way.argv(way.host, script)) as process, ThreadPoolExecutor(1) as pool:
        assert process.stdin is not None and process.stdout is not None
        assert pool.submit(os.read, process.stdout.fileno(), 100).result(20) == b"who? "
        out, _ = process.communicate(b"me\n", timeout=20)
    assert out.startswith(b"me\n") and b"ana@" not in out


def test_git_pushes_under_a_mask_and_does_not_fetch(way: Runner) -> None:
    git = program("git")
    there = way.remote / "app.git"
    here = way.folder / "app"
    way.run(git, "init", "-q", "--bare", there)
    way.run(git, "init", "-q", here)
    for words in (
        ("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-q", "--allow-empty", "-m", "one"),
        ("push", "-q", f"{way.host}:{there}", "HEAD:refs/heads/main"),
    ):
        done = way.run(git, *words, cwd=here, env={"GIT_SSH_COMMAND": way.shell}, timeout=30)
        assert done.returncode == 0, done.stderr
    fetch = way.run(git, "fetch", f"{way.host}:{there}", cwd=here, env={"GIT_SSH_COMMAND": way.shell})
    assert fetch.returncode and REFUSED in fetch.stderr


def test_files_go_in_under_a_mask_and_not_out(way: Runner) -> None:
    near, far = way.folder / "near", way.remote / "far"
    near.write_bytes(b"ana@example.com\n" * 1000)
    rsync = ("rsync", "-e", way.shell)
    for up in (
        lambda: way.scp(near, f"{way.host}:{far}"),
        lambda: way.scp("-O", near, f"{way.host}:{far}"),
        lambda: way.run(program(rsync[0]), *rsync[1:], near, f"{way.host}:{far}"),
        lambda: way.sftp(f"put {near} {far}", f"ls -l {far}"),
    ):
        done = up()
        assert done.returncode == 0, done.stderr
        assert far.read_bytes() == near.read_bytes()
        far.unlink()
    far.write_bytes(near.read_bytes())
    back = way.folder / "back"
    for down in (
        lambda: way.scp(f"{way.host}:{far}", back),
        lambda: way.scp("-O", f"{way.host}:{far}", back),
        lambda: way.run(program(rsync[0]), *rsync[1:], f"{way.host}:{far}", back),
        lambda: way.sftp(f"get {far} {back}"),
    ):
        done = down()
        assert done.returncode and REFUSED in done.stderr, done.stderr
        assert not back.exists() or not back.read_bytes()
    shown = way.ssh(f"cat {quote(str(far))}").stdout
    assert shown.count(b"\n") == 1000 and b"ana@" not in shown
