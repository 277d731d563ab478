"""The index kept up to date: new, live, torn, replaced, removed and encrypted tapes; kills, two updaters, damage."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recorder import index_collect, index_days, index_update
from recorder.cipher import AuditorKey, Recipient
from recorder.index import Index, IndexDamaged, IndexUnavailable
from recorder.index_days import inodes_of
from recorder.index_schema import DAMAGED_NAME, INDEX_NAME, NEW_NAME, update_lock, use_lock
from recorder.reader import TapeReader
from recorder.tape import GATE, OUT, USER, Kind, Recorder
from tests.recorder.tapes import command, open_tape, pack, recorder, small_tape

ROOT = Path(__file__).parents[2]
CONTENT = "SELECT s.sid, c.n, c.number, c.t_ns, c.at, c.verb, c.kind, c.verdict, c.rule, c.by, c.row_count, c.code, "
CONTENT += "c.error, c.objects, c.cut, c.text FROM commands AS c JOIN sessions AS s ON s.id = c.session ORDER BY 1, 2"


def content(directory: Path, query: str = CONTENT) -> list[tuple[Any, ...]]:
    with Index(directory) as index:
        return index.connection.execute(query).fetchall()


def session(directory: Path, columns: str = "status, commands, done, error, damage") -> tuple[Any, ...]:
    (row,) = content(directory, f"SELECT {columns} FROM sessions")
    return tuple(row)


def check(directory: Path) -> None:
    """The full-text index is that of the commands: FTS5's own check, and each command is found by its text."""
    with Index(directory) as index:
        index.connection.execute("INSERT INTO texts(texts, rank) VALUES('integrity-check', 1)")
        assert index.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def anew(directory: Path) -> list[tuple[Any, ...]]:
    """What an index has that is made of the tapes as they are."""
    copy = directory.with_name("anew")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("index*", "wal"))
    assert Index.update(copy).complete
    return content(copy)


@pytest.fixture
def of(tmp_path: Path) -> Iterator[Recorder]:
    made = recorder(tmp_path / "tapes")
    yield made
    made.close()


def test_a_session_and_its_commands(of: Recorder) -> None:
    async def scenario() -> None:
        tape = open_tape(of, identity={"subject": "ana", "agents": ["bot"], "groups": ["dev"]}, run="run-7")
        tape.append(USER, Kind.INTENT, pack({"text": "why"}))
        n = command(tape, "SELECT 1", objects=["public.a", "public.b"])
        error = {"code": "42P01", "message": "no such table"}
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "", "count": 2, "error": error}))
        held = command(tape, "DELETE FROM a", verb="DELETE", verdict=None)
        tape.append(GATE, Kind.APPROVAL, pack({"command": held, "id": "ap", "state": "pending", "rule": "r2"}))
        tape.append(GATE, Kind.APPROVAL, pack({"command": held, "id": "ap", "state": "denied", "by": "mia"}))
        tape.append(GATE, Kind.VERDICT, pack({"command": held, "verdict": "deny", "rule": "r2", "approval": "ap"}))
        await tape.close("failed", "the target died")

    asyncio.run(scenario())
    done = Index.update(of.directory)
    assert (done.tapes, done.commands, done.complete, done.busy) == (1, 2, True, False)
    columns = "status, reason, subject, agents, groups, run, intent, commands, allowed, denied, held, errors, done"
    assert session(of.directory, columns) == (
        "failed", "the target died", "ana", '["bot"]', '["dev"]', "run-7", "why", 2, 1, 1, 1, 1, 1,
    )  # fmt: skip
    first, second = content(of.directory)
    assert first[2] == 1
    assert first[5:] == (
        "SELECT", "read", "allow", "r1", "", 2, "42P01", "no such table", '["public.a", "public.b"]', 0, "SELECT 1",
    )  # fmt: skip
    assert second[7:10] == ("held-deny", "r2", "mia")
    mode = (of.directory / INDEX_NAME).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    check(of.directory)


def test_a_live_tape_is_taken_up_where_it_was_left(of: Recorder) -> None:
    async def scenario() -> None:
        tape = open_tape(of)
        held = command(tape, "SELECT 1", verdict=None)
        tape.append(GATE, Kind.APPROVAL, pack({"command": held, "id": "ap", "state": "pending", "rule": "r2"}))
        await tape.written()
        assert Index.update(of.directory).commands == 1
        assert content(of.directory)[0][7:9] == ("held", "r2")
        assert session(of.directory)[:3] == ("", 1, 0)
        tape.append(GATE, Kind.VERDICT, pack({"command": held, "verdict": "allow", "rule": "r2", "approval": "ap"}))
        tape.append(GATE, Kind.RESULT, pack({"command": held, "tag": "SELECT 5", "count": 5}))
        command(tape, "SELECT 2")
        await tape.written()
        again = Index.update(of.directory)
        assert (again.tapes, again.commands) == (1, 1)
        assert Index.update(of.directory).tapes == 0
        assert [row[7] for row in content(of.directory)] == ["held-allow", "allow"]
        assert content(of.directory)[0][10] == 5
        await tape.close("closed")
        assert Index.update(of.directory).tapes == 1
        assert session(of.directory)[:3] == ("closed", 2, 1)
        assert Index.update(of.directory).tapes == 0

    asyncio.run(scenario())
    assert content(of.directory) == anew(of.directory)
    check(of.directory)


def test_a_tape_that_grows_is_read_once_wherever_it_is_cut(of: Recorder, tmp_path: Path) -> None:
    """A cut may fall into a block, or between the parts of a long record: nothing is indexed twice, nothing missed."""
    other = recorder(tmp_path / "other")

    async def scenario() -> Path:
        tape = open_tape(other)
        command(tape, "SELECT 1")
        command(tape, "SELECT '" + "x" * 1_400_000 + "'")
        await tape.written()
        n = command(tape, "SELECT 3", verdict=None)
        await tape.written()
        tape.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": "deny", "rule": "r"}))
        command(tape, "y" * 600_000)
        await tape.close("closed")
        return tape.path

    source = asyncio.run(scenario())
    other.close()
    data = source.read_bytes()
    ends = [place.offset for place in TapeReader(source).segment(0).data]
    assert len(ends) > 4
    target = of.directory / source.relative_to(other.directory)
    target.parent.mkdir(parents=True)
    counts = []
    for end in sorted({*ends, *(end + 30 for end in ends), len(data) - 20, len(data)}):
        target.write_bytes(data[:end])
        assert Index.update(of.directory).complete
        counts.append(session(of.directory, "commands")[0])
    assert counts == sorted(counts)
    assert counts[-1] == 4
    rows = content(of.directory)
    assert [(row[2], row[7], row[14]) for row in rows] == [
        (1, "allow", 0), (2, "allow", 1), (3, "deny", 0), (4, "allow", 1),
    ]  # fmt: skip
    assert rows == anew(of.directory)
    assert session(of.directory)[:3] == ("closed", 4, 1)
    check(of.directory)


def test_texts_at_the_limit(of: Recorder) -> None:
    limit = index_collect.TEXT_LIMIT

    async def scenario() -> None:
        tape = open_tape(of)
        for size in (limit - 1, limit, limit + 1):
            command(tape, "y" * size)
        await tape.close("closed")

    asyncio.run(scenario())
    Index.update(of.directory)
    assert [(row[14], len(row[15])) for row in content(of.directory)] == [(0, limit - 1), (0, limit), (1, limit)]


def test_segments_are_one_session(tmp_path: Path) -> None:
    of = recorder(tmp_path / "tapes", segment_limit=2000)

    async def scenario() -> Path:
        tape = open_tape(of)
        for i in range(40):
            command(tape, f"SELECT {i}")
            tape.append(OUT, Kind.WIRE, os.urandom(300))
            await tape.written()
            if i == 20:
                Index.update(of.directory)
        await tape.close("closed")
        return tape.path

    path = asyncio.run(scenario())
    of.close()
    assert TapeReader(path).last.header.segment > 2
    Index.update(of.directory)
    assert session(of.directory)[:3] == ("closed", 40, 1)
    assert [row[15] for row in content(of.directory)] == [f"SELECT {i}" for i in range(40)]
    assert [row[2] for row in content(of.directory)] == list(range(1, 41))
    assert len(inodes_of(session(of.directory, "files")[0])) > 2


def test_whatever_a_tape_says_ends_up_as_text(of: Recorder) -> None:
    hostile = [
        '"; DROP TABLE sessions; --',
        "a\0b",
        "\x1b]52;c;x\x07",
        "\u202eevil",
        "😀 日本語",
        "x" * 3000,
        "NEAR(",
        "*",
    ]

    async def scenario() -> None:
        tape = open_tape(of, identity={"subject": "\x1b[31mana\0", "groups": "no list", "agents": [1, None]})
        for text in hostile:
            command(tape, text, objects=[text, text, ""])
        tape.append(USER, Kind.COMMAND, b"\xc1 no msgpack")
        tape.append(USER, Kind.COMMAND, pack({"verb": 7, "kind": None, "text": b"bytes", "objects": {"a": 1}}))
        tape.append(GATE, Kind.VERDICT, pack({"command": 10**30 % 2**63, "verdict": [], "rule": {}}))
        tape.append(GATE, Kind.RESULT, pack({"command": 0, "count": 2**63, "error": {"code": 3, "message": None}}))
        tape.append(GATE, Kind.RESULT, pack({"command": "x"}))
        tape.append(GATE, Kind.INTENT, pack({"text": 12}))
        await tape.close("closed")

    asyncio.run(scenario())
    assert Index.update(of.directory).complete
    rows = content(of.directory)
    assert [row[15] for row in rows[:8]] == [text.replace("\0", "␀") for text in hostile]
    assert len(rows) == 10
    assert session(of.directory, "error, damage") == ("", "")
    check(of.directory)


def test_a_torn_tape_is_there_up_to_its_last_block(of: Recorder) -> None:
    path = asyncio.run(small_tape(of))
    data = path.read_bytes()
    places = TapeReader(path).segment(0).data
    path.write_bytes(data[: places[3].offset + 20])
    Index.update(of.directory)
    whole = sum(1 for place in places[:3] for _ in range(place.n_records))
    assert session(of.directory, "status, done, error, damage, seen") == ("", 0, "", "", whole)
    path.write_bytes(data)  # recovery has restored the rest
    assert Index.update(of.directory).tapes == 1
    assert session(of.directory)[:3] == ("closed", 3, 1)
    assert content(of.directory) == anew(of.directory)


def test_a_tape_whose_read_part_has_changed_is_read_anew(of: Recorder, tmp_path: Path) -> None:
    """A power cut may take what the index has read: then recovery ends the tape before that."""
    path = asyncio.run(small_tape(of, close=False, commands=4))
    data = path.read_bytes()
    Index.update(of.directory)
    assert session(of.directory, "commands") == (4,)
    place = TapeReader(path).segment(0).data[2]
    path.write_bytes(data[: place.offset])
    Index.update(of.directory)
    assert session(of.directory, "commands") == (1,)
    assert content(of.directory) == anew(of.directory)
    check(of.directory)


def test_damage_is_said_and_ends_the_reading(of: Recorder) -> None:
    path = asyncio.run(small_tape(of))
    data = bytearray(path.read_bytes())
    data[TapeReader(path).segment(0).data[2].offset + 60] ^= 1
    path.write_bytes(data)
    assert Index.update(of.directory).complete
    status, commands, done, error, damage = session(of.directory)
    assert (status, commands, done, error) == ("", 1, 0, "")
    assert "the chain does not hold" in damage
    assert Index.update(of.directory).tapes == 0  # and is not tried again while it is the same


def test_a_seal_of_another_tape_is_damage(of: Recorder) -> None:
    one, two = (asyncio.run(small_tape(of)) for _ in range(2))
    whole = one.read_bytes()
    other = TapeReader(two).segment(0)
    cut = whole.rfind(b"GCTB")  # the seal's block; its chain value covers it, so it must be made to fit
    from recorder.format import BLOCK_HEADER_BYTES, CHAIN_BYTES, TRAILER_BYTES
    from recorder.seal import chain_hash, leaf_hash

    foreign = two.read_bytes()
    block = foreign[foreign.rfind(b"GCTB") : -TRAILER_BYTES - CHAIN_BYTES]
    chain = chain_hash(
        whole[cut - CHAIN_BYTES : cut], leaf_hash(block[:BLOCK_HEADER_BYTES], block[BLOCK_HEADER_BYTES:])
    )
    one.write_bytes(whole[:cut] + block + chain + whole[-TRAILER_BYTES:])
    assert other.seal is not None
    Index.update(of.directory)
    rows = content(of.directory, "SELECT damage FROM sessions ORDER BY sid = ? DESC".replace("?", f"'{one.name[:26]}'"))
    assert "the seal is not of this segment" in rows[0][0]
    assert rows[1][0] == ""


def test_files_that_are_no_tapes(of: Recorder) -> None:
    path = asyncio.run(small_tape(of))
    day = path.parent
    (day / ("0" * 26 + ".000.gct")).write_bytes(b"not a tape")
    (day / ("1" * 26 + ".000.gct")).write_bytes(path.read_bytes())  # under another session's name
    (day / "notes.txt").write_text("x")
    assert Index.update(of.directory).complete
    rows = content(of.directory, "SELECT sid, error FROM sessions ORDER BY sid")
    assert [bool(error) for _, error in rows] == [True, False, True]
    assert "another session" in rows[2][1]
    assert len(content(of.directory)) == 3
    (day / ("1" * 26 + ".000.gct")).unlink()
    (day / ("0" * 26 + ".000.gct")).unlink()
    assert Index.update(of.directory).forgotten == 2


def test_an_original_track_is_never_indexed(of: Recorder) -> None:
    """Its content was not masked; neither its own name nor that of a main track gets it in."""
    path = asyncio.run(small_tape(of))
    sid = path.name[:26]
    secret = recorder(of.directory.with_name("other"))

    async def original() -> Path:
        tape = open_tape(secret)
        command(tape, "CANARY-8812")
        await tape.close("closed")
        return tape.path

    source = asyncio.run(original())
    secret.close()
    raw = source.read_bytes()
    shutil.copy(source, path.parent / f"{sid}.original.000.gct")
    # The same under a main track's name: the header has the track.
    from recorder.format import decode_header, encode_header

    header = decode_header(raw)
    renamed = encode_header({**header.map_, "track": "original"}) + raw[len(header.raw) :]
    (path.parent / source.name).write_bytes(renamed)
    Index.update(of.directory)
    rows = dict(content(of.directory, "SELECT sid, error FROM sessions"))
    assert rows == {sid: "", source.name[:26]: "an original track is not indexed"}
    assert b"CANARY" not in (of.directory / INDEX_NAME).read_bytes()


def test_an_encrypted_tape_has_who_and_when_and_no_text(of: Recorder, tmp_path: Path) -> None:
    AuditorKey.generate(tmp_path / "auditor")
    recipients = Recipient.load(tmp_path / "auditor.pub")

    async def scenario() -> None:
        tape = open_tape(of, recipients=recipients)
        tape.append(USER, Kind.INTENT, pack({"text": "CANARY-INTENT"}))
        for _ in range(5):
            command(tape, "SELECT 'CANARY-TEXT'", objects=["CANARY.OBJECT"])
            await tape.written()
        Index.update(of.directory)
        await tape.close("closed")

    asyncio.run(scenario())
    assert Index.update(of.directory).complete
    assert session(of.directory, "encrypted, status, commands, subject, intent, done, error, damage") == (
        1, "closed", 5, "ana@acme", "", 1, "", "",
    )  # fmt: skip
    assert content(of.directory) == []
    Index.rebuild(of.directory)
    assert session(of.directory, "encrypted, status, commands") == (1, "closed", 5)
    assert b"CANARY" not in b"".join(path.read_bytes() for path in of.directory.glob("index*"))


def test_what_masks_hide_is_not_in_it(of: Recorder) -> None:
    """Results' rows are never indexed; of an error, the message as the user saw it."""

    async def scenario() -> None:
        tape = open_tape(of)
        n = command(tape, "SELECT email FROM people", values=["CANARY-VALUE"])
        tape.append(OUT, Kind.WIRE, b"CANARY-WIRE")
        rows = {"columns": ["email"], "rows": [["CANARY-CELL"]], "count": 1, "bytes": 9}
        error = {"code": "22P02", "message": "invalid: [redacted]", "detail": "CANARY-DETAIL"}
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "SELECT 1", **rows, "error": error}))
        await tape.close("closed")

    asyncio.run(scenario())
    Index.update(of.directory)
    assert content(of.directory)[0][12] == "invalid: [redacted]"
    for path in of.directory.glob("index*"):
        assert b"CANARY" not in path.read_bytes(), path


def test_a_removed_session_is_forgotten_to_the_last_word(of: Recorder) -> None:
    path = asyncio.run(small_tape(of))

    async def secret() -> Path:
        tape = open_tape(of)
        command(tape, "SELECT zebracanary", objects=["zoo.zebracanary"])
        await tape.close("closed")
        return tape.path

    gone = asyncio.run(secret())
    Index.update(of.directory)
    assert b"zebracanary" in (of.directory / INDEX_NAME).read_bytes()
    gone.unlink()
    done = Index.update(of.directory)
    assert done.forgotten == 1
    assert [row[0] for row in content(of.directory, "SELECT sid FROM sessions")] == [path.name[:26]]
    check(of.directory)
    with Index(of.directory) as index:
        index.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"zebracanary" not in b"".join(file.read_bytes() for file in of.directory.glob("index*"))


def test_a_replaced_file_is_read_anew(of: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_days, "SETTLED_NS", -(10**18))  # the mtime of this moment counts as settled
    path = asyncio.run(small_tape(of))
    assert Index.update(of.directory).tapes == 1
    before = content(of.directory, "SELECT id FROM sessions")
    copy = path.with_suffix(".tmp")
    shutil.copy(path, copy)
    copy.replace(path)
    os.utime(path.parent, ns=(1, 1))
    assert Index.update(of.directory).tapes == 1
    assert len(content(of.directory)) == 3
    assert content(of.directory, "SELECT id FROM sessions") == before or len(before) == 1
    os.utime(path.parent, ns=(2, 2))
    assert Index.update(of.directory).tapes == 0  # listed, and nothing is new


def test_a_day_is_not_listed_while_nothing_changes(of: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = asyncio.run(small_tape(of))
    os.utime(path.parent, ns=(1, 1))
    listed: list[str] = []
    real = index_update.find_work

    def counting(day: index_days.Day, known: Any) -> Any:
        listed.append(day.name)
        return real(day, known)

    monkeypatch.setattr(index_update, "find_work", counting)
    Index.update(of.directory)
    Index.update(of.directory)
    assert len(listed) == 1
    asyncio.run(small_tape(of))  # which changes the directory; and its mtime is of this moment
    Index.update(of.directory)
    Index.update(of.directory)
    assert len(listed) == 3
    shutil.rmtree(path.parent)
    assert Index.update(of.directory).forgotten == 2
    assert content(of.directory, "SELECT * FROM days") == []


class Vault:
    """A fake of VaultView."""

    def __init__(self, *sids: str) -> None:
        self.there = set(sids)
        self.gone: list[str] = []

    def has(self, sid: str) -> bool:
        return sid in self.there

    def removals(self) -> int:
        return len(self.gone)

    def removed(self) -> Iterator[str]:
        yield from self.gone


def test_what_has_left_for_the_vault_stays_until_it_is_removed_there(of: Recorder) -> None:
    path = asyncio.run(small_tape(of))
    sid = path.name[:26]
    Index.update(of.directory)
    path.unlink()
    vault = Vault(sid)
    assert Index.update(of.directory, elsewhere=vault).forgotten == 0
    assert session(of.directory, "place, commands, status") == ("vault", 3, "closed")
    Index.rebuild(of.directory, elsewhere=vault)
    assert session(of.directory, "place, commands, status") == ("vault", 3, "closed")
    assert len(content(of.directory)) == 3
    check(of.directory)
    vault.there.clear()
    vault.gone.append(sid)
    assert Index.update(of.directory, elsewhere=vault).forgotten == 1
    assert content(of.directory) == []


def test_segments_that_have_left_do_not_end_the_reading(tmp_path: Path) -> None:
    of = recorder(tmp_path / "tapes", segment_limit=1500)

    async def scenario() -> None:
        tape = open_tape(of)
        for i in range(30):
            command(tape, f"SELECT {i}")
            tape.append(OUT, Kind.WIRE, os.urandom(300))
            await tape.written()
            if i == 15:
                Index.update(of.directory)
                for old in sorted(tape.path.parent.glob("*.gct"))[:-1]:
                    old.unlink()
        await tape.close("closed")

    asyncio.run(scenario())
    of.close()
    Index.update(of.directory)
    assert session(of.directory, "status, commands, place, damage") == ("closed", 30, "partly", "")
    Index.rebuild(of.directory)  # what only the vault has is missing then
    assert 0 < session(of.directory, "commands")[0] < 30


# -- kills, locks, damage ---------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from recorder import index_update
from recorder.index import Index
index_update.COMMIT_SECONDS = 0.0
left = int(sys.argv[2])
def progress(_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
getattr(Index, sys.argv[3])(Path(sys.argv[1]), progress=progress)
"""


@pytest.mark.parametrize("how", ["update", "rebuild"])
def test_a_kill_at_any_moment_costs_nothing_but_time(of: Recorder, how: str) -> None:
    async def scenario() -> None:
        for i in range(6):
            await small_tape(of, commands=3 + i, close=i != 2)

    asyncio.run(scenario())
    killed = 0
    for steps in (1, 2, 3, 5, 8, 13, 1000):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(of.directory), str(steps), how], cwd=ROOT, timeout=60, check=False
        )
        killed += done.returncode == -signal.SIGKILL
        if how == "rebuild" and done.returncode:
            assert not (of.directory / INDEX_NAME).exists()
            assert (of.directory / NEW_NAME).exists()
    assert killed >= 3
    assert not (of.directory / NEW_NAME).exists()
    assert content(of.directory) == anew(of.directory)
    check(of.directory)


def test_a_rebuild_goes_on_where_it_was_killed(of: Recorder) -> None:
    for _ in range(6):
        asyncio.run(small_tape(of))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(of.directory), "30", "rebuild"], cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert 0 < Index.rebuild(of.directory).tapes < 6
    assert len(content(of.directory)) == 18


def test_of_two_updaters_one_does_it(of: Recorder) -> None:
    asyncio.run(small_tape(of))
    with update_lock(of.directory):
        done = Index.update(of.directory)
        assert (done.busy, done.tapes) == (True, 0)
        assert not (of.directory / INDEX_NAME).exists()
    assert Index.update(of.directory).tapes == 1


def test_readers_see_the_last_commit_while_another_updates(of: Recorder) -> None:
    asyncio.run(small_tape(of))
    Index.update(of.directory)
    with Index(of.directory) as index:
        asyncio.run(small_tape(of))
        assert Index.update(of.directory).tapes == 1
        assert index.counts() == (2, 6)


def test_an_index_in_use_is_not_replaced_under_its_reader(of: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(small_tape(of))
    Index.update(of.directory)
    monkeypatch.setattr("recorder.index_schema.SWAP_LIMIT_SECONDS", 0.05)
    with Index(of.directory) as index:
        inode = (of.directory / INDEX_NAME).stat().st_ino
        with pytest.raises(TimeoutError):
            Index.rebuild(of.directory)
        assert (of.directory / INDEX_NAME).stat().st_ino == inode
        assert index.counts() == (1, 3)
    Index.rebuild(of.directory)
    assert (of.directory / INDEX_NAME).stat().st_ino != inode


@pytest.mark.parametrize("damage", ["garbage", "cut", "page", "version", "empty table"])
def test_a_damaged_index_is_put_aside_and_built_again(of: Recorder, damage: str) -> None:
    async def scenario() -> None:
        for _ in range(4):
            await small_tape(of)

    asyncio.run(scenario())
    Index.update(of.directory)
    expected = content(of.directory)
    path = of.directory / INDEX_NAME
    data = path.read_bytes()
    asyncio.run(small_tape(of))
    match damage:
        case "garbage":
            path.write_bytes(b"no database " * 1000)
        case "cut":
            path.write_bytes(data[: len(data) // 3])
        case "page":
            path.write_bytes(data[:4096] + os.urandom(len(data) - 4096))
        case "version":
            with sqlite3.connect(path) as connection:
                connection.execute("PRAGMA user_version = 99")
            connection.close()
        case "empty table":
            with sqlite3.connect(path) as connection:
                connection.execute("DROP TABLE objects")
            connection.close()
    done = Index.update(of.directory)
    assert done.complete
    if damage != "empty table":  # noticed when it is needed
        assert done.repaired
        assert (of.directory / DAMAGED_NAME).exists()
        assert content(of.directory)[: len(expected)] == expected
        assert len(content(of.directory)) == 15
        check(of.directory)


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(IndexUnavailable, match="cannot be written"):
        Index.update(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        Index(tmp_path)
    (tmp_path / INDEX_NAME).write_bytes(b"x" * 5000)
    with pytest.raises(IndexDamaged):
        Index(tmp_path)


def test_time_that_is_over_leaves_the_rest_for_the_next(of: Recorder) -> None:
    for _ in range(4):
        asyncio.run(small_tape(of))
    done = Index.update(of.directory, seconds=0.0)
    assert (done.complete, done.tapes, done.left) == (False, 0, 4)
    with Index(of.directory) as index:
        assert not index.complete
    assert Index.update(of.directory, seconds=60.0).complete
    assert content(of.directory) == anew(of.directory)


def test_the_lock_of_users_is_shared(tmp_path: Path) -> None:
    with use_lock(tmp_path), use_lock(tmp_path):
        assert (tmp_path / "index.lock").stat().st_mode & 0o077 == 0
