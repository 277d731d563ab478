"""Following live tapes, encrypted ones too; jumps in a segment that has no list of commands yet; markers; --raw."""

from __future__ import annotations

import asyncio
import io
import os
import re
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from recorder import player_blocks, player_index
from recorder.cipher import AuditorKey
from recorder.errors import FormatError, Unreadable
from recorder.player_blocks import content_blocks
from recorder.player_index import TapeIndex, marker_of
from recorder.reader import TapeReader
from recorder.replay import Player, ReplayOptions, Spot, print_markers
from recorder.tape import GATE, OUT, USER, Kind
from tests.recorder.tapes import Clock, command, open_tape, pack, recorder
from tests.recorder.test_tape_replay import Viewer, nth

ANA = AuditorKey(X25519PrivateKey.generate())
MIB = 1024 * 1024


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    one = Viewer()
    yield one
    one.close()


def drawn(path: Path, tmp_path: Path, seconds_limit: float, *spots: Spot, keys: tuple[AuditorKey, ...] = ()) -> str:
    """What a player writes for jumps to the spots, each in so many seconds."""
    out = os.open(tmp_path / "screen", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        player = Player(TapeReader(path, keys), ReplayOptions(columns=110, color=False), out, None, timed=True)
        for spot in spots:
            began = time.perf_counter()
            player._draw(spot)
            assert time.perf_counter() - began < seconds_limit
    finally:
        os.close(out)
    return (tmp_path / "screen").read_text()


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_live_tape_is_followed_from_its_end(viewer: Viewer, tmp_path: Path, encrypted: bool) -> None:
    clock = Clock()

    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path, monotonic_ns=clock), recipients=[ANA.recipient] if encrypted else ())
        for i in range(1, 41):
            command(tape, f"SELECT {i}")
            clock.pass_ms(1_000_000)  # each waits for a quarter of an hour, and nobody who follows does
        await tape.written()
        keys = (ANA,) if encrypted else ()
        viewer.watch(tape.path, keys=keys, follow=True)
        before = await asyncio.to_thread(viewer.until, nth(40))
        assert nth(1) not in before, "the last screenful"
        await asyncio.to_thread(viewer.until, "Q40   1x")  # and of how many nobody knows yet
        for i in range(41, 44):
            command(tape, f"SELECT {i}")
            await tape.written()
            await asyncio.to_thread(viewer.until, nth(i))
            clock.pass_ms(1_000_000)
        viewer.press("[")
        await asyncio.to_thread(viewer.until, nth(42))
        command(tape, "SELECT 44")
        await tape.written()
        viewer.press("G")
        await asyncio.to_thread(viewer.until, nth(44))
        await tape.close("closed")
        await asyncio.to_thread(viewer.until, "session closed")

    asyncio.run(scenario())
    viewer.ends()


def test_a_live_tape_can_be_followed_from_its_beginning(viewer: Viewer, tmp_path: Path) -> None:
    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path))
        for i in range(1, 41):
            command(tape, f"SELECT {i}")
        await tape.written()
        viewer.watch(tape.path, follow=True, start="0")
        assert "REC " in await asyncio.to_thread(viewer.until, nth(1))
        await asyncio.to_thread(viewer.until, nth(40))
        await tape.close("closed")
        await asyncio.to_thread(viewer.until, "session closed")

    asyncio.run(scenario())
    viewer.ends()


def test_following_an_encrypted_tape_without_its_key_says_so(viewer: Viewer, tmp_path: Path) -> None:
    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path), recipients=[ANA.recipient])
        command(tape, "SELECT 1")
        await tape.written()
        with pytest.raises(Unreadable):
            list(TapeIndex(TapeReader(tape.path)).markers())
        viewer.watch(tape.path, follow=True)
        assert viewer.thread is not None
        await asyncio.to_thread(viewer.thread.join, 10)
        await tape.close("closed")

    asyncio.run(scenario())
    assert [type(error) for error in viewer.errors] == [Unreadable]


def test_jumps_in_a_full_segment_that_is_not_sealed(tmp_path: Path) -> None:
    clock = Clock()
    noise = os.urandom(64 * 1024)

    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path / "tapes", monotonic_ns=clock))
        for i in range(2000):
            command(tape, f"SELECT {i}")
            tape.append(OUT, Kind.WIRE, noise[: 30_000 + i])
            clock.pass_ms(1000)
            await tape.written()
        assert tape.path.name.endswith(".000.gct")
        assert tape.path.stat().st_size > 59 * MIB
        reader = TapeReader(tape.path)
        places = [Spot(reader.at_time(t * 10**9), t * 10**9) for t in (1999, 1000, 3, 1500)]
        # 2 s is what a busy machine may take for the walk that the first jump needs; the others find it done.
        text = drawn(tape.path, tmp_path, 2.0, *places)
        assert "SELECT 1499" in text
        assert "... 1" in text and "commands before" in text
        index = TapeIndex(reader)
        found = index.nth(1234)
        assert found is not None and found.t_ns == 1234 * 10**9
        await tape.close("closed")

    asyncio.run(scenario())


def test_the_step_back_from_a_marker_is_the_marker_before(viewer: Viewer, tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path, monotonic_ns=clock))
        for i in range(1, 4):
            n = command(tape, f"SELECT {i}", verdict="deny")
            # What the user got of it is on the tape behind the verdict, and not on the screen.
            tape.append(OUT, Kind.WIRE, b"E %d" % n)
            clock.pass_ms(1_000_000)
        await tape.close("closed")
        return tape.path

    viewer.watch(asyncio.run(scenario()))
    viewer.press(" 9")
    viewer.until("Q3 of 3")
    viewer.press("{")
    assert nth(3) not in viewer.until("Q2 of 3").rpartition("\x1b[2J")[2]
    viewer.press("{")
    viewer.until("Q1 of 3")
    viewer.press("q")
    viewer.ends()


def test_no_list_is_read_of_a_terminal_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path / "t", monotonic_ns=clock, segment_limit=5000), more={"tty": [80, 24]})
        first = tape.path
        for i in range(60):
            tape.append(OUT, Kind.WIRE, b"line %d\r\n" % i + os.urandom(400).hex().encode())
            clock.pass_ms(1000)
            await tape.written()
        await tape.close("closed")
        return first

    path = asyncio.run(scenario())
    assert len(TapeReader(path).segments) > 5
    monkeypatch.setattr(TapeIndex, "_entries", lambda *_: pytest.fail("a list of no commands was read"))
    assert "line 30" in drawn(path, tmp_path, 10.0, Spot(30, 30 * 10**9))
    index = TapeIndex(TapeReader(path))
    assert index.at(index.last()) is None
    assert index.after(-1) is None


def test_markers_name_their_commands(tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path, monotonic_ns=clock))
        command(tape, "SELECT 1")
        n = command(tape, "UPDATE t", "UPDATE", None)
        held = {"state": "pending", "rule": "writes", "approvers": ["group:oncall"]}
        tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A7", **held}))
        clock.pass_ms(3723_004)
        said = {"state": "approved", "by": "mia", "reason": "ok"}
        tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A7", **said}))
        tape.append(GATE, Kind.MARK, pack({"label": "note", "text": "of no command"}))
        tape.append(GATE, Kind.RESULT, pack({"command": 999, "error": {"message": "of an unknown one"}}))
        await tape.close("closed")
        return tape.path

    out = io.StringIO()
    with redirect_stdout(out):
        print_markers(TapeReader(asyncio.run(scenario())), ReplayOptions())
    assert [re.sub(" +", " ", line).strip() for line in out.getvalue().splitlines()] == [
        "00:00.000 Q2 HOLD rule=writes needs one of: group:oncall approval A7",
        '1:02:03.004 Q2 APPROVED by mia "ok" approval A7',
        "1:02:03.004 note of no command",
        "1:02:03.004 ERROR of an unknown one",
    ]


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("chunk", [100, 4096, MIB])
def test_blocks_come_whole_whatever_the_pieces(
    tmp_path: Path, encrypted: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path), recipients=[ANA.recipient] if encrypted else ())
        for i in range(30):
            n = command(tape, f"SELECT {i}", verdict="deny" if i % 7 == 3 else "allow")
            tape.append(OUT, Kind.WIRE, os.urandom(i * 700))
            if i % 10 == 9:
                tape.append(GATE, Kind.RESULT, pack({"command": n, "error": {"message": "x" * 500}}))
            await tape.written()
        await tape.close("closed")
        return tape.path

    tape = TapeReader(asyncio.run(scenario()), (ANA,))
    monkeypatch.setattr(player_blocks, "_CHUNK_BYTES", chunk)
    index = TapeIndex(tape)
    expected = [marker for record in tape.records() if (marker := marker_of(record)) is not None]
    assert len(expected) == 7
    assert list(index.markers()) == expected
    for n in range(0, tape.next_record + 1, 3):
        before = next((marker for marker in reversed(expected) if marker.n < n), None)
        assert index.marker_before(n) == before
    segment = tape.segment(0)
    found = list(content_blocks(segment, 2, len(segment.data), lambda raw, records: True))
    blocks = [item[0] for item in found if not isinstance(item, int)]
    assert [block.offset for block in blocks] == [place.offset for place in segment.data[2:]]
    assert index.looked_through == pytest.approx(1, abs=0.99)


def test_a_search_notices_what_was_changed(tmp_path: Path) -> None:
    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path))
        for i in range(20):
            command(tape, f"SELECT {i}", verdict="deny")
            await tape.written()
        await tape.close("closed")
        return tape.path

    path = asyncio.run(scenario())
    whole = path.read_bytes()
    place = TapeReader(path).segment(0).data[7]
    for at in range(place.offset, TapeReader(path).segment(0).data[8].offset):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FormatError):
            list(TapeIndex(TapeReader(path)).markers())


def test_a_search_can_be_stopped_and_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path, segment_limit=20_000))
        first = tape.path
        for _ in range(100):
            tape.append(USER, Kind.WIRE, os.urandom(2000))
            await tape.written()
        await tape.close("closed")
        return first

    tape = TapeReader(asyncio.run(scenario()))
    monkeypatch.setattr(player_blocks, "_CHUNK_BYTES", 2500)
    index = TapeIndex(tape)
    shares: list[float] = []
    assert list(index.markers(stop=lambda: shares.append(index.looked_through) or False)) == []  # type: ignore[func-returns-value]
    assert len(shares) > 50
    assert shares == sorted(shares)
    assert shares[-1] > 0.9
    asked = iter([False] * 5 + [True] * 100)
    assert index.marker_before(tape.next_record, lambda: next(asked)) is None
    assert index.looked_through > 0.8, "it did not go on to the beginning"
    assert player_index._BACK_BLOCKS > 1


def test_raw_lets_everything_through_and_nothing_else_does(tmp_path: Path) -> None:
    attack = b"\x1b]52;c;ZXZpbA==\x07\x1b]2;evil\x07\x1bP+q544e\x1b\\\x1b[6n\x1b[?1000h"

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path / "t"), protocol="ssh", more={"tty": [80, 24]})
        tape.append(OUT, Kind.WIRE, b"before" + attack + b"after\r\n")
        await tape.close("closed")
        return tape.path

    path = asyncio.run(scenario())
    for raw in (False, True):
        read, write = os.pipe()
        Player(TapeReader(path), ReplayOptions(raw=raw, color=True), write, None, timed=True).play()
        os.close(write)
        with os.fdopen(read, "rb") as file:
            seen = file.read()
        assert (attack in seen) is raw
        assert (b"beforeafter" in seen) is not raw
