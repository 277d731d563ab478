"""Attacks on recovery: by whoever can write where a gateway keeps its tapes and its log, but has no key of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from recorder.disk import Disk
from recorder.errors import TapeError
from recorder.format import SUFFIX, decode_header, encode_header
from recorder.ledger import NodeLedger
from recorder.logentry import Sealed, decode_entry
from recorder.nodelog import NodeLog, NodeLogError
from recorder.recover import recover
from recorder.tape import Recorder
from recorder.ulid import new_ulid, ulid_bytes
from recorder.verify import Report, verify
from recorder.walformat import EntryKind, encode_entry_header, encode_open
from tests.recorder.nodelogs import KEYS, NODE, node_log
from tests.recorder.tapes import KEY, recorder, small_tape
from tests.recorder.test_tape_recovery import append_entry, blocks, segments, wal_files, write


def with_log(directory: Path, events: list[tuple[str, dict[str, Any]]] | None = None, **more: Any) -> Recorder:
    ledger = NodeLedger(node_log(directory), "boot", "1.0")

    def note(event: str, words: Any) -> None:
        if events is not None:
            events.append((event, dict(words)))

    return recorder(directory, ledger=ledger, on_event=note, **more)


def check(directory: Path) -> Report:
    return verify(directory, KEYS, wall=lambda: time.time() + 3600)


def reasons(report: Report) -> str:
    found = [tape.fault for tape in report.tapes] + [log.fault for log in report.logs]
    return "; ".join(f"{fault.status}: {fault.reason}" for fault in found if fault is not None)


def seals_of(log: NodeLog, sid: str) -> list[Sealed]:
    found = [decode_entry(raw) for raw in log.files.entries(log.checkpoint().size)]
    return [entry for entry in found if isinstance(entry, Sealed) and entry.sid == sid]


def finished(directory: Path) -> Path:
    """A closed tape that the log saw sealed."""
    of = with_log(directory)
    path = asyncio.run(small_tape(of, mode="durable"))
    of.close()
    assert check(directory).exit_code == 0
    return path


def killed(tmp_path: Path, **more: Any) -> Path:
    """What a kill leaves of a gateway with one open tape, of which the log has the opening."""

    async def run() -> None:
        of = with_log(tmp_path / "live", tick_seconds=3600, **more)
        tape = of.open(protocol="postgres", identity={"subject": "ana@acme"}, target="shop", mode="durable")
        await write(tape, 3)
        of.upkeep.tick()
        shutil.copytree(tmp_path / "live", tmp_path / "image")
        of.close()

    asyncio.run(run())
    return tmp_path / "image"


def restarted(directory: Path) -> list[tuple[str, dict[str, Any]]]:
    """Start a gateway's recorder on the directory, let it recover, and stop it; what it told."""
    events: list[tuple[str, dict[str, Any]]] = []
    of = with_log(directory, events)
    of.recover()
    of.start()
    of.close()
    return events


# -- made to look crashed -----------------------------------------------------------------------------------------


def test_a_finished_tape_that_is_to_look_crashed(tmp_path: Path) -> None:
    """The seal and the last commands are cut off, and the gateway is restarted: it sealed what was left, with its
    key, and told its log, which contradicted itself from then on, for ever, while the tape was not blamed."""
    path = finished(tmp_path)
    os.truncate(path, blocks(path)[2][1])
    events = restarted(tmp_path)
    assert [words["reason"] for event, words in events if event == "tape-contradicts-log"] == [
        "the log saw it sealed, as something else"
    ]
    report = check(tmp_path)
    assert report.exit_code == 1
    assert [log.status for log in report.logs] == ["verified"]
    assert report.tapes[0].status == "altered" and "node's log saw" in reasons(report)
    assert len(seals_of(node_log(tmp_path), path.name[:26])) == 1


def test_a_tape_that_was_replaced_before_a_restart(tmp_path: Path) -> None:
    """Another header under the same session id: another OPEN would have made the log contradict itself."""
    path = finished(tmp_path)
    said = dict(decode_header(path.read_bytes()).map_)
    path.write_bytes(encode_header({**said, "identity": {"subject": "leo@acme"}}))
    events = restarted(tmp_path)
    assert "it is not the tape that the log saw begin" in [words.get("reason") for _, words in events]
    report = check(tmp_path)
    assert [log.status for log in report.logs] == ["verified"]
    assert "not the tape that the node's log saw begin" in reasons(report)


def test_a_recovered_tape_that_is_recovered_again_with_other_content(tmp_path: Path) -> None:
    image = killed(tmp_path)
    restarted(image)
    assert check(image).exit_code == 2
    path = segments(image)[0]
    whole = path.read_bytes()
    os.truncate(path, blocks(path)[3][1])
    assert "tape-contradicts-log" in [event for event, _ in restarted(image)]
    report = check(image)
    assert report.exit_code == 1 and [log.status for log in report.logs] == ["verified"]
    path.write_bytes(whole)  # it was the evidence, and is again
    assert check(image).exit_code == 2


def test_recovery_twice_says_the_same_twice(tmp_path: Path) -> None:
    image = killed(tmp_path)
    shutil.copytree(image / "wal", tmp_path / "wal")
    restarted(image)
    shutil.rmtree(image / "wal")
    shutil.copytree(tmp_path / "wal", image / "wal")
    assert "tape-contradicts-log" not in [event for event, _ in restarted(image)]
    report = check(image)
    assert report.exit_code == 2 and [log.status for log in report.logs] == ["verified"]
    assert len({seal.root for seal in seals_of(node_log(image), segments(image)[0].name[:26])}) == 1


def test_a_kill_between_recovery_and_the_logs_next_line(tmp_path: Path) -> None:
    """The files of the write-ahead log went before the node's log knew: an honest tape looked like a planted one."""
    image = killed(tmp_path)

    class Killed(BaseException):
        pass

    class DiskThatDies(Disk):
        def remove(self, path: Path) -> None:
            raise Killed

    of = with_log(image, disk=DiskThatDies())
    with pytest.raises(Killed):
        of.recover()
    sid = segments(image)[0].name[:26]
    assert [seal.status for seal in seals_of(node_log(image), sid)] == ["crashed"]


def test_a_log_that_is_damaged_keeps_no_tape_from_its_end(tmp_path: Path) -> None:
    image = killed(tmp_path)
    (image / "log" / NODE / "checkpoint").write_bytes(b"x\n")
    of = with_log(image)
    assert [one.status for one in of.recover()] == ["crashed"]
    with pytest.raises(NodeLogError):
        node_log(image).checkpoint()


def test_a_shorter_crash_seal_in_the_place_of_the_longer(tmp_path: Path) -> None:
    """An earlier crash image, recovered elsewhere with the same key, put over the tape."""
    image = killed(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(image, other)
    log = wal_files(other)[0]
    log.write_bytes(bytes(64))
    short = segments(other)[0]
    os.truncate(short, blocks(short)[2][1])
    restarted(other)
    restarted(image)
    assert check(image).exit_code == 2
    shutil.copy(short, segments(image)[0])
    report = check(image)
    assert report.exit_code == 1 and "node's log saw" in reasons(report)


def test_a_continued_crash_seal_with_nothing_behind_it(tmp_path: Path) -> None:
    image = killed(tmp_path, segment_limit=600)
    restarted(image)
    found = segments(image)
    assert len(found) > 1 and check(image).exit_code == 2
    found[-1].unlink()
    report = check(image)
    assert report.exit_code == 1 and "is missing" in reasons(report)
    shutil.rmtree(image / "log")
    assert verify(image, KEYS, no_log=True).exit_code == 2


# -- what lies in the folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["I" * 26, "8" * 26, "Z" * 26, "U1JD8Z7Q000000000000000000", "7" * 26])
def test_a_stray_name_does_not_keep_the_gateway_from_starting(tmp_path: Path, name: str) -> None:
    path = finished(tmp_path)
    stray = path.with_name(f"{name}.000{SUFFIX}")
    stray.write_bytes(b"")
    restarted(tmp_path)
    assert path.exists()


def test_a_link_in_a_day_folder_is_not_written_through(tmp_path: Path) -> None:
    """Recovery puts a header back where a file has none: in whatever a link led to."""
    image = killed(tmp_path)
    victim = tmp_path / "victim"
    victim.write_bytes(b"do not touch")
    path = segments(image)[0]
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(TapeError):
        restarted(image)
    assert victim.read_bytes() == b"do not touch"
    path.unlink()
    path.symlink_to(tmp_path / "made")  # one that leads nowhere yet
    with pytest.raises(TapeError):
        restarted(image)
    assert not (tmp_path / "made").exists()
    path.unlink()
    assert [event for event, _ in restarted(image)] == ["tape-recovered"]  # nothing was lost by that


def test_links_in_the_logs_folder(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"do not touch")
    folder = tmp_path / "tapes" / "wal" / "0"
    folder.mkdir(parents=True)
    (folder / "lock").symlink_to(tmp_path / "lock")
    with pytest.raises(TapeError):
        recorder(tmp_path / "tapes").start()
    assert not (tmp_path / "lock").exists()
    with pytest.raises(OSError, match="symbolic links"):
        link = folder / "0.wal"
        link.symlink_to(victim)
        Disk().create_log(link)
    assert victim.read_bytes() == b"do not touch"


def test_pipes_in_every_folder_stop_nothing(tmp_path: Path) -> None:
    path = finished(tmp_path)
    for place in (path.parent / f"01JD8Z7Q000000000000000000.000{SUFFIX}", tmp_path / "wal" / "0" / "9.wal"):
        os.mkfifo(place)
    restarted(tmp_path)
    assert path.exists()


# -- what the write-ahead log says --------------------------------------------------------------------------------


def planted(image: Path, header: dict[str, Any], sid: bytes | None = None, segment: int | None = None) -> None:
    """Write a log with one OPEN, as somebody may who can write there."""
    folder = image / "wal" / "0"
    folder.mkdir(parents=True, exist_ok=True)
    body = encode_open(encode_header(header), None)
    number = header["segment"] if segment is None else segment
    sid = sid if sid is not None else ulid_bytes(header["sid"])
    head = encode_entry_header(int(EntryKind.OPEN), 0, number, 1, sid, body)
    (folder / "0.wal").write_bytes(head + body + bytes(64))


HEADER: dict[str, Any] = {
    "sid": "", "segment": 0, "prev": None, "first_record": 0, "track": "main", "node": NODE, "boot": "b",
    "wall0_ns": 0, "mono0_ns": 0, "protocol": "postgres", "target": "shop", "identity": {"subject": "ana"}, "run": "",
    "policy_rev": "", "mode": "durable", "more": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"sid": "../../../../etc/cron.d/x"}, {"sid": "/etc/passwd"}, {"sid": "x" * 300}, {"track": "../main"},
        {"track": ["main"]}, {"segment": -1}, {"segment": 2**40}, {"wall0_ns": 2**63 - 1}, {"wall0_ns": -(2**63)},
    ],
)  # fmt: skip
def test_an_opening_that_leads_elsewhere(tmp_path: Path, changes: dict[str, Any]) -> None:
    sid = new_ulid(time.time_ns())
    planted(tmp_path / "tapes", HEADER | {"sid": sid} | changes, ulid_bytes(sid), 0)
    found = recover(tmp_path / "tapes", tmp_path / "tapes" / "wal" / "0", KEY, disk=Disk())
    assert [one.status for one in found.segments] in (["refused"], ["crashed"])
    made = {path for path in tmp_path.rglob("*") if path.suffix == SUFFIX}
    assert all(path.parent.parent.parent.parent == tmp_path / "tapes" for path in made)
    assert not made or "wall0_ns" in changes


def test_done_does_not_hide_what_the_log_saw(tmp_path: Path) -> None:
    """A DONE that nobody wrote: recovery passes the segment over; its HEADs are in the node's log all the same."""

    async def run() -> None:
        of = with_log(tmp_path / "live", tick_seconds=3600)
        tape = of.open(protocol="postgres", identity={"subject": "ana@acme"}, target="shop", mode="durable")
        await write(tape, 3)
        of.upkeep.tick()  # asks for the heads
        await write(tape, 1)
        of.upkeep.tick()  # and tells them, now that they are durable
        shutil.copytree(tmp_path / "live", tmp_path / "image")
        of.close()

    asyncio.run(run())
    image = tmp_path / "image"
    path = segments(image)[0]
    append_entry(image, path, EntryKind.DONE)
    os.truncate(path, blocks(path)[1][1])
    restarted(image)
    report = check(image)
    assert report.exit_code == 1 and "which the node's log saw" in reasons(report)


def test_a_session_that_never_was(tmp_path: Path) -> None:
    """What is planted in the log comes out as a crashed tape: it never verifies."""
    finished(tmp_path)
    sid = new_ulid(time.time_ns())
    planted(tmp_path, HEADER | {"sid": sid, "wall0_ns": time.time_ns()})
    restarted(tmp_path)
    report = check(tmp_path)
    assert report.exit_code == 2
    assert {tape.status for tape in report.tapes if tape.sid == sid} == {"incomplete"}


def test_nobody_else_can_read_or_write_what_a_recorder_makes(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        path = finished(tmp_path / "tapes")
    finally:
        os.umask(mask)
    loose = [place for place in (tmp_path / "tapes").rglob("*") if place.lstat().st_mode & 0o077]
    assert not loose and path.exists()
