"""What a person sees of a session of several streams: on a screen, as text, one stream alone, from the middle, live."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from recorder.player_options import BadOption
from recorder.reader import TapeReader
from recorder.replay import Player, ReplayOptions, Spot, print_markers
from recorder.replay_flows import print_flows
from recorder.tape import ERR, OUT, USER, Kind
from recorder.transcript_flows import FlowTranscript, transcript_of
from tests.recorder import ssh_tapes
from tests.recorder.ssh_tapes import Story, write
from tests.recorder.tapes import Clock, open_tape, pack, recorder
from tests.recorder.test_tape_replay import Viewer


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    one = Viewer()
    yield one
    one.close()


def shown(path: Path, *, screen: bool, color: bool = False) -> str:
    """The whole session as it is rendered, without its first two lines."""
    tape = TapeReader(path)
    transcript = transcript_of(tape.header.map_, screen=screen, color=color, terminal=screen, newline="\n")
    pieces = [piece for record in tape.records() for piece in transcript.feed(record)]
    return "".join(piece.text for piece in pieces if piece.code == "o")


def told(tmp_path: Path, tell: Callable[[Story], None], *, screen: bool = False) -> str:
    text = shown(write(tmp_path, tell)[0], screen=screen)
    return text[text.index("connected") :].split("\n", 1)[1].removesuffix("-- session closed: user left\n")


def played(path: Path, tmp_path: Path, **options: object) -> str:
    """What a player prints where there is no terminal."""
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        Player(TapeReader(path), ReplayOptions(**options), out, None, timed=False).play()  # type: ignore[arg-type]
    finally:
        os.close(out)
    return (tmp_path / "out").read_text()


# -- as text ----------------------------------------------------------------------------------------------


def test_execs_that_overlap_are_told_apart(tmp_path: Path) -> None:
    assert told(tmp_path, ssh_tapes.execs).split("\n") == [
        "shop$ for i in 1 2; do date; done",
        "shop$ make -C /srv/app test",
        "shop$ cat /srv/app.tar.gz",
        "-- Q2 flow 0: for i in 1 2; do date; done",
        "first of zero",
        "-- Q3 flow 1: make -C /srv/app test",
        "first of one",
        "warning: on the error channel",
        "-- Q4 flow 2: cat /srv/app.tar.gz",
        "-- binary output: export --format bytes --flow 2 writes it",
        "-- Q2 flow 0: for i in 1 2; do date; done",
        "second of zero, without an end",
        "-- Q3 flow 1: make -C /srv/app test",
        "red second of one",
        "[exit 2, 401.0 ms, 70 B]",
        "Q2 [exit 0, 452.0 ms, 44 B]",
        "Q4 [signal TERM, 450.0 ms, 267 B]",
        "",
    ]


def test_file_commands_are_a_line_each(tmp_path: Path) -> None:
    assert told(tmp_path, ssh_tapes.sftp).split("\n") == [
        "shop$ sftp",
        "ls /srv  0.0 ms",
        f"put /srv/app.tar.gz  12.4 MiB  sha256 {ssh_tapes.SHA256[:12]}  812.0 ms",
        "get /srv/big.iso  4.0 KiB  not in order: no sha256  not complete  100.0 ms",
        "rename /srv/a -> /srv/b  0.0 ms",
        "[DENIED] get /etc/shadow  rule=keep-out: not from here - not forwarded",
        "rm /srv/none  ERROR 2: No such file",
        "[exit 0, 918.0 ms, 12.4 MiB up, 4.9 KiB down]",
        "",
    ]


def test_holds_and_forwards(tmp_path: Path) -> None:
    assert told(tmp_path / "held", ssh_tapes.held).split("\n") == [
        "shop$ systemctl restart app",
        "[hold] rule=restarts needs one of: group:oncall  approval A7",
        "[approved] by mia@acme after 41.00 s",
        "[allow] rule=ops",
        "gatecast: approved by mia@acme",
        "[exit 0, 0.0 ms, 31 B]",
        "shop$ sftp",
        "Q4 put /etc/passwd",
        "[hold] rule=restarts needs one of: group:oncall  approval A8",
        "[expired] after 1.00 s",
        "[DENIED] put /etc/passwd  rule=keep-out: nobody approved it in time - not forwarded",
        "",
    ]
    assert told(tmp_path / "forward", ssh_tapes.forward).split("\n") == [
        "forward db.internal:5432  [allow] rule=ops",
        "forward db.internal:5432  (12.0 KiB up, 3.0 MiB down, 4.00 s)",
        "[DENIED] forward vault:8200  rule=keep-out: not from here - not forwarded",
        "listen 0.0.0.0:8080  [allow] rule=ops",
        "",
    ]


def test_two_terminals_without_a_screen_are_text_by_turns(tmp_path: Path) -> None:
    text = told(tmp_path, ssh_tapes.two_terminals)
    assert "\x1b" not in text
    order = ["-- Q3 flow 0: shell", "echo zero", "-- Q5 flow 1: shell", "echo one", "Q3 [exit 0", "echo more"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


def test_what_a_program_prints_cannot_rewrite_the_gates_lines(tmp_path: Path) -> None:
    def tell(story: Story) -> None:
        n = story.command("exec", "evil \x1b[2J", flow=0)
        story.wire(0, OUT, b"\x1b[1A\x1b[2K\x1b]52;c;x\x07nothing was \x9b2Jdenied\x1b[8m\n")
        story.wire(0, ERR, b"\x1b[3A\x1b[2Jhere\n")
        story.result(n, "exit 0\x1b[2J", flow=0, exit=0)

    path, _ = write(tmp_path, tell)
    for screen in (False, True):
        text = shown(path, screen=screen, color=screen)
        ours = re.sub("\x1b\\[[0-9;]*m", "", text)
        assert "\x1b" not in ours and "\x9b" not in ours
        assert "evil ^[[2J" in ours
        assert "[exit 0^[[2J" in ours


# -- on a screen ------------------------------------------------------------------------------------------


def test_a_terminal_is_shown_as_it_was(tmp_path: Path) -> None:
    path, story = write(tmp_path, ssh_tapes.a_shell)
    text = shown(path, screen=True, color=True)
    assert story.out[0, OUT].decode().replace("\r\n", "\n") in text.replace("\r\n", "\n")
    assert "[DENIED]" not in text, "the screen shows what became of the line"
    assert text.count("exit 0, 8.11 s") == 1


def test_lines_and_denials_on_a_terminal_are_markers(tmp_path: Path) -> None:
    tape = TapeReader(write(tmp_path, ssh_tapes.a_shell)[0])
    transcript = transcript_of(tape.header.map_)
    pieces = [piece for record in tape.records() for piece in transcript.feed(record)]
    markers = [piece.text for piece in pieces if piece.code == "m"]
    assert markers[2:] == ["Q3 shell", "Q4 ls /srv", "Q5 rm -rf /", "DENY Q5", "Q6 exit", "CLOSE"]
    assert [piece.text for piece in pieces if piece.code == "r"] == ["80x24", "100x30"]


def test_what_happened_beside_a_terminal_is_told_when_it_ends(tmp_path: Path) -> None:
    text = told(tmp_path, ssh_tapes.shell_and_copy, screen=True).replace("\r\n", "\n")
    screen, _, after = text.partition("[exit 0, 3.10 s, 200 B]")
    assert screen.endswith("two\nthree\n\x1b[0m\x1b(B\x1b7\x1b[r\x1b8\x1b[?25h\x1b[?7h\n")
    assert "uptime" not in screen
    assert after.split("\n") == [
        "",
        "-- meanwhile on this connection:",
        "shop$ uptime",
        "[exit 0, 0.0 ms, 11 B]",
        "shop$ hostname",
        "shop-1",
        "[exit 0, 0.0 ms, 7 B]",
        "",
    ]


def test_the_first_of_two_terminals_keeps_the_screen(tmp_path: Path) -> None:
    text = told(tmp_path, ssh_tapes.two_terminals, screen=True)
    assert "echo zero" in text and "echo one" not in text
    assert text.index("-- flow 1 goes on; --flow 1 shows what it did before") < text.index("echo more")


def test_what_is_kept_for_later_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.transcript_flows.LATER_LIMIT", 3)

    def tell(story: Story) -> None:
        n = story.shell(0)
        for number in range(1, 5):
            story.command("exec", f"run {number}", flow=number)
        story.result(n, "exit 0", flow=0, exit=0)

    text = told(tmp_path, tell, screen=True)
    assert "run 3" in text and "run 4" not in text
    assert "-- and 1 more lines" in text


def test_a_session_that_ends_with_its_terminal_open_leaves_the_screen(tmp_path: Path) -> None:
    def tell(story: Story) -> None:
        story.shell(0)
        story.wire(0, OUT, b"\x1b[?1049hvim")

    path, _ = write(tmp_path, tell)
    assert "vim\x1b[?1049l\x1b[0m" in shown(path, screen=True)


def test_streams_that_are_remembered_are_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("recorder.transcript_flows.VIEWS_LIMIT", 4)

    def tell(story: Story) -> None:
        for number in range(20):
            story.command("exec", f"run {number}", flow=number)

    tape = TapeReader(write(tmp_path, tell)[0])
    transcript = transcript_of(tape.header.map_)
    assert isinstance(transcript, FlowTranscript)
    for record in tape.records():
        transcript.feed(record)
    assert len(transcript._views) == 4


# -- the player -------------------------------------------------------------------------------------------


def test_one_stream_is_played_alone(tmp_path: Path) -> None:
    path, _ = write(tmp_path, ssh_tapes.execs)
    text = played(path, tmp_path, flow=1)
    assert [line for line in text.split("\n") if line][2:] == [
        "... 1 commands before" if "... 1" in text else "... 2 commands before",
        "shop$ make -C /srv/app test",
        "[allow] rule=ops",
        "first of one",
        "warning: on the error channel",
        "red second of one",
        "[exit 2, 401.0 ms, 70 B]",
    ]
    with pytest.raises(BadOption, match="there is no flow 3"):
        played(path, tmp_path, flow=3)


def test_a_stream_of_a_session_that_is_one_stream_is_no_option(tmp_path: Path) -> None:
    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path))
        await tape.close("closed")
        return tape.path

    with pytest.raises(BadOption, match="one stream"):
        played(asyncio.run(scenario()), tmp_path, flow=0)


def test_without_a_terminal_all_is_printed_as_text(tmp_path: Path) -> None:
    path, _ = write(tmp_path, ssh_tapes.shell_and_copy)
    text = played(path, tmp_path)
    assert "\x1b" not in text
    assert text.index("shop$ uptime") < text.index("up 12 days") < text.index("two") < text.index("three")
    assert "    flow 0  shell 80x24  shell\n    flow 1  exec  uptime\n    flow 2  exec  hostname\n" in text


def test_the_screen_shows_the_terminal_and_keys_go_through_it(viewer: Viewer, tmp_path: Path) -> None:
    def tell(story: Story) -> None:
        shell = story.shell(0)
        story.clock.pass_ms(1_000_000)
        story.line(0, "ls", b"\x1b[34mdata\x1b[0m\r\n")
        story.clock.pass_ms(1_000_000)
        story.line(0, "exit", b"logout\r\n")
        story.result(shell, "exit 0", flow=0, exit=0)

    viewer.watch(write(tmp_path, tell)[0])
    viewer.until("\x1b[32mdeploy@shop\x1b[0m:~$ ")
    viewer.press(" ]]")
    viewer.until("ls")
    viewer.press("]")
    before = viewer.until("exit")
    assert "\x1b[34mdata" in before
    viewer.press("]")
    viewer.until("[exit 0")
    viewer.press("q")
    viewer.ends()


def test_a_stream_alone_begins_with_it_and_ends_with_it(viewer: Viewer, tmp_path: Path) -> None:
    """Neither the day before it is waited for, nor the day after it."""

    def tell(story: Story) -> None:
        story.clock.pass_ms(1_000_000)
        shell = story.shell(0)
        story.command("exec", "beside", flow=1)
        story.wire(1, OUT, b"said beside\n")
        story.wire(0, OUT, b"on the terminal\r\n")
        story.result(shell, "exit 0", flow=0, exit=0)
        story.clock.pass_ms(1_000_000)

    viewer.watch(write(tmp_path, tell)[0], flow=0)
    before = viewer.until("[exit 0")
    assert "on the terminal" in before and "beside" not in before
    viewer.ends()


def test_a_live_session_goes_on_where_it_is(viewer: Viewer, tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path, monotonic_ns=clock), protocol="ssh")
        story = Story(tape, clock)
        shell = story.shell(0)
        for number in range(300):
            story.line(0, f"echo {number}", b"so\r\n")
            await tape.commit()
        viewer.watch(tape.path, follow=True)
        await asyncio.to_thread(viewer.until, "echo 299")
        story.wire(0, OUT, b"\x1b[31mnews\x1b[0m\r\n")
        await tape.written()
        await asyncio.to_thread(viewer.until, "\x1b[31mnews\x1b[0m")
        story.result(shell, "exit 0", flow=0, exit=0)
        n = story.command("exec", "uptime", flow=1)
        story.wire(1, OUT, b"up 12 days\n")
        story.result(n, "exit 0", flow=1, exit=0)
        await tape.written()
        await asyncio.to_thread(viewer.until, "up 12 days")
        await tape.close("closed")
        await asyncio.to_thread(viewer.until, "session closed")

    asyncio.run(scenario())
    viewer.ends()


# -- from the middle --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 MB of a terminal, an exec beside it all the time that began in the middle, and 400 lines."""
    from tests.recorder import tapes

    text = b"".join(b"%05d \x1b[3%dma line of a build\x1b[0m\r\n" % (i, i % 8) for i in range(600))

    async def tell(story: Story) -> None:
        story.shell(0)
        for number in range(400):
            story.line(0, f"make part {number}", b"")
            if number == 200:
                story.command("exec", "tail -f log", flow=1)
            for _ in range(5):
                story.wire(0, OUT, text)
                await story.tape.written()
            if number >= 200:
                story.wire(1, OUT, b"beside %d\n" % number)
            await story.tape.commit()

    path, _ = write(tmp_path_factory.mktemp("long"), tell)
    for made in tapes.made:
        made.close()
    return path


def drawn(path: Path, tmp_path: Path, spot: Spot, seconds_limit: float, **options: object) -> str:
    out = os.open(tmp_path / "screen", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        began = time.process_time()  # a guard against reading it all; benchmarks/replay.py measures
        player = Player(TapeReader(path), ReplayOptions(**options), out, None, timed=True)  # type: ignore[arg-type]
        opened = time.process_time()
        player._draw(spot)
        took = time.process_time() - opened
    finally:
        os.close(out)
    assert opened - began < 0.15 and took < 3 * seconds_limit, (opened - began, took)
    return (tmp_path / "screen").read_text()


def test_a_long_session_opens_and_jumps_at_once(long_session: Path, tmp_path: Path) -> None:
    last = TapeReader(long_session).next_record - 1
    for n in (last // 4, last // 2, last - 30, last // 3):
        text = drawn(long_session, tmp_path, Spot(n, 10**9), 0.1)
        assert "\x1b[34ma line of a build" in text, "the terminal, as it was"
        assert "beside" not in text, "nothing of the other stream is written into it"
    text = drawn(long_session, tmp_path, Spot(last - 30, 10**9), 0.1, flow=1)
    assert "beside 399" in text or "beside 398" in text
    assert "a line of a build" not in text
    assert "beside" in drawn(long_session, tmp_path, Spot(last - 30, 10**9), 0.1, interleave=True)


# -- lists ------------------------------------------------------------------------------------------------


def test_flows_are_listed(tmp_path: Path) -> None:
    path, story = write(tmp_path, ssh_tapes.shell_and_copy)
    out = io.StringIO()
    with redirect_stdout(out):
        print_flows(TapeReader(path), as_json=False)
    assert [line.split()[:1] + line.split()[-1:] for line in out.getvalue().splitlines()] == [
        ["FLOW", "WHAT"],
        ["0", "shell"],
        ["1", "uptime"],
        ["2", "hostname"],
    ]
    out = io.StringIO()
    with redirect_stdout(out):
        print_flows(TapeReader(path), as_json=True)
    found = json.loads(out.getvalue())
    assert [flow["text"] for flow in found] == ["shell", "uptime", "hostname"]
    assert (found[0]["terminal"], found[0]["columns"], found[1]["columns"]) == (True, 80, None)
    assert found[0]["sent"] == len(story.out[0, USER])


def test_a_tape_without_flows_says_so(tmp_path: Path) -> None:
    path, _ = write(tmp_path, lambda story: None)
    out = io.StringIO()
    with redirect_stdout(out):
        print_flows(TapeReader(path), as_json=False)
    assert out.getvalue() == "The session has no flows: it is one stream.\n"


def test_markers_are_listed_with_their_commands(tmp_path: Path) -> None:
    path, _ = write(tmp_path, ssh_tapes.sftp)
    out = io.StringIO()
    with redirect_stdout(out):
        print_markers(TapeReader(path), ReplayOptions())
    lines = [line.split(maxsplit=3) for line in out.getvalue().splitlines()]
    assert [line[1:3] for line in lines] == [["Q7", "DENY"], ["Q8", "ERROR"]]


def test_an_unknown_kind_and_nonsense_are_survived(tmp_path: Path) -> None:
    tape = TapeReader(write(tmp_path, ssh_tapes.execs)[0])
    transcript = transcript_of(tape.header.map_)
    from recorder.format import Record

    for kind in [*Kind, 99]:
        for payload in (b"", b"\xc1", pack([1]), pack({"flow": 0, "command": "x", "objects": 1, "verb": 3})):
            transcript.feed(Record(5, 0, 2, kind, payload, flow=0))
    assert transcript.reset() != ""


def test_after_a_jump_the_terminal_that_began_first_has_the_screen(tmp_path: Path) -> None:
    """As if all had been played: whichever of the two happens to print first behind the place."""

    async def tell(story: Story) -> None:
        story.shell(0)
        story.shell(1)
        for number in range(400):
            story.wire(1, OUT, b"other %d\r\n" % number)
            await story.tape.written()
            story.wire(0, OUT, b"first %d\r\n" % number)
            await story.tape.written()

    path, _ = write(tmp_path, tell)
    last = TapeReader(path).next_record - 2
    text = drawn(path, tmp_path, Spot(last, 10**9), 0.1)
    assert "first 399" in text and "other" not in text
    text = drawn(path, tmp_path, Spot(last, 10**9), 0.1, flow=1)
    assert "other 399" in text and "first" not in text
