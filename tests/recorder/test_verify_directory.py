"""Attacks on a directory of tapes and its node's log: each is noticed, and says what is missing or changed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import main
from recorder.anchor import DirectoryStore
from recorder.checkpoint import log_key, sign_checkpoint
from recorder.format import BlockType, Kind, decode_header
from recorder.ledger import NodeLedger
from recorder.logentry import decode_entry
from recorder.nodelog import Head, Heartbeat, LogEntry, NodeLog, Open, Sealed, Tombstone, log_directory
from recorder.reader import TapeReader
from recorder.seal import SealKey
from recorder.tape import Recorder
from recorder.verify import FRESH_SECONDS, Report, verify
from recorder.verify_report import Fault
from recorder.witness import Cosigner, Witness, WitnessClient
from tests.recorder.nodelogs import (
    KEYS,
    NODE,
    ORIGIN,
    WALL_NS,
    StandInWitness,
    beats,
    chains,
    entries_of,
    house,
    node_log,
    opened,
    serving,
)
from tests.recorder.tapes import KEY, command, open_tape, recorder, small_tape
from tests.recorder.test_tape_verify import blocks_of, gap, no_close, remake


@pytest.fixture
def tapes(tmp_path: Path) -> Path:
    return tmp_path / "tapes"


@pytest.fixture
def anchors(tmp_path: Path) -> Path:
    return tmp_path / "anchors"


def check(tapes: Path, **more: Any) -> Report:
    """Verify, an hour after everything was written."""
    return verify(tapes, KEYS, wall=lambda: time.time() + 3600, **more)


def reason(report: Report, status: str) -> str:
    """The first fault of this weight, of the tapes, then of the logs."""
    assert report.status == status, report
    return next(fault.reason for fault in faults(report) if fault.status == status)


def faults(report: Report) -> list[Fault]:
    found = [tape.fault for tape in report.tapes] + [log.fault for log in report.logs]
    return [fault for fault in found if fault is not None]


def entries(log: NodeLog) -> list[LogEntry]:
    found = [decode_entry(raw) for raw in log.files.entries(log.checkpoint().size)]
    assert None not in found
    return [entry for entry in found if entry is not None]


def rewrite(log: NodeLog, changed: list[LogEntry], key: SealKey = KEY) -> NodeLog:
    """Make the log anew: what only the holder of the key can do."""
    shutil.rmtree(log.directory)
    again = NodeLog(log.directory, key, log.origin)
    again.append(changed)
    return again


def cut_and_seal(path: Path) -> None:
    """Take CLOSE off and seal what is left, with the key."""

    def body(seal: dict[str, Any]) -> None:
        seal["records"] -= 1
        seal["status"] = "continued"
        seal["t_last"] = times[-2]

    times = [record.t_ns for record in TapeReader(path).records()]
    path.write_bytes(remake(path.read_bytes(), no_close, body))


def test_a_whole_directory_says_what_was_proved(tapes: Path, anchors: Path) -> None:
    _, log = house(tapes)
    DirectoryStore(anchors).put(log.checkpoint(), WALL_NS)
    log.append(beats(4, 1))
    report = check(tapes, anchor=anchors, strict=True)
    assert report.exit_code == 0, report
    size = log.checkpoint().size
    assert report.statement() == (
        f"3 tapes, 9 commands; log of node node-1: {size} entries, every session from 2026-11-18T11:06:40Z "
        f"to 2026-11-18T11:10:40Z is here, anchored up to entry {size - 1} at 2026-11-18T11:06:40Z"
    )


def test_without_a_log_the_statement_promises_less(tapes: Path) -> None:
    _, log = house(tapes)
    shutil.rmtree(log.directory.parent)
    report = check(tapes)
    assert report.exit_code == 0
    assert "there is no node's log" in report.statement()
    assert reason(check(tapes, strict=True), "incomplete") == "there is no node's log here"


def test_the_recorder_keeps_the_log_that_verify_asks_for(tapes: Path) -> None:
    """No model of the writer: the recorder itself, its thread and a ledger."""
    log = node_log(tapes)
    of = recorder(tapes, ledger=NodeLedger(log, "boot", "1.0"), segment_limit=6000)

    async def scenario() -> list[Path]:
        paths = [await small_tape(of, mode="durable"), await small_tape(of, mode="written")]
        tape = open_tape(of, "strict")
        for i in range(5):
            command(tape, f"SELECT {i}")
            tape.append(2, Kind.WIRE, os.urandom(3000))
            await tape.commit()
        await tape.close("closed")
        return [*paths, tape.path]

    paths = asyncio.run(scenario())
    of.close()
    report = check(tapes)
    assert (report.exit_code, len(report.tapes)) == (0, 3), report
    kinds = {type(entry) for entry in entries(log)}
    assert {Open, Sealed, Heartbeat} <= kinds
    for file in paths[2].parent.glob(paths[2].name[:26] + "*"):
        file.unlink()
    assert "is missing" in reason(check(tapes), "altered")


# -- sessions -------------------------------------------------------------------------------------------------


def test_a_deleted_session_is_named(tapes: Path) -> None:
    paths, _ = house(tapes)
    paths[1].unlink()
    report = check(tapes)
    sid = paths[1].name[:26]
    assert f"session {sid} (main track) is missing" in reason(report, "altered")
    assert (report.logs[0].missing, report.logs[0].missing_count) == ([sid], 1)
    assert "1 missing" in report.statement()


def test_a_session_that_was_removed_by_policy_or_is_elsewhere(tapes: Path) -> None:
    paths, log = house(tapes)
    sids = [path.name[:26] for path in paths]
    paths[0].unlink()
    paths[1].unlink()
    log.append([Tombstone(sids[0], "400 days", "ana@acme", WALL_NS)])
    assert sids[1] in reason(check(tapes), "altered")
    report = check(tapes, elsewhere=lambda sid: sid == sids[1])
    assert report.exit_code == 0
    assert (report.logs[0].removed, report.logs[0].elsewhere, report.logs[0].missing_count) == (1, 1, 0)
    assert "1 removed by policy, 1 elsewhere, not looked at" in report.statement()


def test_a_deleted_original_track(tapes: Path) -> None:
    paths, log = house(tapes)
    sid = paths[0].name[:26]
    log.append([Open(sid, "original", bytes(32))])
    assert f"session {sid} (original track) is missing" in reason(check(tapes), "altered")


def test_a_live_session_is_incomplete_not_missing(tapes: Path) -> None:
    _, log = house(tapes)
    of = recorder(tapes)

    async def scenario() -> None:
        tape = open_tape(of)
        command(tape, "SELECT 1")
        await tape.commit()
        log.append([opened(tape.path)])
        report = check(tapes)
        assert "not sealed" in reason(report, "incomplete")
        assert report.logs[0].missing_count == 0
        later = open_tape(of)  # the log is a second behind
        command(later, "SELECT 1")
        await later.commit()
        assert check(tapes).status == "incomplete"
        await later.close("closed")
        await tape.close("closed")

    asyncio.run(scenario())
    of.close()


def test_a_tape_that_the_log_does_not_know(tapes: Path) -> None:
    """Planted, with the key; but what was finished just now may not be in the log yet."""
    paths, log = house(tapes)
    rewrite(log, [entry for entry in entries(log) if getattr(entry, "sid", "") != paths[1].name[:26]])
    assert "did not see this session" in reason(check(tapes), "altered")
    report = verify(tapes, KEYS, wall=lambda: time.time() + FRESH_SECONDS - 30)
    assert "did not see this session yet" in reason(report, "incomplete")


def test_a_tape_of_a_node_whose_log_is_gone(tapes: Path) -> None:
    _, log = house(tapes)
    node_log(tapes, node="node-2").append(beats(0, 1))
    assert check(tapes).exit_code == 0
    shutil.rmtree(log.directory)
    assert "the log of its node (node-1) is not here" in reason(check(tapes), "incomplete")


def test_a_sealed_tape_whose_seal_the_log_has_not(tapes: Path) -> None:
    _, log = house(tapes)
    rewrite(log, [entry for entry in entries(log) if not isinstance(entry, Sealed)])
    assert reason(check(tapes), "incomplete") == "the node's log has no seal of segment 0"


# -- tapes against the log ------------------------------------------------------------------------------------


def test_a_tape_replaced_by_an_older_version_of_itself(tapes: Path) -> None:
    paths, log = house(tapes)
    data = paths[0].read_bytes()
    blocks = [block for block, _ in blocks_of(data)]
    paths[0].write_bytes(data[: blocks[2].end])  # as it was while the session ran
    assert "which the node's log saw" in reason(check(tapes), "altered")
    paths[0].write_bytes(data[: blocks[-2].end])  # only the seal is gone
    assert "its seal is gone" in reason(check(tapes), "altered")
    rewrite(log, [entry for entry in entries(log) if not isinstance(entry, Sealed)])  # it was still open, say
    paths[0].write_bytes(data[: blocks[1].end])
    found = reason(check(tapes), "incomplete")
    assert "not sealed; block" in found and "is not here" in found


def test_a_tape_cut_and_sealed_again_with_the_key(tapes: Path) -> None:
    """First by the HEADs alone, then by the SEAL alone."""
    paths, log = house(tapes)
    all_of = entries(log)
    data = paths[0].read_bytes()
    cut_and_seal(paths[0])
    assert "not the block that the node's log saw" in reason(check(tapes), "altered")
    rewrite(log, [entry for entry in all_of if not isinstance(entry, Head)])
    assert "not what the node's log saw sealed" in reason(check(tapes), "altered")
    paths[0].write_bytes(data)
    assert check(tapes).exit_code == 0


def test_one_record_changed_with_the_key(tapes: Path) -> None:
    paths, log = house(tapes)

    def later(blocks: list[dict[str, Any]]) -> None:
        blocks[-1]["t0_ns"] += 1

    rewrite(log, [entry for entry in entries(log) if not isinstance(entry, Head)])
    paths[2].write_bytes(remake(paths[2].read_bytes(), later))
    assert "not what the node's log saw sealed" in reason(check(tapes), "altered")


def test_another_header_with_the_key(tapes: Path) -> None:
    paths, _ = house(tapes)
    header = dict(decode_header(paths[0].read_bytes()).map_)
    paths[0].write_bytes(remake(paths[0].read_bytes(), header={**header, "target": "elsewhere"}))
    assert "not the tape that the node's log saw begin" in reason(check(tapes), "altered")


def test_data_turned_into_a_gap_with_the_key(tapes: Path) -> None:
    """The chain stays what it was, so the HEADs hold; the SEAL does not."""
    paths, _ = house(tapes)
    change, body = gap(listed=True)
    before = chains(paths[0])
    paths[0].write_bytes(remake(paths[0].read_bytes(), change, body, seal_type=BlockType.CRASHSEAL))
    assert chains(paths[0])[1:] == before[2:]  # all but the one that is a GAP now
    assert "not what the node's log saw sealed" in reason(check(tapes), "altered")


async def long_tape(of: Recorder) -> Path:
    """A tape of three segments, where the limit is 6,000 bytes; returns the last."""
    tape = open_tape(of)
    for i in range(5):
        command(tape, f"SELECT {i}")
        tape.append(2, Kind.WIRE, os.urandom(3000))
        await tape.written()
    await tape.close("closed")
    return tape.path


def test_a_last_segment_that_is_cut_off(tapes: Path) -> None:
    of = recorder(tapes, segment_limit=6000)
    path = asyncio.run(long_tape(of))
    of.close()
    node_log(tapes).append([*beats(0, 1), *entries_of(path)])
    assert check(tapes).exit_code == 0
    assert check(tapes).tapes[0].segments == 3
    path.unlink()
    assert "segment 2, which the node's log saw" in reason(check(tapes), "altered")


# -- the log itself -------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_an_altered_entry_is_named(tapes: Path) -> None:
    _, log = house(tapes, count=1)
    size = log.checkpoint().size
    bundle = log.directory / "tile" / "entries" / "000.p" / str(size)
    good = bundle.read_bytes()
    at = good.index(b"boot") + 1  # of entry 0, START
    flip(bundle, at)
    assert reason(check(tapes), "altered") == "entry 0 is not what its tile has"
    bundle.write_bytes(good)
    assert check(tapes).exit_code == 0


def test_any_byte_of_the_log(tapes: Path) -> None:
    _, log = house(tapes, count=1)
    log.append(beats(9, 300))
    files = [path for path in sorted(log.directory.rglob("*")) if path.is_file() and path.name != "lock"]
    names = {str(path.relative_to(log.directory)) for path in files if ".p/" not in str(path)}
    assert {"checkpoint", "tile/0/000", "tile/entries/000"} <= names
    wrong = 0
    for path in files:
        size = path.stat().st_size
        for at in range(0, size, max(1, size // 60)):
            good = path.read_bytes()
            flip(path, at)
            report = check(tapes)
            assert report.exit_code == (1 if report.status == "altered" else 3), (path, at, report)
            wrong += report.exit_code == 3
            path.write_bytes(good)
    assert check(tapes).exit_code == 0
    assert wrong < 25  # only the name of a key in the checkpoint leaves open whose it is


def test_a_log_written_anew_by_somebody_without_the_key(tapes: Path, tmp_path: Path) -> None:
    """Entries and tiles that agree, but are not those that the checkpoint signs: of the same size, and shorter."""
    paths, log = house(tapes)
    sid = paths[1].name[:26]
    paths[1].unlink()
    left = [entry for entry in entries(log) if getattr(entry, "sid", "") != sid]
    missing = log.checkpoint().size - len(left)
    for changed in ([*left, *beats(4, missing)], left):
        other = node_log(tmp_path / str(len(changed)), SealKey.generate())
        other.append(changed)
        shutil.rmtree(log.directory / "tile")
        shutil.copytree(other.directory / "tile", log.directory / "tile")
        report = check(tapes)
        assert report.exit_code == 1
        root = "the checkpoint's root is not that of the entries"
        assert (reason(report, "altered") == root) == (len(changed) > len(left)), report


def test_files_of_the_log_that_are_cut_or_gone(tapes: Path) -> None:
    _, log = house(tapes, count=1)
    log.append(beats(9, 300))
    head = log.checkpoint()
    for name in ("checkpoint", "tile/0/000", "tile/entries/000", f"tile/entries/001.p/{head.size - 256}"):
        path = log.directory / name
        good = path.read_bytes()
        path.write_bytes(good[:-1])
        assert check(tapes).status == "altered", name
        path.unlink()
        assert check(tapes).status == "altered", name
        path.write_bytes(good)
    assert check(tapes).exit_code == 0


def test_a_log_signed_by_a_key_that_was_not_given(tapes: Path) -> None:
    _, log = house(tapes)
    rewrite(log, entries(log), SealKey.generate())
    assert "signed by a key that was not given" in reason(check(tapes), "unknown")


def test_the_log_of_another_node(tapes: Path) -> None:
    _, log = house(tapes)
    node_log(tapes, node="node-2").append(beats(0, 3))
    shutil.rmtree(log.directory)
    log_directory(tapes, "node-2").rename(log.directory)
    assert "the log of another node" in reason(check(tapes), "altered")


def contradict(kind: type, **values: Any) -> Callable[[list[LogEntry]], list[LogEntry]]:
    def change(found: list[LogEntry]) -> list[LogEntry]:
        entry: Any = next(entry for entry in found if isinstance(entry, kind))
        return [*found, dataclasses.replace(entry, **values)]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (contradict(Open, h0=bytes(32)), "another OPEN of session"),
        (contradict(Sealed, root=bytes(32)), "another SEAL of session"),
        (contradict(Sealed, status="failed"), "another SEAL of session"),
        (contradict(Head, chain=bytes(32)), "not the block that the node's log saw"),
        (contradict(Head, segment=7), "segment 7, which the node's log saw"),
        (contradict(Head, seq=10_000), "block 10000, which the node's log saw"),
        (contradict(Head, sid="01JD8Z7Q000000000000000000"), "has no OPEN before it"),
        (lambda found: [entry for entry in found if not isinstance(entry, Open)], "has no OPEN before it"),
    ],
)
def test_a_log_that_contradicts_itself_or_the_tapes(
    tapes: Path, change: Callable[[list[LogEntry]], list[LogEntry]], words: str
) -> None:
    _, log = house(tapes, count=1)
    rewrite(log, change(entries(log)))
    report = check(tapes)
    assert report.exit_code == 1
    assert any(words in fault.reason for fault in faults(report)), report


def test_what_recovery_says_again_is_no_fault(tapes: Path) -> None:
    paths, log = house(tapes)
    log.append(entries_of(paths[1]))
    assert check(tapes).exit_code == 0


def test_heartbeats_that_are_missing_are_a_note(tapes: Path) -> None:
    _, log = house(tapes)
    log.append(beats(60, 1))
    report = check(tapes)
    assert report.exit_code == 0
    assert report.logs[0].notes == ["no heartbeat from 2026-11-18T11:09:40Z to 2026-11-18T12:06:40Z"]
    assert "no heartbeat" in reason(check(tapes, strict=True), "incomplete")


def test_a_key_is_valid_by_its_position_in_the_log(tapes: Path) -> None:
    """A tape that a retired key seals later is a fault; what it sealed before is none."""
    paths, log = house(tapes)
    new = SealKey.generate()
    keys = {**KEYS, **new.public_keys()}
    log.rotate(new)
    assert verify(tapes, keys).exit_code == 0
    of = recorder(tapes)
    path = asyncio.run(small_tape(of))
    of.close()
    log.append(entries_of(path))
    report = verify(tapes, keys)
    assert "which was not valid then" in reason(report, "altered")
    path.write_bytes(remake(path.read_bytes(), key=new))
    log = rewrite_rotated(log, paths, path, new)
    assert verify(tapes, keys).exit_code == 0
    early = paths[0]
    early.write_bytes(remake(early.read_bytes(), key=new))  # a seal that is older than its key
    assert "which was not valid then" in reason(verify(tapes, keys), "altered")


def rewrite_rotated(log: NodeLog, old: list[Path], late: Path, new: SealKey) -> NodeLog:
    shutil.rmtree(log.directory)
    again = node_log(log.directory.parents[1])
    for path in old:
        again.append(entries_of(path))
    again.rotate(new)
    again.append(entries_of(late))
    return again


def test_a_checkpoint_by_a_key_that_was_retired(tapes: Path) -> None:
    _, log = house(tapes)
    new = SealKey.generate()
    log.rotate(new)
    head = log.checkpoint()
    (log.directory / "checkpoint").write_bytes(sign_checkpoint(ORIGIN, head.size, head.root, [KEY]).encode())
    assert "a key that was retired" in reason(verify(tapes, {**KEYS, **new.public_keys()}), "altered")


# -- a forger with the key ------------------------------------------------------------------------------------


def test_a_forger_who_rewrites_the_log_is_caught_by_the_anchor(tapes: Path, anchors: Path) -> None:
    paths, log = house(tapes)
    DirectoryStore(anchors).put(log.checkpoint(), WALL_NS)
    sid = paths[1].name[:26]
    paths[1].unlink()
    all_of = entries(log)
    rewrite(log, [entry for entry in all_of if getattr(entry, "sid", "") != sid])
    assert check(tapes).exit_code == 0  # nobody else can know: this is what anchors are for
    assert "the log is cut" in reason(check(tapes, anchor=anchors), "altered")
    log = node_log(tapes)
    log.append(beats(9, 50))
    assert "the log was rewritten" in reason(check(tapes, anchor=anchors), "altered")


def test_a_log_that_was_rolled_back_with_its_tapes(tapes: Path, anchors: Path) -> None:
    _, log = house(tapes, count=2)
    before = (log.directory / "checkpoint").read_bytes()
    of = recorder(tapes)
    late = asyncio.run(small_tape(of))
    of.close()
    log.append(entries_of(late))
    DirectoryStore(anchors).put(log.checkpoint(), WALL_NS)
    late.unlink()
    (log.directory / "checkpoint").write_bytes(before)  # signed, and true once
    assert check(tapes).exit_code == 0
    assert "the log is cut" in reason(check(tapes, anchor=anchors), "altered")
    shutil.rmtree(log.directory.parent)
    assert "was anchored, but is not here" in reason(check(tapes, anchor=anchors), "altered")


def test_an_anchor_that_says_nothing_of_the_log(tapes: Path, anchors: Path) -> None:
    house(tapes)
    anchors.mkdir()
    assert "the anchor has no checkpoint" in reason(check(tapes, anchor=anchors), "incomplete")
    other = node_log(anchors / "x", SealKey.generate())
    DirectoryStore(anchors).put(other.append(beats(0, 1)), WALL_NS)  # by a key that was not given
    report = check(tapes, anchor=anchors)
    assert "the anchor has no checkpoint" in reason(report, "incomplete")
    assert any("keys that were not given" in note for note in report.notes)


def test_an_anchor_that_was_altered(tapes: Path, anchors: Path) -> None:
    _, log = house(tapes)
    DirectoryStore(anchors).put(log.checkpoint(), WALL_NS)
    file = next(anchors.rglob("*.jsonl"))
    data = file.read_bytes()
    size = str(log.checkpoint().size).encode()
    file.write_bytes(data.replace(b"\\n" + size + b"\\n", b"\\n" + size + b"0\\n"))
    assert "does not hold" in reason(check(tapes, anchor=anchors), "altered")
    file.write_bytes(data + data[:50])  # torn by a crash
    report = check(tapes, anchor=anchors)
    assert report.exit_code == 0
    assert any("a crash tore" in note for note in report.notes)


def cosign(log: NodeLog, witness: StandInWitness) -> None:
    with serving(witness) as url:
        client = WitnessClient(Witness(witness.key, url), wall=lambda: float(witness.seconds))
        events: list[tuple[str, str]] = []
        cosigner = Cosigner(log, [client], lambda event, text: events.append((event, text)), wall_ns=lambda: WALL_NS)
        assert cosigner.tick() is not None, events


def test_a_witness_has_to_have_cosigned(tapes: Path) -> None:
    _, log = house(tapes)
    witness, other = StandInWitness(ORIGIN, KEYS), StandInWitness(ORIGIN, KEYS, "witness.example/w2")
    assert "cosigned by 0 of the witnesses" in reason(check(tapes, witnesses=[witness.key]), "incomplete")
    cosign(log, witness)
    size = log.checkpoint().size
    report = check(tapes, witnesses=[witness.key])
    assert report.exit_code == 0
    assert f"cosigned by witness.example/w1 up to entry {size} at 2026-11-18T11:06:40Z" in report.statement()
    assert check(tapes, witnesses=[witness.key, other.key]).exit_code == 0  # one of them is enough
    assert check(tapes, witnesses=[witness.key, other.key], threshold=2).exit_code == 2
    assert check(tapes, witnesses=[other.key]).exit_code == 2
    flip(log.directory / "checkpoint.cosigned", 30)
    assert check(tapes, witnesses=[witness.key]).exit_code == 1


def test_a_forger_who_rewrites_the_log_is_caught_by_the_witness(tapes: Path) -> None:
    paths, log = house(tapes)
    witness = StandInWitness(ORIGIN, KEYS)
    cosign(log, witness)
    kept = (log.directory / "checkpoint.cosigned").read_bytes()
    sid = paths[1].name[:26]
    paths[1].unlink()
    log = rewrite(log, [entry for entry in entries(log) if getattr(entry, "sid", "") != sid] + beats(9, 40))
    assert check(tapes).exit_code == 0
    assert "cosigned by 0" in reason(check(tapes, witnesses=[witness.key]), "incomplete")  # he removed it, too
    (log.directory / "checkpoint.cosigned").write_bytes(kept)  # or somebody has a copy
    assert "the log was rewritten" in reason(check(tapes, witnesses=[witness.key]), "altered")


def test_a_cosignature_that_is_old_is_noted(tapes: Path) -> None:
    _, log = house(tapes)
    witness = StandInWitness(ORIGIN, KEYS)
    cosign(log, witness)
    log.append(beats(4, 60))
    report = check(tapes, witnesses=[witness.key])
    assert report.exit_code == 0
    assert any("cosigned last at" in note for note in report.logs[0].notes)
    assert check(tapes, witnesses=[witness.key], strict=True).exit_code == 2


def test_the_vkey_names_the_log() -> None:
    assert log_key(ORIGIN, KEYS[KEY.id]).vkey.startswith(f"{ORIGIN}+")
    assert NODE in ORIGIN


# -- the command line -----------------------------------------------------------------------------------------


def test_the_command_line(tapes: Path, anchors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, log = house(tapes)
    key, vkeys, sids = tmp_path / "seal.pub", tmp_path / "witnesses", tmp_path / "sids"
    key.write_bytes(KEY.public_pem())
    DirectoryStore(anchors).put(log.checkpoint(), WALL_NS)
    witness = StandInWitness(ORIGIN, KEYS)
    cosign(log, witness)
    vkeys.write_text(f"# the security team's\n{witness.key.vkey}\n")
    sids.write_text(f"{paths[0].name[:26]} purged on Monday\n")
    common = ["verify", str(tapes), "--key", str(key)]

    def run(*more: str) -> tuple[int, str]:
        code = main([*common, *more])
        return code, capsys.readouterr().out

    code, out = run("--anchor", str(anchors), "--witness", str(vkeys), "--strict")
    assert code == 0
    assert out.splitlines()[-1].startswith("verified: 3 tapes, 9 commands; log of node node-1: ")
    assert "cosigned by witness.example/w1" in out
    paths[0].unlink()
    code, out = run()
    assert code == 1
    assert f"missing: session {paths[0].name[:26]}" in out
    assert run("--elsewhere", str(sids))[0] == 0
    code, out = run("--json")
    found = json.loads(out)
    assert (code, found["exit_code"], found["logs"][0]["missing_count"]) == (1, 1, 1)
    assert found["logs"][0]["fault"]["reason"] in found["statement"]


def test_arguments_that_cannot_be_used(tapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    house(tapes, count=1)
    key, other = tmp_path / "seal.pub", tmp_path / "other"
    key.write_bytes(KEY.public_pem())
    other.write_text("nonsense\n")
    for more in (
        ["--anchor", str(tmp_path / "nowhere")],
        ["--witness", str(other)],
        ["--elsewhere", str(other)],
        ["--witness", str(tmp_path / "nowhere")],
    ):
        assert main(["verify", str(tapes), "--key", str(key), *more]) == 3  # nothing was judged
        said = capsys.readouterr()
        assert said.out == "" and len(said.err.splitlines()) == 1, said
    witness = StandInWitness(ORIGIN, KEYS)
    other.write_text(witness.key.vkey)
    for count in ("0", "2"):
        assert main(["verify", str(tapes), "--key", str(key), "--witness", str(other), "--threshold", count]) == 3
    other.write_bytes(b"SQLite format 3\0")
    assert main(["verify", str(tapes), "--key", str(key), "--elsewhere", str(other)]) == 3


def test_a_tape_of_which_a_segment_was_purged_or_removed(tapes: Path) -> None:
    paths, log = house(tapes, count=1)
    sid = paths[0].name[:26]
    paths[0].rename(paths[0].with_name(f"{sid}.001.gct"))
    assert check(tapes).status == "altered"  # its name is not that of its header
    of = recorder(tapes, segment_limit=6000)
    path = asyncio.run(long_tape(of))
    of.close()
    log = rewrite(log, entries_of(path))
    paths[0].with_name(f"{sid}.001.gct").unlink()
    assert check(tapes).exit_code == 0
    late = path.name[:26]
    path.with_name(f"{late}.000.gct").unlink()
    assert "segment 0 is missing" in reason(check(tapes), "altered")
    assert "it was elsewhere" in reason(check(tapes, elsewhere=lambda one: one == late), "incomplete")
    log.append([Tombstone(late, "erased: a mistake", "ana", WALL_NS)])  # of the keys only
    assert check(tapes).status == "altered"
    log.append([Tombstone(late, "400 days", "ana", WALL_NS)])
    assert "it was removed by policy (400 days by ana" in reason(check(tapes), "incomplete")


def test_an_erased_session_has_to_be_there(tapes: Path) -> None:
    paths, log = house(tapes, count=1)
    log.append([Tombstone(paths[0].name[:26], "erased: on request", "ana", WALL_NS)])
    assert check(tapes).exit_code == 0
    paths[0].unlink()
    assert "is missing" in reason(check(tapes), "altered")
