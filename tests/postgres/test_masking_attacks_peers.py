"""Whoever may do anything but see the masked columns does not see them: attempts at real servers.

Each attempt runs in the simple protocol and in the extended one with binary results; then every byte that the user
got and every record of the tapes is searched for canaries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from structlog.testing import capture_logs

from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import Gateway, gateway
from tests.postgres.masked_shop import EVERYTHING, MASKS, SCHEMA, Watch, everything, found_canaries, ruleset
from tests.postgres.masking_attempts import ATTEMPTS
from tests.postgres.raw_user import SYNC, RawUser, bind, close, describe, errors, execute, parse, query, rows

pytestmark = pytest.mark.peer


@dataclass
class Attacked:
    """A gateway whose every session is under the masks."""

    server: PostgresServer
    gate: Gateway
    watch: Watch


@pytest.fixture(scope="module", params=["15", "18"])
def attacked(request: pytest.FixtureRequest) -> Iterator[Attacked]:
    server: PostgresServer = request.getfixturevalue(f"postgres{request.param}")
    rules = ruleset(EVERYTHING + MASKS)
    with (
        capture_logs() as logs,
        server.database("masked", SCHEMA),
        gateway(server.port, database="masked", policy=rules.decide) as gate,
    ):
        yield Attacked(server, gate, Watch(gate))
    assert not found_canaries(repr(logs).encode())


@pytest.mark.parametrize("line", [line for line in ATTEMPTS.splitlines() if line], ids=lambda line: line[-60:])
def test_no_attempt_shows_a_canary(attacked: Attacked, line: str) -> None:
    codes, _, attempt = line.partition(" | ")
    expected = codes.split()[-1 if attacked.server.version == "18" else 0]
    for binary in (False, True):
        found = ""
        with psycopg.connect(attacked.gate.conninfo(), autocommit=True) as connection:
            for text in attempt.split(";; "):
                if binary and ";" in text.rstrip("; "):  # several statements need the simple protocol
                    shown = everything(connection, text)
                else:
                    shown = everything(connection, text, binary)
                assert not found_canaries(shown.encode())
                state = re.match(r"\[\('ERROR', '(\w+)'", shown)
                found += "-" if state is None else "D" if state.group(1) == "42501" else "E"
        assert found == expected
    assert not attacked.watch.leaks()


EMAILS = "select email, lower(email) from customers"


def test_prepared_text_is_masked_as_what_it_means_now(attacked: Attacked) -> None:
    """The target reads a prepared text anew where the search_path or the tables have changed."""
    with RawUser(attacked.gate.port) as user:
        user.ask(query("set search_path = safe"))
        user.ask(parse("s", EMAILS), describe("S", "s"), SYNC)
        assert len(rows(user.ask(bind("", "s"), execute(""), SYNC))) == 1
        user.ask(query("set search_path = public"))
        assert len(rows(user.ask(bind("", "s"), execute(""), SYNC))) == 3
        assert len(rows(user.ask(bind("", "s", result_format=1), execute(""), SYNC))) == 3
    with RawUser(attacked.gate.port) as user:
        user.ask(query("create temp table customers as select 1 as id, 'mine'::text as email"))
        user.ask(parse("s", EMAILS), describe("S", "s"), SYNC)
        user.ask(bind("", "s"), execute(""), SYNC)
        user.ask(query("drop table pg_temp.customers"))
        assert len(rows(user.ask(bind("", "s"), execute(""), SYNC))) == 3
    assert not attacked.watch.leaks()


@pytest.mark.parametrize(
    "batch",
    [
        (parse("x", "select * from nowhere"), close("S", "s"), parse("s", "select 'a', 'b'"), SYNC),
        (parse("s", "select 'a', 'b'"), SYNC),
        (parse("", "select * from nowhere"), close("S", "s"), parse("s", "select 'a', 'b'"), SYNC),
    ],
    ids=["skipped", "same name", "unnamed"],
)
def test_batch_that_fails_leaves_a_name_what_it_was(attacked: Attacked, batch: tuple[bytes, ...]) -> None:
    with RawUser(attacked.gate.port) as user:
        user.ask(parse("s", "select lower(email), upper(card) from customers"), SYNC)
        seen = user.ask(*batch, bind("", "s"), execute(""), SYNC, syncs=2)
        assert errors(seen)[0] in ("42P01", "42P05")
        assert len(rows(seen)) == 3
    assert not attacked.watch.leaks()


def test_sql_in_flight_gives_a_name_its_last_meaning(attacked: Attacked) -> None:
    with RawUser(attacked.gate.port) as user:
        first = query("prepare s as select 'a', 'b'")
        user.ask(first, close("S", "s"), parse("s", "select lower(email), email from customers"), SYNC, syncs=2)
        assert len(rows(user.ask(bind("", "s"), execute(""), SYNC))) == 3
        user.ask(query("deallocate all"))
        again = query("deallocate all; prepare s as select lower(email) from customers")
        seen = user.ask(query("prepare s as select 'a'"), again, query("execute s"), syncs=3)
        assert len(rows(seen)) == 3 and not errors(seen)
    assert not attacked.watch.leaks()


def test_portal_goes_on_under_its_masks(attacked: Attacked) -> None:
    with RawUser(attacked.gate.port) as user:
        user.ask(query("begin"))
        user.ask(parse("", "select email, lower(email) from customers order by id"), bind("p", ""), SYNC)
        for _ in range(3):
            assert len(rows(user.ask(execute("p", 1), SYNC))) == 1
        user.ask(query("close p; declare p cursor for select upper(email) from customers"))
        assert len(rows(user.ask(execute("p", 2), SYNC))) == 2
        assert len(rows(user.ask(query("fetch all from p")))) == 1
        user.ask(query("rollback"))
    assert not attacked.watch.leaks()


@pytest.mark.parametrize(
    "options",
    [
        "-c search_path=safe,public",
        "-c standard_conforming_strings=off",
        "-c client_min_messages=debug5 -c debug_print_plan=on -c debug_print_parse=on",
        "-c default_transaction_read_only=on",
        "-c role=postgres",
        "-c log_statement=all -c client_min_messages=log",
    ],
)
def test_startup_options_open_nothing(attacked: Attacked, options: str) -> None:
    with psycopg.connect(attacked.gate.conninfo(options=options), autocommit=True) as connection:
        for text in (EMAILS, "select * from public.customers", "copy customers to stdout", "table people"):
            assert not found_canaries(everything(connection, text).encode())
    assert not attacked.watch.leaks()


def test_function_call_shows_no_value(attacked: Attacked) -> None:
    (oid,) = attacked.server.run("select 'email_of'::regproc::oid::int", dbname="masked")[0]
    with psycopg.connect(attacked.gate.conninfo(), autocommit=True) as connection:
        seen = connection.execute("select 1").fetchone()
        assert seen == (1,)
    with RawUser(attacked.gate.port) as user:
        assert isinstance(oid, int)
        body = oid.to_bytes(4, "big") + b"\0\1\0\1" + b"\0\1" + b"\0\0\0\4" + b"\0\0\0\1" + b"\0\1"
        seen_messages = user.ask(b"F" + (len(body) + 4).to_bytes(4, "big") + body)
        assert ("V", b"\xff\xff\xff\xff") in seen_messages or errors(seen_messages) == ["42501"]
    assert not attacked.watch.leaks()


def test_notification_of_another_session_is_masked(attacked: Attacked) -> None:
    with psycopg.connect(attacked.gate.conninfo(), autocommit=True) as connection:
        connection.execute("listen leak")
        attacked.server.run("select pg_notify('leak', max(email)) from customers", dbname="masked")
        payloads = [notify.payload for notify in connection.notifies(timeout=10, stop_after=1)]
        assert payloads == ["[masked]"]
    assert not attacked.watch.leaks()
