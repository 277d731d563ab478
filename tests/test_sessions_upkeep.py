"""The index in a running gateway: a child process each round, its troubles said once, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from proxy.app import Gateway
from proxy.sessions import upkeep
from proxy.sessions.upkeep import IndexUpkeep
from recorder.index import Index
from tests.recorder.tapes import recorder, small_tape


class Rounds:
    """A sleep that lets so many rounds pass and then ends the task."""

    def __init__(self, count: int) -> None:
        self.left = count

    async def __call__(self, seconds: float) -> None:
        assert seconds == upkeep.ROUND_SECONDS
        if not self.left:
            raise asyncio.CancelledError
        self.left -= 1


def test_a_round_updates_the_index(tmp_path: Path) -> None:
    of = recorder(tmp_path / "tapes")
    asyncio.run(small_tape(of))
    of.close()
    assert asyncio.run(IndexUpkeep(of.directory).round()) == ""
    with Index(of.directory) as index:
        assert index.counts() == (1, 3)
        assert index.complete


def test_no_directory_is_no_problem(tmp_path: Path) -> None:
    assert asyncio.run(IndexUpkeep(tmp_path / "none").round()) == ""
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("raise SystemExit(3)", "the process ended with 3"),
        ("print('no json')", "the process ended with 0"),
        ('print(\'{"problem": "the disk", "repaired": ""}\')', "the disk"),
    ],
)
def test_a_problem_is_said_once(tmp_path: Path, script: str, problem: str) -> None:
    made = IndexUpkeep(tmp_path, Rounds(3), (sys.executable, "-c", script))
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        asyncio.run(made.run())
    assert [(entry["event"], entry["problem"]) for entry in logs] == [("index-not-updated", problem)]


def test_a_program_that_is_not_there_ends_nothing(tmp_path: Path) -> None:
    made = IndexUpkeep(tmp_path, Rounds(2), (str(tmp_path / "nothing"),))
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        asyncio.run(made.run())
    assert len(logs) == 1
    assert "does not start" in logs[0]["problem"]


def test_the_child_ends_with_the_gateway(tmp_path: Path) -> None:
    """Cancelled in the middle of a round, it kills its child and waits for it."""
    script = "import os, sys, time\nopen(sys.argv[1] + '/pid', 'w').write(str(os.getpid()) + '.')\ntime.sleep(60)"
    made = IndexUpkeep(tmp_path, Rounds(1), (sys.executable, "-c", script))

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(made.run())
            pid = tmp_path / "pid"
            while not (pid.exists() and pid.read_text().endswith(".")):
                await asyncio.sleep(0.01)
            task.cancel()
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()[:-1]), 0)

    asyncio.run(scenario())


def test_the_child_has_no_secrets_and_steps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_SECRET", "CANARY")
    script = "import json, os; print(json.dumps({'problem': ' '.join(os.environ), 'repaired': ''}))"
    said = asyncio.run(IndexUpkeep(tmp_path, command=(sys.executable, "-c", script)).round())
    assert set(said.split()) <= {*upkeep._ENVIRONMENT, "LC_CTYPE"}


def test_the_child_says_how_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os_nice = upkeep.os.nice
    asked: list[int] = []
    upkeep.os.nice = asked.append  # type: ignore[assignment]  # this process must not step back
    try:
        (tmp_path / "index.db").write_bytes(b"no index" * 1000)
        assert upkeep.main([str(tmp_path)]) == 0
        assert "damaged" in json.loads(capsys.readouterr().out)["repaired"]
        assert upkeep.main([str(tmp_path / "none")]) == 0
        assert "cannot be written" in json.loads(capsys.readouterr().out)["problem"]
    finally:
        upkeep.os.nice = os_nice
    assert asked == [upkeep.NICENESS] * 2


def test_a_gateway_has_it_if_the_configuration_wants_it() -> None:
    from proxy.sections import RecorderSection
    from proxy.workers.supervisor import Supervisor
    from proxy.workers.worker import Worker

    assert RecorderSection().index
    assert "_indexing" in Gateway._background.__code__.co_names
    assert "_indexing" in Supervisor._background.__code__.co_names
    assert "_indexing" not in Worker._background.__code__.co_names
