"""Attacks on what verify DIR says, by an operator without the seal key: change, hide, excuse."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from recorder.format import Kind, decode_header
from recorder.ledger import NodeLedger
from recorder.nodelog import NodeLog
from recorder.reader import TapeReader
from recorder.tape import OUT
from recorder.verify import Report, verify
from tests.recorder.nodelogs import KEYS, house, node_log
from tests.recorder.tapes import command, open_tape, recorder, small_tape


def check(tapes: Path, **more: Any) -> Report:
    """Verify, an hour after everything was written."""
    return verify(tapes, KEYS, wall=lambda: time.time() + 3600, **more)


def reasons(report: Report) -> str:
    found = [tape.fault for tape in report.tapes] + [log.fault for log in report.logs]
    return "; ".join(f"{fault.status}: {fault.reason}" for fault in found if fault is not None)


def logged(tapes: Path, count: int = 3, segment_limit: int = 1 << 26) -> tuple[list[Path], NodeLog]:
    """Tapes that were made by a recorder with its log: their headers say so."""
    log = node_log(tapes)
    of = recorder(tapes, ledger=NodeLedger(log, "boot", "1.0"), segment_limit=segment_limit)
    try:
        paths = [asyncio.run(small_tape(of, mode="durable")) for _ in range(count)]
    finally:
        of.close()
    return paths, log


async def _long(of: Any) -> Path:
    tape = open_tape(of)
    first: Path = tape.path
    for i in range(5):
        command(tape, f"SELECT {i}")
        tape.append(OUT, Kind.WIRE, os.urandom(3000))
        await tape.written()
    await tape.close("closed")
    return first


def long_logged(tapes: Path) -> list[Path]:
    """The segments of one tape, made with a log."""
    of = recorder(tapes, ledger=NodeLedger(node_log(tapes), "boot", "1.0"), segment_limit=6000)
    try:
        first = asyncio.run(_long(of))
    finally:
        of.close()
    found = TapeReader(first).segments
    assert len(found) == 3
    return found


@pytest.fixture
def tapes(tmp_path: Path) -> Path:
    return tmp_path / "tapes"


# -- the log, taken away ----------------------------------------------------------------------------------------


def test_a_tape_names_its_log_in_its_header(tapes: Path) -> None:
    paths, log = logged(tapes, 1)
    assert decode_header(paths[0].read_bytes()).map_["log"] == log.origin
    report = check(tapes)
    assert (report.exit_code, report.tapes[0].log) == (0, log.origin), report


def test_a_tape_without_a_log_does_not_name_one(tapes: Path) -> None:
    of = recorder(tapes)
    path = asyncio.run(small_tape(of))
    of.close()
    assert "log" not in decode_header(path.read_bytes()).map_
    assert check(tapes).exit_code == 0


def test_a_log_that_was_deleted_with_a_session(tapes: Path) -> None:
    """Before, the tapes that were left verified, and nothing said that one was gone."""
    paths, log = logged(tapes)
    paths[1].unlink()
    shutil.rmtree(tapes / "log")
    report = check(tapes)
    assert report.exit_code == 2
    assert reasons(report).count(f"the log {log.origin} is not here: what is left out cannot be seen") == 2
    assert check(tapes, no_log=True).exit_code == 0
    assert verify(paths[0], KEYS).exit_code == 0  # a file alone needs none


def test_a_log_that_was_replaced_by_that_of_another_node(tapes: Path) -> None:
    _, log = logged(tapes)
    shutil.rmtree(log.directory)
    house(tapes, 0)  # an honest, empty log of the same node, but of another origin's key is caught elsewhere
    other = node_log(tapes, node="node-2")
    other.append([])
    report = check(tapes)
    assert report.exit_code == 1 and "did not see this session" in reasons(report)
    shutil.rmtree(log.directory)
    report = check(tapes, no_log=True)
    assert report.exit_code == 0
    assert f"the log {log.origin} is not here" in reasons(check(tapes))


def test_a_part_of_the_directory_is_not_the_whole(tapes: Path) -> None:
    paths, _ = logged(tapes)
    report = check(paths[0].parent)
    assert report.exit_code == 2 and "is not here" in reasons(report)
