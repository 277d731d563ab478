"""The demo's machine: an SSH server in a process of its own (box_server.py), of a library that is there anyway.

It lets in one key, the one that the gateway's configuration names, on loopback alone; it runs command lines with
/bin/sh in its folder, and gives that folder out by SFTP. Whoever runs the demo is who its commands run as; the demo's
rules leave little of that to the agent.

Left out: shells and terminals. The target is ``exec_only``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import proxy
from proxy.demo.shop import DemoError

LOGIN: Final = "deploy"
REPORT: Final = "reports/november.csv"
STOP_SECONDS: Final = 5.0
_REPORTS: Final = {
    REPORT: "day,orders,total\n2026-11-19,3,558.50\n2026-11-20,2,54.90\n2026-11-21,1,59.00\n",
    "reports/october.csv": "day,orders,total\n2026-10-30,1,189.50\n2026-10-31,4,212.00\n",
}


@dataclass(frozen=True, slots=True)
class Box:
    """The running machine. key: the private key that it lets in, host_key: its public one; files: its folder."""

    port: int
    host_key: str
    key: str
    files: Path


@contextlib.contextmanager
def open_box() -> Iterator[Box]:
    """Run the machine. Raises DemoError."""
    folder = Path(tempfile.mkdtemp(prefix="gatecast-demo-box-"))  # mode 0700
    try:
        for name, text in _REPORTS.items():
            (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "files" / name).write_text(text)
        key = make_key(folder / "key")
        process = subprocess.Popen(  # noqa: S603  # ourselves
            [sys.executable, "-m", "proxy.demo.box_server", str(folder)],
            env={**os.environ, "PYTHONPATH": str(Path(proxy.__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the demo
        )
        try:
            assert process.stdout is not None
            port, _, host_key = process.stdout.readline().strip().partition(" ")
            if not host_key:
                raise DemoError("the demo's SSH server did not start")
            yield Box(int(port), host_key, key, folder / "files")
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_key(path: Path) -> str:
    """Make an Ed25519 key in OpenSSH's form, with path.pub beside it; returns the private one."""
    import asyncssh

    made = asyncssh.generate_private_key("ssh-ed25519", comment=path.name)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(made.export_private_key())
    path.with_name(path.name + ".pub").write_bytes(made.export_public_key())
    return path.read_text()


def _stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)
    process.stdout.close()
