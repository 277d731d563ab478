"""Flows on the tape: read back, told apart, looked up from the middle, and covered by the seal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgpack
import pytest

from recorder import flows_find
from recorder.errors import FormatError
from recorder.flows import Flow, FlowFilter, Flows
from recorder.flows_find import FlowFinder
from recorder.format import ERR, OUT, USER, Block, BlockType, Joiner, Kind, Record, decode_records
from recorder.player_index import TapeIndex
from recorder.reader import TapeReader
from recorder.verify import verify
from tests.recorder import ssh_tapes
from tests.recorder.ssh_tapes import Story, write
from tests.recorder.tapes import KEY, pack


def finder(path: Path) -> FlowFinder:
    tape = TapeReader(path)
    return FlowFinder(tape, TapeIndex(tape))


def flows_of(path: Path) -> list[Flow]:
    flows = Flows()
    for record in TapeReader(path).records():
        flows.feed(record)
    return flows.all()


def decoded(*metas: Any) -> list[Record]:
    raw = b"".join(pack([n, 0, 1, 1, b"x", *([] if meta is None else [meta])]) for n, meta in enumerate(metas))
    return decode_records(Block(0, BlockType.DATA, 0, 0, 0, 0, len(metas), len(raw), len(raw)), raw)


# -- records ----------------------------------------------------------------------------------------------


def test_a_record_has_its_flow_and_one_without_has_none() -> None:
    found = decoded({"flow": 0}, None, {"flow": 70_000}, {"later": 1})
    assert [record.flow for record in found] == [0, None, 70_000, None]


@pytest.mark.parametrize("flow", [-1, "1", 1.0, True, [1], b"1"])
def test_a_flow_that_is_no_number_is_refused(flow: object) -> None:
    with pytest.raises(FormatError, match="flow is no number"):
        decoded({"flow": flow})


def test_a_joined_record_keeps_its_flow() -> None:
    joiner = Joiner()
    assert joiner.feed(Record(4, 0, 0, Kind.RESIZE, b"a", 0, 1, 3)) is None
    whole = joiner.feed(Record(5, 0, 0, Kind.RESIZE, b"b", 1, 0, 3))
    assert whole is not None
    assert (whole.payload, whole.flow) == (b"ab", 3)


def test_what_was_appended_is_what_is_read(tmp_path: Path) -> None:
    path, story = write(tmp_path, ssh_tapes.execs)
    found: dict[tuple[int, int], bytes] = {}
    for record in TapeReader(path).records():
        if record.kind == Kind.WIRE and record.flow is not None:
            found[record.flow, record.channel] = found.get((record.flow, record.channel), b"") + record.payload
    assert found == story.out
    assert {flow for flow, _ in found} == {0, 1, 2}


def test_a_long_command_of_a_flow_is_in_the_index(tmp_path: Path) -> None:
    """Its parts have both, part and flow, and the index must not take a piece for the whole."""

    def tell(story: Story) -> None:
        text = "echo " + "x" * 600_000
        entry = {"verb": "exec", "kind": "execute", "text": text, "flow": 0}
        n = story.tape.append(USER, Kind.COMMAND, pack(entry), entry, flow=0)
        story.verdict(n)

    path, _ = write(tmp_path, tell)
    tape = TapeReader(path)
    assert [entry.text[:6] for entry in tape.commands()][1:] == ["echo x"]
    assert [record.flow for record in tape.records() if record.kind == Kind.COMMAND] == [None, 0]


# -- the seal ---------------------------------------------------------------------------------------------


def test_a_flow_cannot_be_changed_without_notice(tmp_path: Path) -> None:
    path, _ = write(tmp_path, lambda story: story.wire(5, OUT, b"the text of flow five"))
    data = path.read_bytes()
    at = data.index(pack({"flow": 5}))
    assert data[at + len(pack({"flow": 5})) - 1] == 5
    good = verify(path, keys_of()).tapes[0]
    assert good.status == "verified", good
    path.write_bytes(data[: at + len(pack({"flow": 5})) - 1] + b"\x06" + data[at + len(pack({"flow": 5})) :])
    assert verify(path, keys_of()).tapes[0].status == "altered"


# -- what the flows are -----------------------------------------------------------------------------------


def test_a_terminal_is_told_by_its_size(tmp_path: Path) -> None:
    path, story = write(tmp_path, ssh_tapes.a_shell)
    [flow] = flows_of(path)
    assert (flow.number, flow.verb, flow.text, flow.terminal) == (0, "shell", "shell", True)
    assert (flow.columns, flow.rows) == (100, 30)
    assert flow.sent == len(story.out[0, USER]) and flow.out == len(story.out[0, OUT])
    assert (flow.tag, flow.ended_ns > flow.t_ns) == ("exit 0", True)


def test_bytes_are_counted_by_direction_and_what_is_not_taped_is_taken_from_the_result(tmp_path: Path) -> None:
    path, story = write(tmp_path, ssh_tapes.execs)
    flows = flows_of(path)
    assert [(flow.out, flow.err) for flow in flows] == [
        (len(story.out[n, OUT]), len(story.out.get((n, ERR), b""))) for n in range(3)
    ]
    assert [flow.tag for flow in flows] == ["exit 0", "exit 2", "signal TERM"]
    path, _ = write(tmp_path / "sftp", ssh_tapes.sftp)
    [transfer] = flows_of(path)
    assert (transfer.up, transfer.down, transfer.kind) == (13_000_200, 5_000, "transfer")
    assert not transfer.shows_text


def test_an_exec_that_is_denied_leaves_room_for_another(tmp_path: Path) -> None:
    def tell(story: Story) -> None:
        story.command("exec", "rm -rf /", verdict="deny", flow=0)
        n = story.command("exec", "ls", flow=0)
        story.result(n, "exit 0", flow=0, exit=0)

    path, _ = write(tmp_path, tell)
    [flow] = flows_of(path)
    assert (flow.text, flow.verdict, flow.tag) == ("ls", "allow", "exit 0")
    found = finder(path).find(0)
    assert found is not None and (found.text, found.verdict) == ("ls", "allow")


def test_a_filter_keeps_one_flow_and_what_is_said_of_its_commands(tmp_path: Path) -> None:
    path, _ = write(tmp_path, ssh_tapes.execs)
    kept_by = FlowFilter(1)
    kept = [record for record in TapeReader(path).records() if kept_by.keeps(record)]
    assert [record.kind for record in kept] == [2, 3, 1, 1, 1, 5, 10]
    assert {record.flow for record in kept if record.kind == Kind.WIRE} == {1}
    said = msgpack.unpackb(kept[0].payload)
    assert said["text"] == "make -C /srv/app test"
    assert msgpack.unpackb(kept[1].payload)["command"] == kept[0].n


def test_no_more_flows_are_kept_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.flows.FLOWS_LIMIT", 3)
    flows = Flows()
    for number in range(5):
        flows.feed(Record(number, 0, OUT, Kind.WIRE, b"x", flow=number))
    assert ([flow.number for flow in flows.all()], flows.dropped) == ([2, 3, 4], 2)


def test_nonsense_is_survived() -> None:
    flows, kept_by = Flows(), FlowFilter(0)
    for kind in Kind:
        for payload in (b"", b"\xc1", pack([1]), pack({"flow": "x", "command": []}), pack({"command": -1, "flow": 0})):
            record = Record(1, 0, 2, kind, payload, flow=0 if kind in (Kind.WIRE, Kind.RESIZE) else None)
            flows.feed(record)
            assert kept_by.keeps(record) in (True, False)
    assert [flow.number for flow in flows.all()] == [0]


# -- looking up -------------------------------------------------------------------------------------------


async def ten_thousand(story: Story) -> None:
    """Channels one after the other, among them a shell on which lines are typed, and three that overtake each other."""
    shell = story.shell(0)
    for number in range(1, 10_001):
        first = number + {0: 1, 1: -1}.get(number % 100, 0) if 1 < number < 10_000 else number  # some overtake others
        n = story.command("exec", f"run {first}", flow=first)
        await story.tape.written()  # as a command is before it leaves
        story.wire(first, OUT, b"x")
        story.result(n, "exit 0", flow=first, exit=0)
        if not number % 50:
            story.command("line", f"line {number}", flow=0, exact=False)
    story.result(shell, "exit 0", flow=0, exit=0)


def test_a_flow_is_found_among_many_and_soon(tmp_path: Path) -> None:
    path, _ = write(tmp_path, ten_thousand)
    for number in (0, 1, 57, 99, 100, 101, 5_000, 9_999, 10_000):
        looking = finder(path)
        began = time.process_time()  # a guard against reading it all; benchmarks/replay.py measures
        found = looking.find(number)
        assert time.process_time() - began < 0.3
        assert found is not None, number
        assert (found.number, found.terminal) == (number, number == 0)
        assert found.text == ("shell" if not number else f"run {number}")
    assert finder(path).find(20_000) is None


def test_what_was_found_is_not_changed_by_whoever_shows_it(tmp_path: Path) -> None:
    path, _ = write(tmp_path, ssh_tapes.a_shell)
    looking = finder(path)
    found = looking.find(0)
    assert found is not None
    found.terminal, found.n = False, 99
    again = looking.find(0)
    assert again is not None and again.terminal and again.n != 99


def test_terminals_are_known_before_anything_is_played(tmp_path: Path) -> None:
    assert finder(write(tmp_path / "a", ssh_tapes.a_shell)[0]).has_terminal()
    looking = finder(write(tmp_path / "b", ssh_tapes.execs)[0])
    assert not looking.has_terminal()
    flows, more = looking.openers(2)
    assert ([flow.number for flow in flows], more) == ([0, 1], 1)


def test_the_limits_of_looking_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = write(tmp_path, ssh_tapes.execs)
    monkeypatch.setattr(flows_find, "SEGMENTS_LIMIT", 0)
    assert finder(path).find(1) is None


def keys_of() -> Any:
    return KEY.public_keys()
