"""Scenarios with much data, once for each path and not for each kubectl."""

from __future__ import annotations

import hashlib
import threading
import time

from tests.kubernetes.running import PATIENCE_SECONDS, Runner, lines_of, scenario
from tests.ssh.running import noise, sha256

BULK: int = 300_000_000
COPIED: int = 100_000_000


@scenario()
def bulk_output(run: Runner) -> None:
    """300 MB of output arrive whole."""
    wanted = hashlib.sha256()
    block = bytes(1 << 20)
    for _ in range(BULK >> 20):
        wanted.update(block)
    wanted.update(bytes(BULK & ((1 << 20) - 1)))
    found = hashlib.sha256()
    argv = run.argv("exec", "web-0", "-c", "main", "--", "head", "-c", str(BULK), "/dev/zero")
    with run.started(*argv) as process:
        assert process.stdout is not None
        while piece := process.stdout.read(1 << 20):
            found.update(piece)
        assert process.wait(PATIENCE_SECONDS) == 0
    assert found.hexdigest() == wanted.hexdigest()


@scenario()
def bulk_copies(run: Runner) -> None:
    """100 MB of noise go there and come back."""
    far = run.scratch()
    file = noise(run.folder / "file", COPIED)
    run.ok("cp", file, f"web-0:{far}", "-c", "main", timeout=100)
    try:
        run.ok("cp", f"web-0:{far}", "back", "-c", "main", timeout=100)
        assert sha256(run.folder / "back") == sha256(file)
    finally:
        run.sh(f"rm {far}")


def many_execs(run: Runner) -> None:
    """200 exec streams at the same time, in pods that are local processes.

    In one container they come to a stop, with and without a gateway: 60 take 9 s, 200 took 200 s and failed.
    """
    failed: list[object] = []

    def one(number: int) -> None:
        done = run.sh(f"cat; sleep 5; echo {number}", "-i", input=b"x" * 10_000, timeout=300)
        if done.stdout != b"x" * 10_000 + b"%d\n" % number:
            failed.append(done)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, (len(failed), failed[:2])


@scenario(nightly=True)
def long_logs(run: Runner) -> None:
    """logs -f for three minutes, of which nothing is missing."""
    with run.started(*run.argv("logs", "-f", "web-0", "-c", "main", "--tail=1")) as process:
        lines = lines_of(process.stdout, lambda line: True)
        first = int(lines[-1].split()[1])
        deadline = time.monotonic() + 180
        number = first
        while time.monotonic() < deadline:
            number += 1
            assert lines_of(process.stdout, lambda line: True) == [f"line {number}\n"]
        assert number > first + 500
