"""Finding things on tapes of several segments: commands, times, markers; sealed, live and crashed ones alike."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder import places
from recorder.errors import FormatError
from recorder.format import Kind
from recorder.places import Places, last_before, last_with_record
from recorder.player_index import TapeIndex, marker_of
from recorder.reader import TapeReader
from recorder.tape import GATE, OUT, USER
from tests.recorder.tapes import Clock, command, open_tape, pack, recorder

COMMANDS = 60


@pytest.fixture(scope="module", params=["sealed", "live"])
def tape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TapeReader:
    """Sixty commands a second apart over some segments; every tenth is denied, every fifteenth fails."""
    clock = Clock()

    async def scenario() -> Path:
        of = recorder(tmp_path_factory.mktemp("tape"), segment_limit=9000, monotonic_ns=clock)
        tape = open_tape(of)
        for i in range(COMMANDS):
            clock.pass_ms(1000)
            n = command(tape, f"SELECT {i}", verdict="deny" if i % 10 == 9 else "allow")
            tape.append(OUT, Kind.WIRE, os.urandom(600))
            if i % 15 == 7:
                tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "", "error": {"code": "22012"}}))
            await tape.written()
        if request.param == "sealed":
            await tape.close("closed")
        return tape.path

    reader = TapeReader(asyncio.run(scenario()))
    assert len(reader.segments) > 3
    return reader


def truth(tape: TapeReader) -> list[tuple[int, int]]:
    return [(record.n, record.t_ns) for record in tape.records() if record.kind == Kind.COMMAND]


def test_commands(tape: TapeReader) -> None:
    index, expected = TapeIndex(tape), truth(tape)
    found = [index.nth(i) for i in range(COMMANDS + 1)]
    assert [(c.n, c.t_ns) for c in found if c is not None] == expected
    assert found[-1] is None
    assert index.count() == COMMANDS
    for n in range(-1, tape.next_record):
        before = [i for i, (number, _) in enumerate(expected) if number <= n]
        after = [i for i, (number, _) in enumerate(expected) if number > n]
        at, following = index.at(n), index.after(n)
        assert (at.ordinal if at is not None else None) == (before[-1] if before else None)
        assert (following.ordinal if following is not None else None) == (after[0] if after else None)


def test_opening_reads_no_list_of_commands(tape: TapeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "decode_entries", lambda *_: pytest.fail("a list was read"))
    monkeypatch.setattr("recorder.player_index.decode_entries", lambda *_: pytest.fail("a list was read"))
    index = TapeIndex(TapeReader(tape.path))
    assert index.count() == (COMMANDS if tape.status else None)


def test_times(tape: TapeReader) -> None:
    index = TapeIndex(tape)
    records = [(record.n, record.t_ns) for record in tape.records()]
    for t_ns in [-1, 0, *(t + d for _, t in records[::7] for d in (-1, 0, 1)), 10**12]:
        assert index.record_at(t_ns) == max((n for n, t in records if t <= t_ns), default=-1), t_ns


def test_markers_both_ways(tape: TapeReader) -> None:
    index = TapeIndex(tape)
    expected = [marker for record in tape.records() if (marker := marker_of(record)) is not None]
    assert [marker.label for marker in expected].count("DENY") == 6
    assert [marker.label for marker in expected].count("ERROR") == 4
    assert list(index.markers()) == expected
    for n in range(0, tape.next_record + 1, 5):
        assert next(index.markers(n), None) == next((m for m in expected if m.n > n), None)
        assert index.marker_before(n) == next((m for m in reversed(expected) if m.n < n), None)
    assert list(index.markers(stop=lambda: True)) == []
    assert index.marker_before(tape.next_record, lambda: True) is None


def test_looking_back_is_bounded(tape: TapeReader) -> None:
    index, last = TapeIndex(tape), tape.next_record - 1
    assert index.look_back(last, 10**9, 10**9) == 0
    blocks = index.look_back(last, 10**9, 3)
    assert last - 14 <= blocks < last
    assert index.look_back(last, 0, 10**9) > last - 5, "the block itself, however large"
    assert blocks < index.look_back(last, 10**9, 1) <= last
    assert index.look_back(0, 1, 1) == 0


def test_a_live_tape_grows(tmp_path: Path) -> None:
    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path, segment_limit=2000))
        command(tape, "SELECT 0")
        await tape.written()
        reader = TapeReader(tape.path)
        index = TapeIndex(reader)
        for i in range(1, 12):
            n = tape.append(USER, Kind.COMMAND, pack({"verb": "SELECT", "text": "x" * (300_000 if i == 5 else 300)}))
            await tape.written()
            reader.refresh()
            index.refresh()
            found = index.nth(i)
            assert found is not None
            assert found.n == n
        assert len(reader.segments) > 2
        await tape.close("closed")

    asyncio.run(scenario())


# -- the index of a segment --------------------------------------------------------------------------

entries = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(entries, st.lists(st.integers(1, 40), max_size=4), st.integers(0, 3), st.integers(-1, 130))
def test_places_are_a_list(steps: list[tuple[int, int]], cuts: list[int], lists: int, value: int) -> None:
    expected: list[places.Place] = []
    packed: list[bytes] = []
    first = t0 = 0
    for i, (count, pause) in enumerate(steps):
        t0 += pause
        expected.append(places.Place(100 * i, 1, first, t0, count))
        packed.append(pack([100 * i, 1, i, first, t0, count, b"leaf"]))
        first += count
    packed += [pack([9000 + i, 3, len(steps) + i, first, t0, 0, b"leaf"]) for i in range(lists)]
    at = sorted({0, *(cut for cut in cuts if cut < len(packed)), len(packed)})
    found = Places([b"".join(packed[a:b]) for a, b in itertools.pairwise(at)])
    assert list(found) == expected
    assert found[-1] == expected[-1]
    assert found[1:3] == expected[1:3]
    assert found.commands == [9000 + i for i in range(lists)]
    assert last_with_record(found, value) == last_with_record(expected, value)
    assert last_before(found, value) == last_before(expected, value)


@pytest.mark.parametrize(
    "pieces",
    [
        [pack([0, 1, 1, 0, 0, 1, b""])],
        [pack([0, 1, 0, 0, 0, 1, b""]), pack([0, 1, 0, 0, 0, 1, b""])],
        [b"\xc1"],
        [pack("text")],
        [pack([0, 1, 0, 0, 0, 1, b""]) + pack([0, 1, 5, 0, 0, 1, b""])],
    ],
)
def test_an_index_that_contradicts_itself(pieces: list[bytes]) -> None:
    with pytest.raises(FormatError):
        list(Places(pieces))
