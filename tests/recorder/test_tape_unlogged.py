"""Tapes that began and ended within one batch of a write-ahead log that a kill lost: the node's log hears of them."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from recorder.ledger import NodeLedger
from recorder.nodelog import NodeLog
from recorder.verify import Report, verify
from recorder.verify_tape import ALTERED, VERIFIED
from tests.recorder.nodelogs import node_log
from tests.recorder.tapes import KEY, recorder, small_tape

KEYS = KEY.public_keys()
NEVER_SECONDS = 3600.0  # the maintenance thread does nothing by itself


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What a kill leaves of two sessions of mode written, the second of which no log names."""
    tapes = tmp_path / "tapes"
    of = recorder(tapes, ledger=ledger(tapes))
    asyncio.run(small_tape(of, mode="durable"))
    of.close()
    of = recorder(tapes, ledger=ledger(tapes), tick_seconds=NEVER_SECONDS)
    asyncio.run(small_tape(of, mode="written"))
    shutil.copytree(tapes, tmp_path / "image")
    of.close()
    return tmp_path / "image"


def ledger(tapes: Path, node: str = "node-1") -> NodeLedger:
    return NodeLedger(node_log(tapes, node=node), "boot", "1.0")


def check(tapes: Path) -> Report:
    """Verify, an hour after everything was written."""
    return verify(tapes, KEYS, wall=lambda: time.time() + 3600)


def restarted(tapes: Path) -> list[str]:
    """Recover what is there; returns the sessions that were told of."""
    of = recorder(tapes, ledger=ledger(tapes))
    found = [one.sid for one in of.recover()]
    of.close()
    return found


def log_size(tapes: Path) -> int:
    log: NodeLog = node_log(tapes, node="node-1")
    return log.checkpoint().size


def test_a_whole_tape_that_no_log_names_is_told_of(image: Path) -> None:
    second = max(image.rglob("*.gct"))
    assert [tape.status for tape in check(image).tapes] == [VERIFIED, ALTERED]  # as if somebody had planted it
    data = second.read_bytes()
    assert restarted(image) == [second.name[:26]]
    assert [tape.status for tape in check(image).tapes] == [VERIFIED, VERIFIED]
    assert second.read_bytes() == data
    size = log_size(image)
    assert restarted(image) == []
    assert log_size(image) - size <= 2  # START and HEARTBEAT


def test_a_tape_that_names_another_log_is_not_told_of(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    of = recorder(other, ledger=ledger(other, "node-2"))
    path = asyncio.run(small_tape(of, mode="written"))
    of.close()
    shutil.copy(path, max(image.rglob("*.gct")).parent)
    assert path.name[:26] not in restarted(image)
    planted = [tape for tape in check(image).tapes if tape.sid == path.name[:26]]
    assert [tape.status for tape in planted] != [VERIFIED]
