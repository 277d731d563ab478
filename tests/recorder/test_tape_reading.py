"""The reader: seeks, follows, and survives; and the lists and looks that the command line gives."""

from __future__ import annotations

import asyncio
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recorder.cli import SessionFilter, export, find_tape, list_sessions, show
from recorder.errors import FormatError
from recorder.reader import TapeReader
from recorder.tape import GATE, OUT, USER, Kind
from recorder.ulid import is_ulid, new_ulid
from tests.recorder.tapes import Clock, command, open_tape, pack, recorder, small_tape


@pytest.fixture(scope="module")
def long_tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three segments, 30 commands a second apart, each with an answer."""
    clock = Clock()

    async def scenario() -> Path:
        of = recorder(tmp_path_factory.mktemp("long"), segment_limit=12_000, monotonic_ns=clock)
        tape = open_tape(of)
        for i in range(30):
            clock.pass_ms(1000)
            command(tape, f"SELECT {i}")
            tape.append(OUT, Kind.WIRE, os.urandom(1000))
            await tape.written()
        await tape.close("closed")
        return tape.path

    path = asyncio.run(scenario())
    assert len(TapeReader(path).segments) >= 3
    return path


@given(start=st.integers(0, 95))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_seek_by_record(long_tape: Path, start: int) -> None:
    assert [r.n for r in TapeReader(long_tape).records(start)] == list(range(start, 91))


@given(milliseconds=st.integers(0, 40_000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_seek_by_time_misses_nothing(long_tape: Path, milliseconds: int) -> None:
    t_ns = milliseconds * 1_000_000
    reader = TapeReader(long_tape)
    start = reader.at_time(t_ns)
    whole = [r for r in reader.records() if r.t_ns >= t_ns]
    assert [r for r in reader.records(start) if r.t_ns >= t_ns] == whole
    assert len([r for r in reader.records(start) if r.t_ns < t_ns]) <= 4  # no more than a block too early


def test_commands_lead_to_their_records(long_tape: Path) -> None:
    reader = TapeReader(long_tape)
    entries = list(reader.commands())
    assert len(entries) == 30
    for entry in entries:
        record = next(reader.records(entry.n))
        assert (record.n, record.kind, record.t_ns) == (entry.n, Kind.COMMAND, entry.t_ns)
    assert reader.duration_ns == 30_000_000_000


def test_the_first_verdict_stands_in_the_index(tmp_path: Path) -> None:
    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path))
        n = command(tape, "SELECT 1", verdict=None)
        held = command(tape, "SELECT 2", verdict=None)
        for verdict in ("deny", "allow"):
            tape.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": verdict, "rule": "r"}))
        tape.append(GATE, Kind.VERDICT, pack({"command": held, "verdict": "allow", "rule": "r", "approval": "A1"}))
        tape.append(GATE, Kind.VERDICT, pack({"command": 99, "verdict": "allow", "rule": "r"}))  # of no command
        command(tape, "SELECT 3", verdict=None)
        await tape.written()
        live = [(e.text, e.verdict) for e in TapeReader(tape.path).commands()]
        await tape.close("closed")
        assert [(e.text, e.verdict) for e in TapeReader(tape.path).commands()] == live
        assert live == [("SELECT 1", "deny"), ("SELECT 2", "held-allow"), ("SELECT 3", "")]
        return tape.path

    asyncio.run(scenario())


def test_follow_a_live_tape(tmp_path: Path) -> None:
    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path, segment_limit=4000))
        reader = TapeReader(tape.path)
        seen = 0
        payloads = []
        for i in range(20):
            tape.append(USER, Kind.WIRE, b"%d " % i + os.urandom(500))
            await tape.written()
            reader.refresh()
            for record in reader.records(seen):
                seen = record.n + 1
                payloads.append(int(record.payload.split()[0]))
            assert payloads == list(range(i + 1))
            assert reader.status == ""
        await tape.close("closed")
        reader.refresh()
        assert [r.kind for r in reader.records(seen)] == [Kind.CLOSE]
        assert reader.status == "closed"
        assert len(reader.segments) > 2

    asyncio.run(scenario())


def test_damage_in_a_sealed_tape_is_an_error_not_silence(tmp_path: Path) -> None:
    path = asyncio.run(small_tape(recorder(tmp_path)))
    data = bytearray(path.read_bytes())
    place = TapeReader(path).segment(0).data[2]
    data[place.offset + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="chain"):
        list(TapeReader(path).records())


@given(at=st.integers(0, 2500), value=st.integers(0, 255), cut=st.integers(0, 2500))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_whatever_the_bytes_the_reader_returns_or_says_why(
    small: bytes, tmp_path: Path, at: int, value: int, cut: int
) -> None:
    data = bytearray(small)
    data[at % len(data)] = value
    path = tmp_path / "bad.gct"
    path.write_bytes(data[: max(cut, 1)] if cut % 3 == 0 else data)
    try:
        reader = TapeReader(path)
        count = len(list(reader.records())) + len(list(reader.commands()))
    except FormatError as error:
        assert error.reason
    else:
        assert count <= 20


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return asyncio.run(small_tape(recorder(tmp_path_factory.mktemp("small")))).read_bytes()


def test_list_sessions(tmp_path: Path) -> None:
    wall = Clock()
    wall.ns = 1_790_000_000_000_000_000

    async def scenario() -> list[Any]:
        of = recorder(tmp_path, wall_ns=wall)
        await small_tape(of, commands=2)
        wall.pass_ms(86_400_000)
        other = open_tape(
            of, protocol="ssh", target="web-1", identity={"subject": "leo", "agents": ["bot"]}, run="run-7"
        )
        await other.close("failed", "the target died")
        wall.pass_ms(1000)
        live = open_tape(of, run="run-7")
        command(live, "SELECT 1")
        await live.written()
        dead = await small_tape(of, close=False)
        (tmp_path / "2099" / "01" / "01").mkdir(parents=True)
        (tmp_path / "2099" / "01" / "01" / ("0" * 26 + ".000.gct")).write_bytes(b"not a tape")
        rows = list_sessions(tmp_path)
        with dead.open("rb"):
            pass
        live_row = next(row for row in rows if row.get("run") == "run-7" and row["protocol"] == "postgres")
        assert live_row["status"] == "live"
        assert live_row["commands_count"] is None
        for wanted, count in (
            (SessionFilter(protocol="ssh"), 1),
            (SessionFilter(run="run-7"), 2),
            (SessionFilter(subject="ana@acme", target="shop"), 3),
            (SessionFilter(status="failed"), 1),
            (SessionFilter(status="live"), 2),
            (SessionFilter(since="2026-09-22", protocol="postgres"), 2),
            (SessionFilter(until="2026-09-21", protocol="postgres"), 1),
            (SessionFilter(limit=2), 2),
            (SessionFilter(target="nowhere"), 0),
        ):
            assert len(list_sessions(tmp_path, wanted)) == count, wanted
        await live.close("closed")
        return rows

    rows = asyncio.run(scenario())
    assert len(rows) == 5
    assert "error" in rows[0]
    closed = rows[-1]
    assert (closed["status"], closed["commands_count"], closed["started"][:10]) == ("closed", 2, "2026-09-21")
    failed = next(row for row in rows if row.get("protocol") == "ssh")
    assert (failed["status"], failed["agents"], failed["subject"]) == ("failed", ["bot"], "leo")
    assert json.loads(json.dumps(rows)) == rows


def test_show_and_find(tmp_path: Path) -> None:
    path = asyncio.run(small_tape(recorder(tmp_path)))
    sid = path.name[:26]
    assert is_ulid(sid)
    for name in (sid, sid[:20], sid.lower(), str(path)):
        assert find_tape(tmp_path, name) == path
    for name in ("", "01J", "../" + sid, "*"):
        with pytest.raises(FileNotFoundError):
            find_tape(tmp_path, name)
    asyncio.run(small_tape(recorder(tmp_path)))
    with pytest.raises(ValueError, match="2 sessions"):
        find_tape(tmp_path, sid[:3])
    shown = show(path)
    assert [entry["text"] for entry in shown["commands"]] == ["SELECT 0", "SELECT 1", "SELECT 2"]
    assert shown["commands_count"] == 3
    assert shown["header"]["node"] == "node-1"
    assert json.loads(json.dumps(shown)) == shown


def test_export_jsonl_has_every_record(tmp_path: Path) -> None:
    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path))
        tape.append(USER, Kind.WIRE, b"text")
        tape.append(OUT, Kind.WIRE, b"\xff\x00")
        command(tape, "SELECT 'ü'", values=[b"\x01", None, 7])
        tape.append(USER, Kind.COMMAND, b"\xc1 no msgpack")
        await tape.close("closed")
        return tape.path

    out = io.StringIO()
    summary = export(asyncio.run(scenario()), "jsonl", out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert summary["lines"] == len(lines) == 7
    assert lines[0]["header"]["target"] == "shop"
    assert (lines[1]["text"], lines[1]["base64"], lines[1]["channel"]) == ("text", "dGV4dA==", "user")
    assert "text" not in lines[2]
    assert lines[3]["payload"]["values"] == [{"base64": "AQ=="}, None, 7]
    assert lines[3]["payload"]["text"] == "SELECT 'ü'"
    assert "base64" in lines[5]
    assert lines[6]["kind"] == "CLOSE"
    assert lines[6]["time"].endswith("Z")
    with pytest.raises(ValueError, match="no export format"):
        export(find_tape(tmp_path, lines[0]["header"]["sid"]), "gif", out)


@given(st.integers(0, 2**47))
def test_ulids_sort_by_time(milliseconds: int) -> None:
    one, two = new_ulid(milliseconds * 1_000_000), new_ulid((milliseconds + 1) * 1_000_000)
    assert is_ulid(one)
    assert one[:10] < two[:10]
    assert one != new_ulid(milliseconds * 1_000_000)
