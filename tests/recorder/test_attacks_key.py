"""Attacks by somebody who has the seal key and the tapes, but not what others keep: witness, anchor, a copied log."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from recorder.anchor import DirectoryStore
from recorder.format import BlockType, decode_header
from recorder.nodelog import Head, LogEntry, Sealed
from recorder.seal import SealKey
from recorder.verify import verify
from tests.recorder.nodelogs import KEYS, WALL_NS, entries_of, house
from tests.recorder.tapes import KEY
from tests.recorder.test_attacks_directory import check, logged, reasons
from tests.recorder.test_tape_verify import gap, no_close, remake
from tests.recorder.test_verify_directory import entries, rewrite


@pytest.fixture
def tapes(tmp_path: Path) -> Path:
    return tmp_path / "tapes"


def without(found: list[LogEntry], sid: str, *kinds: type) -> list[LogEntry]:
    return [entry for entry in found if not (isinstance(entry, kinds) and getattr(entry, "sid", "") == sid)]


def lose(path: Path) -> None:
    """Make a gap of what somebody did, as if a crash had lost it."""
    change, body = gap(listed=True)
    path.write_bytes(remake(path.read_bytes(), change, body, seal_type=BlockType.CRASHSEAL))


def test_an_invented_gap(tapes: Path) -> None:
    """The chain holds over a gap, and so do all heads that the log has: the SEAL is what tells."""
    paths, log = house(tapes)
    good = paths[0].read_bytes()
    lose(paths[0])
    assert verify(paths[0], KEYS).exit_code == 2
    assert "not what the node's log saw sealed" in reasons(check(tapes))
    rewrite(log, without(entries(log), paths[0].name[:26], Sealed))
    assert check(tapes).exit_code == 2  # of a session that never ended it cannot be told, and never verifies
    paths[0].write_bytes(good)


def test_an_invented_crash_while_the_log_has_a_head_beyond(tapes: Path) -> None:
    paths, log = house(tapes)
    sid = paths[0].name[:26]
    rewrite(log, without(entries(log), sid, Sealed))

    def cut(blocks: list[dict[str, Any]]) -> None:
        del blocks[2:-1]
        blocks[-1].update(seq=2, first_record=blocks[1]["first_record"] + blocks[1]["n_records"])
        blocks[-1]["t0_ns"] = blocks[1]["t0_ns"]

    def body(seal: dict[str, Any]) -> None:
        count = blocks_end(paths[0])
        seal.update(status="crashed", commands=None, gaps=[], records=count[0], t_last=count[1], reason="a power cut")

    paths[0].write_bytes(remake(paths[0].read_bytes(), cut, body, seal_type=BlockType.CRASHSEAL))
    assert verify(paths[0], KEYS).exit_code == 2, verify(paths[0], KEYS)
    report = check(tapes)
    assert report.exit_code == 1 and "that the node's log saw" in reasons(report)


def blocks_end(path: Path) -> tuple[int, int]:
    """How many records the first two blocks have, and when the second begins."""
    from tests.recorder.test_tape_verify import blocks_of

    second = blocks_of(path.read_bytes())[1][0]
    return second.next_record, second.t0_ns


def test_a_header_that_forgets_its_log(tapes: Path) -> None:
    """Sealed anew without the key ``log``: the log knows the header that it saw."""
    paths, log = logged(tapes)
    said = dict(decode_header(paths[0].read_bytes()).map_)
    assert said.pop("log") == log.origin
    paths[0].write_bytes(remake(paths[0].read_bytes(), header=said))
    assert verify(paths[0], KEYS).exit_code == 0
    assert "not the tape that the node's log saw begin" in reasons(check(tapes))


def test_everything_made_anew_as_if_there_had_never_been_a_log(tapes: Path, tmp_path: Path) -> None:
    """All that is on the disk says so; the anchor does not."""
    paths, log = logged(tapes)
    anchors = tmp_path / "anchors"
    DirectoryStore(anchors).put(log.checkpoint(), WALL_NS)
    paths[1].unlink()
    for path in (paths[0], paths[2]):
        said = dict(decode_header(path.read_bytes()).map_)
        del said["log"]
        path.write_bytes(remake(path.read_bytes(), header=said))
    shutil.rmtree(tapes / "log")
    assert check(tapes).exit_code == 0
    assert "there is no node's log" in check(tapes).statement()
    assert check(tapes, strict=True).exit_code == 2
    report = check(tapes, anchor=anchors)
    assert report.exit_code == 1 and "was anchored, but is not here" in reasons(report)


def test_another_person_in_the_header(tapes: Path) -> None:
    paths, log = logged(tapes)
    said = dict(decode_header(paths[0].read_bytes()).map_)
    paths[0].write_bytes(remake(paths[0].read_bytes(), header={**said, "identity": {"subject": "leo@acme"}}))
    assert verify(paths[0], KEYS).exit_code == 0
    assert check(tapes).exit_code == 1
    found = without(entries(log), said["sid"], Head, Sealed)
    changed = [entry for entry in found if getattr(entry, "sid", "") != said["sid"]]
    rewrite(log, [*changed, *entries_of(paths[0])])
    assert check(tapes).exit_code == 0  # which is what anchors and witnesses are for


def test_the_end_is_cut_and_sealed_as_failed(tapes: Path) -> None:
    paths, _ = logged(tapes)

    def body(seal: dict[str, Any]) -> None:
        seal.update(status="failed", records=seal["records"] - 1)

    paths[0].write_bytes(remake(paths[0].read_bytes(), no_close, body))
    assert verify(paths[0], KEYS).exit_code == 1  # it has no CLOSE
    assert check(tapes).exit_code == 1


def test_a_key_that_signs_for_itself(tapes: Path) -> None:
    """A tape, log and public key that belong together, but are not the gateway's."""
    paths, log = logged(tapes)
    own = SealKey.generate()
    paths[0].write_bytes(remake(paths[0].read_bytes(), key=own))
    assert verify(paths[0], KEYS).exit_code == 3
    assert check(tapes).exit_code in (1, 3)
    rewrite(log, entries(log), own)
    report = check(tapes)
    assert report.exit_code == 3 and "signed by a key that was not given" in reasons(report)
    assert KEY.id != own.id
