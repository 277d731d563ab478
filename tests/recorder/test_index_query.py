"""Questions to the index: filters, times, free text whatever it holds, hits, and the two faces of list and walk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recorder import index_arguments, index_query
from recorder.cli import SessionFilter, find_tape, list_sessions
from recorder.index import Index
from recorder.index_query import NothingToLookFor, Wanted, count_cut, find_commands, find_sessions, terms
from recorder.tape import GATE, USER, Kind
from recorder.ulid import is_ulid
from recorder.when import span_of
from tests.recorder.tapes import Clock, command, open_tape, pack, recorder, small_tape

NOON = 1_790_000_000_000_000_000  # 2026-09-21T14:13:20Z
HOUR = 3_600_000_000_000
DAY = 24 * HOUR


async def write(directory: Path) -> None:
    """Three sessions on three days."""
    wall = Clock()
    wall.ns = NOON
    of = recorder(directory, wall_ns=wall)
    one = open_tape(of, identity={"subject": "ana@acme", "agents": ["claude"]}, target="shop", run="run-7")
    one.append(USER, Kind.INTENT, pack({"text": "refund 100% of order_812"}))
    command(one, "SELECT id FROM orders WHERE note = 'Zürich'", objects=["public.orders"])
    n = command(one, "DELETE FROM order_items", verb="DELETE", verdict=None, objects=["public.order_items"])
    one.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "a", "state": "approved", "by": "mia@acme"}))
    one.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": "allow", "rule": "writes", "approval": "a"}))
    await one.close("closed")
    wall.pass_ms(DAY / 1e6)
    two = open_tape(of, identity={"subject": "leo@acme"}, target="web-1", protocol="ssh")
    n = command(two, "pg_sleep orders.total", verb="exec", objects=["web-1"])
    error = {"code": "42P01", "message": 'relation "x_y" is 100% missing'}
    two.append(GATE, Kind.RESULT, pack({"command": n, "tag": "", "error": error}))
    command(two, "DROP TABLE orders", verb="DROP", verdict="deny", objects=["audit.orders"])
    await two.close("failed", "gone")
    wall.pass_ms(DAY / 1e6)
    await small_tape(of)
    of.close()


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("query") / "tapes"
    asyncio.run(write(directory))
    assert Index.update(directory).complete
    return directory


@pytest.fixture(scope="module")
def index(tapes: Path) -> Iterator[Index]:
    with Index(tapes) as found:
        yield found


def texts(index: Index, **wanted: Any) -> list[str]:
    return [row["text"].split()[0] for row in find_commands(index, Wanted(**wanted))]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["SELECT", "SELECT", "SELECT", "DROP", "pg_sleep", "DELETE", "SELECT"]),
        ({"limit": 2}, ["SELECT", "SELECT"]),
        ({"subject": "leo@acme"}, ["DROP", "pg_sleep"]),
        ({"subject": "*@ACME"}, []),
        ({"subject": "leo@*"}, ["DROP", "pg_sleep"]),
        ({"agent": "cl?ude"}, ["DELETE", "SELECT"]),
        ({"protocol": "ssh"}, ["DROP", "pg_sleep"]),
        ({"target": "web-[1]"}, []),
        ({"run": "run-7", "verb": "delete"}, ["DELETE"]),
        ({"verdict": "deny"}, ["DROP"]),
        ({"verdict": "held"}, ["DELETE"]),
        ({"verdict": "held-allow"}, ["DELETE"]),
        ({"verdict": "held-deny"}, []),
        ({"verdict": "allow", "run": "run-7"}, ["DELETE", "SELECT"]),
        ({"rule": "writes"}, ["DELETE"]),
        ({"approver": "mia@acme"}, ["DELETE"]),
        ({"object": "orders"}, ["DROP", "SELECT"]),
        ({"object": "public.*"}, ["DELETE", "SELECT"]),
        ({"object": "audit.orders"}, ["DROP"]),
        ({"object": "order"}, []),
        ({"kind": "read", "verb": "DROP"}, ["DROP"]),
        ({"error": "*"}, ["pg_sleep"]),
        ({"error": "X_Y"}, ["pg_sleep"]),
        ({"error": "xzy"}, []),
        ({"error": "100%"}, ["pg_sleep"]),
        ({"code": "42p01"}, ["pg_sleep"]),
        ({"code": "42*"}, ["pg_sleep"]),
        ({"code": "*"}, ["pg_sleep"]),
        ({"intent": "ORDER_812"}, ["DELETE", "SELECT"]),
        ({"intent": "order%812"}, []),
        ({"status": "failed"}, ["DROP", "pg_sleep"]),
        ({"status": "live"}, []),
        ({"since_ns": NOON + HOUR, "until_ns": NOON + DAY + HOUR}, ["DROP", "pg_sleep"]),
        ({"text": "orders"}, ["DROP", "pg_sleep", "SELECT"]),
        ({"text": "ORDERS drop"}, ["DROP"]),
        ({"text": "order*"}, ["DROP", "pg_sleep", "DELETE", "SELECT"]),
        ({"text": "zurich"}, ["SELECT"]),
        ({"text": "pg_sleep"}, ["pg_sleep"]),
        ({"text": '"TABLE orders"'}, ["DROP"]),
        ({"text": '"orders TABLE"'}, []),
        ({"text": "sleep", "verdict": "deny"}, []),
    ],
)  # fmt: skip
def test_filters(index: Index, wanted: dict[str, Any], found: list[str]) -> None:
    assert texts(index, **wanted) == found


def test_sessions_are_those_with_such_a_command(index: Index) -> None:
    def targets(**wanted: Any) -> list[str]:
        return [row["target"] for row in find_sessions(index, Wanted(**wanted))]

    assert targets() == ["shop", "web-1", "shop"]
    assert targets(limit=1) == ["shop"]
    assert targets(verdict="deny") == ["web-1"]
    assert targets(text="zurich", verdict="allow") == ["shop"]
    assert targets(object="orders", status="closed") == ["shop"]
    assert targets(since_ns=NOON + 1, until_ns=NOON + DAY) == []
    assert targets(since_ns=NOON + DAY, until_ns=NOON + DAY + 1) == ["web-1"]


def test_a_row_has_what_a_script_needs(index: Index) -> None:
    (row,) = find_commands(index, Wanted(verdict="held"))
    assert is_ulid(row["sid"])
    assert (row["n"], row["number"], row["agents"], row["by"], row["status"]) == (
        3,
        2,
        ["claude"],
        "mia@acme",
        "closed",
    )
    assert row["time"].startswith("2026-09-21T14:13:20")
    assert set(row) == {
        "sid", "n", "number", "time", "seconds", "subject", "agents", "protocol", "target", "run", "status", "where",
        "verb", "kind", "verdict", "rule", "by", "rows", "code", "error", "objects", "text", "text_cut", "parts",
        "path",
    }  # fmt: skip


def test_hits_are_marked(index: Index) -> None:
    (row,) = find_commands(index, Wanted(text="zurich"))
    assert [text for text, hit in row["parts"] if hit] == ["Zürich"]
    assert "".join(text for text, _ in row["parts"]) == "SELECT id FROM orders WHERE note = 'Zürich'"


def test_terms() -> None:
    assert terms('one "two three" fo* "fi"* "open end') == [
        ("one", False), ("two three", False), ("fo", True), ("fi", True), ("open end", False),
    ]  # fmt: skip
    assert terms("***") == terms('""') == terms(" ") == []
    assert len(terms("a " * 1000)) == index_query.TERMS_LIMIT
    assert sum(len(term) for term, _ in terms("a" * 10_000)) == index_query.QUERY_LIMIT


@pytest.mark.parametrize("text", ["*", '"', "--", "'; --", '"*"', "( ) : ^ + {"])
def test_nothing_to_look_for_is_said(index: Index, text: str) -> None:
    with pytest.raises(NothingToLookFor):
        texts(index, text=text)


@given(st.text(max_size=40) | st.text('"*()-:^{}+ ANDORTNEAR\0\\%_', max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None)
def test_no_text_is_an_error_of_sqlite(index: Index, text: str) -> None:
    try:
        found = texts(index, text=text, error=text, rule=text, object=text, code=text) if text else []
    except NothingToLookFor:
        return
    assert found == []
    with suppress(NothingToLookFor):
        texts(index, text=text)


@given(st.text(min_size=1, max_size=30).filter(lambda text: any(c.isascii() and c.isalnum() for c in text)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_a_command_is_found_by_its_own_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    directory = tmp_path_factory.mktemp("own")

    async def scenario() -> None:
        of = recorder(directory)
        tape = open_tape(of)
        command(tape, text)
        await tape.close("closed")
        of.close()

    asyncio.run(scenario())
    Index.update(directory)
    with Index(directory) as found:
        assert len(list(find_commands(found, Wanted(text='"' + text.replace('"', " ") + '"')))) == 1


def test_substrings_where_the_index_has_them(tapes: Path, tmp_path: Path) -> None:
    asyncio.run(write(tmp_path / "tapes"))
    Index.rebuild(tmp_path / "tapes", substring=True)
    assert not Index.update(tmp_path / "tapes").repaired
    with Index(tmp_path / "tapes") as index:
        assert index.substring
        assert texts(index, text="der_ite") == ["DELETE"]
        assert texts(index, text="rder =") == ["SELECT"]
        assert texts(index, text="note = 'z") == ["SELECT"]
        assert texts(index, text="DR rop") == ["DROP"]  # below three characters the texts themselves are looked through
        assert texts(index, text="%d") == []


def test_what_was_cut_is_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        of = recorder(tmp_path)
        tape = open_tape(of)
        command(tape, "SELECT " + "x " * 40_000 + "behind")
        await tape.close("closed")
        of.close()

    asyncio.run(scenario())
    Index.update(tmp_path)
    with Index(tmp_path) as index:
        assert count_cut(index) == 1
        assert texts(index, text="behind") == []
        (row,) = find_commands(index, Wanted(text="select"))
        assert row["text_cut"]
        assert sum(len(text) for text, _ in row["parts"]) < 500


def test_live_is_what_the_lock_says_now(tmp_path: Path) -> None:
    async def scenario() -> None:
        of = recorder(tmp_path)
        tape = open_tape(of)
        command(tape, "SELECT 1")
        await tape.written()
        Index.update(tmp_path)
        with Index(tmp_path) as index:
            assert [row["status"] for row in find_sessions(index, Wanted(status="live"))] == ["live"]
            assert list(find_sessions(index, Wanted(status="unsealed"))) == []
            assert [row["status"] for row in find_commands(index, Wanted())] == ["live"]
            copy = tape.path.with_name("0" * 26 + ".000.gct")
            copy.write_bytes(tape.path.read_bytes())
            await tape.close("closed")
        of.close()

    asyncio.run(scenario())


def test_the_index_and_the_walk_say_the_same(tapes: Path, index: Index) -> None:
    walked = list_sessions(tapes, SessionFilter())
    found = list(find_sessions(index, Wanted()))
    assert [{name: row[name] for name in walked[0]} for row in found] == walked


def test_find_tape_looks_only_where_the_id_says(tapes: Path, index: Index) -> None:
    for row in find_sessions(index, Wanted()):
        assert str(find_tape(tapes, row["sid"][:14])) == row["path"]
        with pytest.raises(FileNotFoundError):
            find_tape(tapes, "7" + row["sid"][1:])
    with pytest.raises(FileNotFoundError):
        find_tape(tapes, "Z" * 26)


def test_the_arguments_offer_what_the_index_knows() -> None:
    assert set(index_arguments.VERDICTS) == set(index_query.VERDICTS)
    assert set(index_arguments.STATUSES) == set(index_query.STATUSES)
    assert set(index_arguments.NAMES) <= set(Wanted.__dataclass_fields__)


# -- times ------------------------------------------------------------------------------------------------

NOW = 1_795_248_000_000_000_000  # 2026-11-21T08:00:00Z


@pytest.mark.parametrize(
    ("text", "start", "length"),
    [
        ("2h", NOW - 2 * HOUR, 1),
        ("3 d", NOW - 3 * DAY, 1),
        ("90min", NOW - 90 * 60 * 10**9, 1),
        ("now", NOW, 1),
        ("today", NOW - 8 * HOUR, DAY),
        ("Yesterday", NOW - 32 * HOUR, DAY),
        ("2026-11-21", NOW - 8 * HOUR, DAY),
        ("2026-11-21T08", NOW, HOUR),
        ("2026-11-21 08:00", NOW, 60 * 10**9),
        ("2026-11-21T08:00:00Z", NOW, 10**9),
        ("2026-11-21T09:30:00+01:30", NOW, 10**9),
        ("2026-11-21T03:00-0500", NOW, 60 * 10**9),
        ("2026-11-21T08:00:00.25", NOW + 250_000_000, 10_000_000),
        ("2026-02", 1_769_904_000 * 10**9, 28 * DAY),
        ("2026", 1_767_225_600 * 10**9, 365 * DAY),
    ],
)
def test_times(text: str, start: int, length: int) -> None:
    assert span_of(text, NOW) == (start, start + length)


@pytest.mark.parametrize(
    "text", ["", "soon", "2026-13", "2026-02-30", "21.11.2026", "2h3", "2026-11-21Z", "9999", "-1d"]
)
def test_what_is_no_time_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|offset"):
        span_of(text, NOW)
