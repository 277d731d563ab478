"""Attacks on what verify DIR says, by an operator without the seal key: change, hide, excuse."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from proxy.cli import main
from recorder.cipher import Recipient
from recorder.errors import KeyFileError
from recorder.format import Kind, decode_header
from recorder.ledger import NodeLedger
from recorder.nodelog import NodeLog, Start, Tombstone
from recorder.reader import TapeReader
from recorder.tape import OUT
from recorder.verify import Report, verify
from recorder.verify_arguments import load_elsewhere
from tests.recorder.nodelogs import KEYS, WALL_NS, house, node_log
from tests.recorder.tapes import KEY, command, open_tape, recorder, small_tape


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


def encrypted(tapes: Path) -> Path:
    """A tape that only an auditor can read, made with a log."""
    of = recorder(tapes, ledger=NodeLedger(node_log(tapes), "boot", "1.0"))

    async def scenario() -> Path:
        tape = open_tape(of, "durable", recipients=[Recipient.of(X25519PrivateKey.generate().public_key())])
        command(tape, "SELECT 1")
        await tape.commit()
        await tape.close("closed")
        return tape.path

    try:
        return asyncio.run(scenario())
    finally:
        of.close()


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


# -- files that are none, names that are none ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["01JD8Z7Q000000000000000000.000.gct", "strange.gct"])
def test_a_pipe_in_the_place_of_a_tape_does_not_stop_verify(tapes: Path, name: str) -> None:
    paths, _ = logged(tapes, 1)
    os.mkfifo(paths[0].with_name(name))
    report = check(tapes)
    assert report.exit_code == 3 and "not a regular file" in reasons(report)
    assert [tape.status for tape in report.tapes].count("verified") == 1


def test_a_pipe_in_the_place_of_a_keys_file(tapes: Path, tmp_path: Path) -> None:
    path = encrypted(tapes)
    keys = next(path.parent.glob("*.keys"))
    keys.unlink()
    os.mkfifo(keys)
    report = check(tapes)
    assert report.exit_code == 3 and "not a regular file" in reasons(report)


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint.cosigned", "tile/entries/000.p"])
def test_a_pipe_in_the_node_log(tapes: Path, name: str) -> None:
    _, log = logged(tapes, 1)
    place = log.directory / name
    if place.is_dir():
        place = next(place.iterdir())
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    report = check(tapes)
    assert report.exit_code == 3 and "not a regular file" in reasons(report)


def test_links_that_lead_nowhere_in_circles_or_to_a_device(tapes: Path) -> None:
    paths, _ = logged(tapes, 1)
    day = paths[0].parent
    (day / "01JD8Z7Q000000000000000000.000.gct").symlink_to("/nowhere")
    (day / "01JD8Z7Q000000000000000001.000.gct").symlink_to("01JD8Z7Q000000000000000001.000.gct")
    (day / "01JD8Z7Q000000000000000002.000.gct").symlink_to("/dev/zero")
    (day / "again").symlink_to("..")
    report = check(tapes)
    assert report.exit_code == 3
    assert [tape.status for tape in report.tapes].count("verified") == 1
    assert "a link to a directory, which is not followed" in reasons(report)
    assert reasons(report).count("cannot be read") == 3


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode 000 on one day's folder, and the tapes in it seemed not to exist."""
    paths, _ = logged(tapes, 1)
    hidden = paths[0].parent.with_name("99")
    hidden.mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == hidden:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    report = check(tapes)
    assert report.exit_code == 3 and "cannot be listed: Permission denied" in reasons(report)


@pytest.mark.parametrize("name", [b"\xff\xfe.gct", b"a\nverified  all.gct", b"\x1b]0;owned\x07.gct", b" .gct"])
def test_names_of_any_bytes(tapes: Path, tmp_path: Path, name: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    paths, _ = logged(tapes, 1)
    key = tmp_path / "seal.pub"
    key.write_bytes(KEY.public_pem())
    Path(os.fsdecode(os.fsencode(paths[0].parent) + b"/" + name)).write_bytes(b"no tape")
    assert main(["verify", str(tapes), "--key", str(key)]) == 3
    out = capfd.readouterr().out
    assert "\x1b" not in out and "\nverified  all" not in out
    assert sum(line.startswith("verified  ") for line in out.splitlines()) == 2  # the tape and its log
    assert main(["verify", str(tapes), "--key", str(key), "--json"]) == 3


def test_a_node_of_any_name_in_the_log(tapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logged(tapes, 1)
    key = tmp_path / "seal.pub"
    key.write_bytes(KEY.public_pem())
    Path(os.fsdecode(os.fsencode(tapes) + b"/log/\xff\n\x1b[2Jverified")).mkdir()
    assert main(["verify", str(tapes), "--key", str(key)]) == 1
    assert "\x1b" not in capfd.readouterr().out


def test_folders_deeper_than_any_recursion(tapes: Path) -> None:
    paths, _ = logged(tapes, 1)
    deep = tapes / "/".join("d" * 1500)
    parts = deep.relative_to(tapes).parts
    here = tapes
    for part in parts:
        here = here / part
        here.mkdir()
    (here / paths[0].name).write_bytes(b"x")
    report = check(tapes)
    subprocess.run(["rm", "-rf", tapes / "d"], check=True)  # shutil would recurse, when the test's folder goes
    assert report.exit_code == 3 and len(report.tapes) == 2


# -- tapes in other places, twice, in parts -----------------------------------------------------------------------


def test_other_layouts_hide_nothing(tapes: Path) -> None:
    paths, _ = logged(tapes)
    paths[0].parent.rename(tapes / "not a day")
    paths = [tapes / "not a day" / path.name for path in paths]
    (tapes / "wal" / "x").mkdir(parents=True)
    paths[0].rename(tapes / "wal" / "x" / paths[0].name)
    paths[1].rename(tapes / "log" / paths[1].name)
    assert check(tapes).exit_code == 0
    moved = tapes / "log" / paths[1].name
    moved.write_bytes(moved.read_bytes().replace(b"SELECT 1", b"SELECT 2"))
    assert check(tapes).exit_code == 1


def test_a_session_that_was_put_under_another_name(tapes: Path) -> None:
    paths, _ = logged(tapes)
    paths[0].rename(paths[0].with_suffix(".bak"))
    assert f"session {paths[0].name[:26]} (main track) is missing" in reasons(check(tapes))
    paths[0].with_suffix(".bak").rename(paths[0].with_name("other.gct"))
    assert check(tapes).exit_code == 0  # it is here, and it is what it was
    paths[1].replace(paths[2])
    assert check(tapes).exit_code == 1


def test_one_session_over_another_in_a_second_folder(tapes: Path) -> None:
    paths, _ = logged(tapes)
    other = tapes / "copy"
    other.mkdir()
    shutil.copy(paths[0], other)
    assert check(tapes).exit_code == 0
    copy = other / paths[0].name
    data = copy.read_bytes()
    copy.write_bytes(data[:-16])  # the first one that is looked at
    assert check(tapes).exit_code == 2
    copy.write_bytes(data[:60] + b"x" + data[61:])
    assert check(tapes).exit_code == 1


def test_what_is_left_of_a_session_in_the_vault_is_judged_all_the_same(tapes: Path) -> None:
    """Segment 0 has left for the vault; that excused whatever was done to the rest."""
    files = long_logged(tapes)
    sid = files[0].name[:26]
    files[0].unlink()
    report = check(tapes, elsewhere=lambda one: one == sid)
    assert report.exit_code == 2 and "it was elsewhere" in reasons(report)
    assert (report.tapes[0].segments, report.tapes[0].gone) == (2, True)
    data = files[1].read_bytes()
    at = len(data) // 2
    files[1].write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    report = check(tapes, elsewhere=lambda one: one == sid)
    assert report.exit_code == 1 and "it was elsewhere" not in reasons(report)
    files[1].unlink()
    shutil.copy(files[2], files[1])
    report = check(tapes, elsewhere=lambda one: one == sid)
    assert report.exit_code == 1 and "not that of its header" in reasons(report)


@pytest.mark.parametrize("gone", [1, 2])
def test_a_middle_or_an_end_does_not_leave_for_the_vault(tapes: Path, gone: int) -> None:
    files = long_logged(tapes)
    files[gone].unlink()
    report = check(tapes, elsewhere=lambda one: True)
    assert report.exit_code == 1 and "missing" in reasons(report)
    files[0].unlink()  # now the middle one may have left, too; but not the last
    assert check(tapes, elsewhere=lambda one: True).exit_code == (2 if gone == 1 else 1)


def test_a_middle_that_is_gone_from_what_is_left(tapes: Path) -> None:
    log = node_log(tapes)
    of = recorder(tapes, ledger=NodeLedger(log, "boot", "1.0"), segment_limit=3000)
    path = asyncio.run(_long(of))
    of.close()
    files = TapeReader(path).segments
    assert len(files) == 6
    files[0].unlink()
    assert check(tapes, elsewhere=lambda one: True).exit_code == 2
    files[2].unlink()
    report = check(tapes, elsewhere=lambda one: True)
    assert report.exit_code == 1 and "segment 2 is missing" in reasons(report)


def test_the_content_is_destroyed_and_nobody_said_so(tapes: Path) -> None:
    """Who may only delete files takes the .keys file: the seals hold, and the content is gone for good."""
    path = encrypted(tapes)
    log = node_log(tapes)
    assert check(tapes).exit_code == 0
    next(path.parent.glob("*.keys")).unlink()
    report = check(tapes)
    assert report.exit_code == 2 and "its .keys file is gone, and the log has no erasure of it" in reasons(report)
    log.append([Tombstone(path.name[:26], "erased: on request", "ana and leo", WALL_NS)])
    assert check(tapes).exit_code == 0


def test_the_keys_of_another_session(tapes: Path) -> None:
    first, second = encrypted(tapes), encrypted(tapes)
    ours = first.parent / f"{first.name[:26]}.keys"
    ours.write_bytes((second.parent / f"{second.name[:26]}.keys").read_bytes())
    report = check(tapes)
    assert report.exit_code == 1 and "not the one that the header names" in reasons(report)


# -- excuses ------------------------------------------------------------------------------------------------------


def rolled_back(tapes: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A log from a backup, and the tape that was made since; and the first one."""
    _, log = logged(tapes, 1)
    shutil.copytree(log.directory, tmp_path / "backup")
    of = recorder(tapes, ledger=NodeLedger(node_log(tapes), "boot", "1.0"))
    late = asyncio.run(small_tape(of, mode="durable"))
    of.close()
    shutil.rmtree(log.directory)
    shutil.move(tmp_path / "backup", log.directory)
    return late, log.directory


def test_a_log_from_a_backup(tapes: Path, tmp_path: Path) -> None:
    late, _ = rolled_back(tapes, tmp_path)
    assert "did not see this session" in reasons(check(tapes))
    assert check(tapes).exit_code == 1
    late.unlink()  # what only an anchor or a witness tells
    assert check(tapes).exit_code == 0


@pytest.mark.parametrize("years", [0, 10])
def test_a_file_that_is_always_new(tapes: Path, tmp_path: Path, years: int) -> None:
    """A fresh or future time of the file made the log seem to be only a little behind, for ever."""
    late, _ = rolled_back(tapes, tmp_path)
    stamp = time.time() + 3600 + years * 365 * 86400
    os.utime(late, (stamp, stamp))
    report = check(tapes)
    assert report.exit_code == 1, report
    assert "did not see this session" in reasons(report)


def test_nothing_at_all_is_not_verified(tapes: Path) -> None:
    """The first checkpoint of a node is that of the empty log: signed, and in every backup."""
    log = node_log(tapes)
    log.append([])
    assert check(tapes).exit_code == 3
    log.append([Start("boot", "1.0")])
    assert check(tapes).exit_code == 0


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"null", b"{}"])
def test_cosigned_lines_that_are_none(tapes: Path, line: bytes) -> None:
    _, log = logged(tapes, 1)
    folder = log.directory / "cosigned"
    folder.mkdir()
    (folder / "2026-11-21.jsonl").write_bytes(line + b"\n")
    report = check(tapes)
    assert report.exit_code == 1 or any("tore" in note for note in report.notes), report


def test_a_session_is_not_accounted_for_by_a_list_of_anything(tapes: Path, tmp_path: Path) -> None:
    paths, _ = logged(tapes)
    paths[0].unlink()
    listed = tmp_path / "elsewhere"
    listed.write_text(f"{paths[0].name[:26].lower()}\n")
    with pytest.raises(KeyFileError):
        load_elsewhere(listed)
    listed.write_text(f"{paths[1].name[:26]}\n")
    assert check(tapes, elsewhere=load_elsewhere(listed)).exit_code == 1
