"""Running sessions again: what texts tell, what rows' sums tell, how scripts are cut, what a report shows."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.postgres import outcomes, rowsets, wire
from protocols.postgres.outcomes import Messages, Question, Result, Side
from protocols.postgres.recorded import Recorded, RecordedAnswers, Script
from protocols.postgres.rowsets import CopySet, Room, RowSet
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.parties import Target
from proxy.policy.sql import read_sql
from proxy.reexecution.arguments import add_arguments
from proxy.reexecution.command import ReexecutionError, sandbox_target, start_parameters
from proxy.reexecution.compare import Difference, Entry
from proxy.reexecution.report import Report, exit_code, pair_rows
from proxy.reexecution.statements import TEXT_LIMIT, Facts, read_facts
from proxy.reexecution.trail import Trail
from proxy.snapshot import read_snapshot
from recorder.format import GATE, OUT, USER, Kind, Record
from recorder.reader import TapeReader
from recorder.seal import SealKey
from recorder.tape import Recorder

KEY = b"k" * 32


def row(*cells: bytes | None) -> bytes:
    body = len(cells).to_bytes(2, "big")
    for cell in cells:
        body += b"\xff\xff\xff\xff" if cell is None else len(cell).to_bytes(4, "big") + cell
    return wire.message(ord("D"), body)


def fact(text: str) -> Facts:
    (found,) = read_facts(text)
    return found


# -- texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("SELECT a, b FROM t", None),
        ("SELECT a, b FROM t ORDER BY b, 1", (1, 0)),
        ("SELECT a AS x, t.b FROM t ORDER BY t.b DESC, x", (1, 0)),
        ("SELECT a FROM t ORDER BY c", ()),
        ("SELECT a FROM t ORDER BY lower(a)", ()),
        ("SELECT * FROM t ORDER BY c", ("c",)),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1", (0,)),
        ("VALUES (1), (2) ORDER BY column1", ("column1",)),
        ("SELECT * FROM (SELECT a FROM t ORDER BY a) s", None),
        ("COPY (SELECT a FROM t ORDER BY b) TO STDOUT", ()),
        ("COPY t TO STDOUT", None),
    ],
)
def test_order(text: str, order: tuple[int | str, ...] | None) -> None:
    assert fact(text).order == order


@pytest.mark.parametrize(
    ("text", "volatile", "unsure"),
    [
        ("SELECT id, now(), current_date FROM t", (1, 2), ""),
        ("SELECT *, pg_catalog.random() AS r FROM t", (-1,), ""),
        ("SELECT now() AS n, * FROM t", (0,), ""),
        ("SELECT t.*, now() AS n, u.* FROM t, u", ("n",), ""),
        ("SELECT a FROM t WHERE at > now()", (), "its rows depend on now()"),
        ("SELECT * FROM (SELECT clock_timestamp()) s", (), "its rows depend on clock_timestamp()"),
        ("INSERT INTO t VALUES (nextval('s')) RETURNING a", (), "its rows depend on nextval()"),
        ("INSERT INTO t VALUES (1) RETURNING a, now()", (1,), ""),
        ("UPDATE t SET at = now() RETURNING a", (), "its rows depend on now()"),
        ("SELECT lower(a) FROM t", (), ""),
        ("SELECT oid FROM pg_catalog.pg_class", (), "it reads pg_class, which is each database's own"),
        ("EXPLAIN SELECT 1", (), "costs and times of a plan"),
        ("SELECT a FROM t TABLESAMPLE BERNOULLI (1)", (), "its rows depend on TABLESAMPLE"),
    ],
)
def test_volatile(text: str, volatile: tuple[int | str, ...], unsure: str) -> None:
    assert (fact(text).volatile, fact(text).unsure) == (volatile, unsure)


def test_texts_that_tell_nothing() -> None:
    assert read_facts("SELEC 1") == read_facts("SELECT '\0'") == ()
    assert read_facts("SELECT 1 --" + "x" * TEXT_LIMIT) == ()
    assert len(read_facts("SELECT 1; SELECT 2")) == 2
    assert len(read_facts("SELECT 1" + " + 1" * 5000)) in (0, 1)  # deep: read or not, never an error


# -- sums of rows -----------------------------------------------------------------------------------------

ROWS = st.lists(st.tuples(st.binary(max_size=4), st.none() | st.binary(max_size=4)), max_size=12)


def filled(rows: list[tuple[bytes, bytes | None]], **more: object) -> RowSet:
    made = RowSet(KEY, 2, room=Room(), **more)  # type: ignore[arg-type]
    made.add(b"".join(row(*each) for each in rows)) if rows else None
    return made


@given(ROWS, st.randoms(use_true_random=False))
def test_the_sum_is_that_of_the_multiset(rows: list[tuple[bytes, bytes | None]], random: object) -> None:
    other = list(rows)
    random.shuffle(other)  # type: ignore[attr-defined]
    one, two = filled(rows, order=()), filled(other, order=())
    assert one.digest == two.digest
    assert (one.sequence == two.sequence) == (rows == other)


@given(ROWS, ROWS)
def test_other_rows_have_another_sum(
    rows: list[tuple[bytes, bytes | None]], others: list[tuple[bytes, bytes | None]]
) -> None:
    equal = sorted(rows, key=repr) == sorted(others, key=repr)
    assert (filled(rows).digest == filled(others).digest) == equal


def test_columns_that_do_not_count_are_not_even_kept() -> None:
    made = filled([(b"a", b"secret")], wild=frozenset({1, 7}))
    assert made.digest == filled([(b"a", b"other")], wild=frozenset({1})).digest
    assert made.digest != filled([(b"b", b"secret")], wild=frozenset({1})).digest
    assert made.kept == [row(b"a", None)]


def test_order_by_some_columns_lets_ties_swap() -> None:
    one = filled([(b"1", b"a"), (b"1", b"b"), (b"2", b"c")], order=(0,))
    assert one.sequence == filled([(b"1", b"b"), (b"1", b"a"), (b"2", b"c")], order=(0,)).sequence
    assert one.sequence != filled([(b"2", b"c"), (b"1", b"b"), (b"1", b"a")], order=(0,)).sequence


@pytest.mark.parametrize("count", [2, 3, 4])
def test_rows_are_kept_up_to_the_limit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowsets, "KEPT_ROWS_LIMIT", 3)
    made = filled([(b"%d" % number, None) for number in range(count)])
    assert (made.count, len(made.kept), made.whole) == (count, min(count, 3), count <= 3)


def test_kept_rows_have_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(row(b"abc", None))
    for limit, whole in ((2 * size - 1, False), (2 * size, True), (2 * size + 1, True)):
        monkeypatch.setattr(rowsets, "KEPT_BYTES_LIMIT", limit)
        assert filled([(b"abc", None), (b"abd", None)]).whole is whole


def test_the_results_of_a_command_share_their_room() -> None:
    room = Room()
    room.rows = 3
    made = [RowSet(KEY, 2, room=room) for _ in range(2)]
    for each in made:
        each.add(row(b"a", None) * 2)
    assert [each.whole for each in made] == [True, False]


def test_copy_rows_without_a_masked_column() -> None:
    (statement,) = read_sql("COPY t (a, b) TO STDOUT")
    data = [wire.message(wire.COPY_DATA, text) for text in (b"1\tx\n", b"2\ty\n")]
    sets = []
    for rows in (data, [wire.message(wire.COPY_DATA, b"2\tz\n"), data[0]]):
        made = CopySet(KEY, 2, statement.copy, "UTF8", frozenset({1}), room=Room())
        made.add(b"".join(rows))
        sets.append(made)
    assert sets[0].digest == sets[1].digest
    assert not any(b"x" in each or b"y" in each for each in sets[0].kept)
    with pytest.raises(TargetPeerError):
        CopySet(KEY, 2, None, "UTF8", frozenset({1}))


# -- messages and scripts ---------------------------------------------------------------------------------


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    yield from (data[at : at + size] for at in range(0, len(data), size))


def reading(pieces: Iterator[bytes]) -> Messages:
    async def read() -> bytes:
        return next(pieces, b"")

    return Messages(read)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_messages_however_they_arrive(size: int) -> None:
    rows = [row(b"x" * (number * 7), None) for number in range(30)]
    data = wire.message(ord("C"), b"SELECT 1\0") + b"".join(rows) + wire.message(ord("Z"), b"I")

    async def all_of() -> list[tuple[int, bytes]]:
        messages = reading(chunks(data, size))
        found = []
        while (message := await messages.next()) is not None:
            found.append(message)
        return found

    found = asyncio.run(all_of())
    assert b"".join(each for _, each in found) == data
    assert [kind for kind, _ in found if kind != ord("D")] == [ord("C"), ord("Z")]


def test_a_message_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, good in ((15, False), (16, True), (17, True)):
        monkeypatch.setattr(outcomes, "MESSAGE_LIMIT", limit)
        messages = reading(iter([wire.message(ord("C"), b"x" * 12)]))
        if good:
            assert asyncio.run(messages.next()) is not None
        else:
            with pytest.raises(TargetPeerError):
                asyncio.run(messages.next())


@given(st.binary(max_size=200), st.integers(1, 40))
def test_garbage_ends_in_an_error_or_an_end(data: bytes, size: int) -> None:
    pieces = chunks(data, size)

    async def read() -> bytes:
        return next(pieces, b"")

    side = Side(read)
    question = Question(wire.QUERY, wire.encode_query(b"x"), lambda *_: RowSet(KEY, 1))
    with contextlib.suppress(TargetPeerError):
        assert asyncio.run(side.answer(question)) is not None


def packed(**fields: object) -> bytes:
    data: bytes = msgpack.packb(fields)
    return data


def tape(*records: tuple[int, Kind, bytes]) -> list[Record]:
    return [Record(n, n, channel, kind, payload) for n, (channel, kind, payload) in enumerate(records)]


QUERY = wire.encode_query(b"SELECT 1")
SYNC = wire.message(wire.SYNC, b"")


def test_a_script_has_commands_verdicts_and_replacements() -> None:
    stand_in = wire.encode_query(b"no")
    script = Script(
        tape(
            (USER, Kind.COMMAND, packed(verb="CONNECT", kind="session", text="connect to shop/shop")),
            (GATE, Kind.VERDICT, packed(command=0, verdict="allow", rule="r")),
            (USER, Kind.COMMAND, packed(verb="SET", kind="session", text="SET TimeZone = 'it\\'s'")),
            (GATE, Kind.VERDICT, packed(command=2, verdict="allow", rule="r")),
            (USER, Kind.WIRE, QUERY[:3]),
            (USER, Kind.WIRE, QUERY[3:]),
            (USER, Kind.COMMAND, packed(verb="SELECT", kind="read", text="SELECT 1")),
            (OUT, Kind.WIRE, b"whatever"),
            (GATE, Kind.VERDICT, packed(command=6, verdict="deny", rule="no", reason="why", masks=["m"])),
            (GATE, Kind.WIRE, stand_in),
            (USER, Kind.WIRE, SYNC),
            (USER, Kind.WIRE, SYNC + QUERY[:7]),
        )
    )
    assert script.opening.parameters == {"TimeZone": "it's"}
    first = script.take()
    assert first is not None and first.command is not None
    assert (first.wire, first.replacement, first.whole) == (QUERY, stand_in, True)
    assert (first.command.number, first.command.record, first.command.verdict) == (3, 6, "deny")
    assert (first.command.rule, first.command.reason, first.command.masks) == ("no", "why", ("m",))
    kinds = [(each.kind, each.whole) for each in iter(script.take, None)]
    assert kinds == [(wire.SYNC, True), (wire.SYNC, True), (wire.QUERY, False)]  # cut off at the end


def test_what_was_lost_in_a_crash_ends_a_script() -> None:
    gap = (GATE, Kind.MARK, packed(label="gap", text="9 records were lost"))
    script = Script(tape((USER, Kind.WIRE, QUERY), gap, (USER, Kind.WIRE, QUERY)))
    assert len(list(iter(script.take, None))) == 1
    assert "lost in a crash" in script.lost
    answers = RecordedAnswers(tape((OUT, Kind.WIRE, b"a"), gap, (OUT, Kind.WIRE, b"b")))
    assert [asyncio.run(answers.read()) for _ in range(3)] == [b"a", b"", b""]


def test_copy_frames_end_with_the_copy() -> None:
    data, done = wire.message(wire.COPY_DATA, b"1\n"), wire.message(wire.COPY_DONE, b"")
    script = Script(tape(*((USER, Kind.WIRE, each) for each in (SYNC, data, SYNC, data, done, SYNC, QUERY))))
    assert list(script.copy_frames()) == [data, data, done]
    assert [each.kind for each in iter(script.take, None)] == [wire.SYNC, wire.QUERY]


def test_masks_hold_for_one_result() -> None:
    said = packed(command=1, fields=[["email", 1, "pii"], "odd"])
    answers = RecordedAnswers(tape((GATE, Kind.MASKMAP, said), (OUT, Kind.WIRE, b"rows")))
    assert asyncio.run(answers.read()) == b"rows"
    assert (answers.take_masked(), answers.take_masked()) == ({1: "pii"}, {})


# -- report and command -----------------------------------------------------------------------------------


def test_a_report_cannot_act_on_a_terminal() -> None:
    out = io.StringIO()
    report = Report(out, as_json=False, colour=False)
    evil = "\x1b]0;x\x07\u202e\x9b2J"
    command = Recorded(1, 1, "SELECT", "read", f"SELECT {evil}")
    difference = Difference("rows", evil, evil, 0, (evil,), ((evil,),), ((evil, None),))
    report.begin({"session": evil, "recorded_on": evil, "sandbox": evil, "notes": [evil]})
    report.entry(Entry(command, "different", evil, [evil], [difference]))
    report.end({}, 1)
    assert "\x1b" not in out.getvalue() and "\u202e" not in out.getvalue() and "\x9b" not in out.getvalue()
    assert "1 command: 1 different" in out.getvalue()


def test_rows_with_one_key_are_shown_as_changed() -> None:
    changed, left, right = pair_rows([("1", "a"), ("2", "b")], [("2", "c"), ("3", None)])
    assert changed == [(("2", "b"), ("2", "c"))]
    assert (left, right) == ([("1", "a")], [("3", None)])
    assert pair_rows([("1", "a"), ("1", "b")], [("1", "c")])[0] == []  # a key that two rows share is none


@pytest.mark.parametrize(
    ("states", "code"),
    [(["same", "skipped"], 0), (["same", "not-replayable"], 2), (["not-replayable", "different"], 1), ([], 0)],
)
def test_exit_codes(states: list[str], code: int) -> None:
    report = Report(io.StringIO(), as_json=True, colour=False)
    for state in states:
        report.entry(Entry(Recorded(1, 1, "", "", ""), state))  # type: ignore[arg-type]
    assert exit_code(report.states) == code


CONFIG = """\
listeners: [{name: pg, protocol: postgres, address: '127.0.0.1:0', plain: true}]
targets:
  - {name: shop, host: 127.0.0.1, credential: {user: x}}
  - {name: lab, host: 127.0.0.1, database: trial, credential: {user: x}, sandbox: true}
rules: []
"""


def test_only_a_sandbox_is_run_on(tmp_path: Path) -> None:
    path = tmp_path / "gatecast.yaml"
    path.write_text(CONFIG)
    snapshot = read_snapshot(path, KEY)
    with pytest.raises(ConfigError, match=r'gatecast.yaml:3: .*add to this target the line "sandbox: true"'):
        sandbox_target(snapshot, "shop")
    with pytest.raises(ConfigError, match="there is no target nothing; sandboxes: lab"):
        sandbox_target(snapshot, "nothing")
    assert sandbox_target(snapshot, "lab").database == "trial"
    assert sandbox_target(snapshot, "lab/other").database == "other"


def test_the_sandbox_shows_values_as_the_recording_did() -> None:
    records = tape((USER, Kind.COMMAND, packed(verb="SET", text="SET timezone = 'UTC'")), (USER, Kind.WIRE, SYNC))
    reported = {"TimeZone": "UTC", "DateStyle": "German, DMY", "server_version": "18.1", "is_superuser": "on"}
    assert start_parameters(Script(records).opening, reported) == {"timezone": "UTC", "DateStyle": "German, DMY"}


def test_results_know_their_errors() -> None:
    assert Result(error={"code": "42P01", "message": "", "severity": "ERROR"}).code == "42P01"
    assert ReexecutionError("x").args == ("x",)


def test_the_page_names_every_option_and_every_state() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    page = (Path(__file__).parents[1] / "docs" / "reexecution.md").read_text()
    assert {name for name in options if f"`{name}" not in page} == {"--help"}


@pytest.mark.parametrize("secret", [True, False])
def test_the_text_of_an_encrypted_recording_goes_on_no_plain_tape(tmp_path: Path, secret: bool) -> None:
    async def write() -> None:
        recorder = Recorder(tmp_path, SealKey.generate(), node="n", boot="b")
        try:
            trail = Trail(Target("lab", "postgres", recording="written"), "01X", "operator:ana", (), secret)
            trail.open(recorder)
            await trail.sending(Recorded(1, 1, "SELECT", "read", "SELECT 'canary'"), wire.encode_query(b"'canary'"))
            await trail.close()
        finally:
            recorder.close()

    asyncio.run(write())
    (path,) = (each for each in tmp_path.rglob("*.gct"))
    records = list(TapeReader(path).records())
    assert any(b"canary" in each.payload for each in records) is not secret
    assert [each.kind for each in records][-3:] == [Kind.COMMAND, Kind.VERDICT, Kind.CLOSE]
