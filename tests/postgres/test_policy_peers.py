"""Real rules, real approvals and their store before real servers: refused and held as any other error would be.

FakeIdentities know one user, ana@acme.com of the group agents, who is everybody's requester here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from proxy.approvals import ApprovalError, Approvals
from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Verdict
from proxy.policy.rules import RuleSet
from proxy.store.approvals import Record
from proxy.store.database import Database
from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import Gateway, gateway
from tests.postgres.masked_shop import ruleset
from tests.postgres.raw_user import SYNC, RawUser, bind, close, errors, execute, kinds, parse, query, rows

pytestmark = pytest.mark.peer

RULES = """
rules:
  - name: work
    commands: {kinds: [read, write]}
    allow: true
  - name: no-ddl
    commands: {verbs: [DROP TABLE, ALTER TABLE, CREATE TABLE]}
    deny: {reason: "the schema is the migration's"}
  - name: short
    commands: {verbs: [TRUNCATE TABLE]}
    hold: {approvers: ["group:dba"], timeout: 1s, reason: "everything at once"}
  - name: deletes
    commands: {kinds: [delete]}
    hold: {approvers: [bob@acme.com, "group:dba"], timeout: 60s, reason: "look first"}
"""
NO_READS = RULES.replace("kinds: [read, write]", "kinds: [write]")

BOB = Identity("bob@acme.com", frozenset({"staff"}))
ANA = Identity("ana@acme.com", frozenset({"dba"}))  # the requester, as herself, in the approvers' group
WAIT_SECONDS = 10.0


class Reloadable:
    """A policy that is hot-reloaded, as app.py's is: the next command has the new rules."""

    def __init__(self) -> None:
        self.rules: RuleSet = ruleset(RULES)

    async def __call__(self, identity: Identity, target: Target, command: Command) -> Verdict:
        return await self.rules.decide(identity, target, command)


@dataclass
class House:
    """A gateway with rules, approvals and their store."""

    server: PostgresServer
    gate: Gateway
    policy: Reloadable
    desk: Approvals

    def run(self, work: Any) -> Any:
        """Run a coroutine on the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.gate.loop).result(WAIT_SECONDS)

    def pending(self) -> Record:
        """Wait until something is held; return it."""
        found: list[Record] = self.until(lambda: self.run(self.desk.listing("pending")))
        return found[0]

    def state(self, approval: str) -> str:
        record: Record = self.run(self.desk.find(approval))
        return record.state

    def until(self, found: Callable[[], Any]) -> Any:
        """Wait until there is something."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (value := found()):
            assert time.monotonic() < deadline, "it does not happen"
        return value

    def count(self, where: str = "true") -> int:
        found = self.server.run(f"SELECT count(*)::int FROM item WHERE {where}", dbname="policy")[0][0]
        assert isinstance(found, int)
        return found

    @contextlib.contextmanager
    def connect(self, **more: Any) -> Iterator[psycopg.Connection[Any]]:
        """Connect; a test that fails takes back what it left waiting, so that its thread ends."""
        connection = psycopg.connect(self.gate.conninfo(**more), autocommit=True)
        try:
            yield connection
        except BaseException:
            self.gate.call(self.desk.close)
            raise
        finally:
            connection.close()


@pytest.fixture(scope="module", params=["15", "18"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    server: PostgresServer = request.getfixturevalue(f"postgres{request.param}")
    database = Database(tmp_path_factory.mktemp("store") / "gatecast.db").open()
    desk, policy = Approvals(database, url="https://gate/approvals/{id}"), Reloadable()
    try:
        with (
            server.database("policy", "CREATE TABLE item (id int PRIMARY KEY, name text)"),
            gateway(server.port, database="policy", policy=policy, approvals=desk) as gate,
        ):
            found = House(server, gate, policy, desk)
            found.run(desk.start())
            yield found
    finally:
        database.close()


@pytest.fixture(autouse=True)
def _ten_items(house: House) -> None:
    house.policy.rules = ruleset(RULES)
    house.server.run(
        "TRUNCATE item; INSERT INTO item SELECT i, 'n' || i FROM generate_series(1, 10) i", dbname="policy"
    )


class Held:
    """A statement of a psycopg connection in a thread: it is held until somebody decides."""

    def __init__(self, house: House, connection: psycopg.Connection[Any], text: str, *values: Any) -> None:
        self._house = house
        self.error: psycopg.Error | None = None
        self.tag: str | None = None
        self._thread = threading.Thread(target=self._run, args=(connection, text, values))
        self._thread.start()
        self.record = house.pending()

    def _run(self, connection: psycopg.Connection[Any], text: str, values: tuple[Any, ...]) -> None:
        try:
            self.tag = connection.execute(text.encode(), values or None).statusmessage
        except psycopg.Error as error:
            self.error = error

    def decide(self, approve: bool, by: Identity = BOB, reason: str = "") -> None:
        self._house.run(self._house.desk.decide(self.record.id, by, approve, reason))
        self.join()

    def join(self) -> None:
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive()


# -- refused ----------------------------------------------------------------------------------------------


def test_refused_in_a_transaction_aborts_it(house: House) -> None:
    with house.connect() as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO item VALUES (11, 'x')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"no-ddl.*migration"):
            connection.execute("DROP TABLE item")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("SELECT 1")
        assert connection.execute("COMMIT").statusmessage == "ROLLBACK"
        assert connection.execute("SELECT count(*) FROM item").fetchone() == (10,)
        connection.execute("BEGIN")
        connection.execute("SAVEPOINT s")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DROP TABLE item")
        connection.execute("ROLLBACK TO s")
        connection.execute("INSERT INTO item VALUES (12, 'y')")
        assert connection.execute("COMMIT").statusmessage == "COMMIT"
    assert house.count() == 11


@pytest.mark.parametrize("step", ["parse", "bind"])
def test_refused_in_a_pipeline_leaves_nothing(house: House, step: str) -> None:
    with RawUser(house.gate.port) as user:
        first = (parse("", "INSERT INTO item VALUES (21, 'x')"), bind("", ""), execute(""))
        last = (parse("", "INSERT INTO item VALUES (22, 'x')"), bind("", ""), execute(""))
        refused: tuple[bytes, ...] = (parse("", "DROP TABLE item"), bind("", ""), execute(""))
        if step == "bind":
            user.ask(parse("s", "SELECT * FROM item"), SYNC)
            house.policy.rules = ruleset(NO_READS)
            refused = (bind("", "s"), execute(""))
        seen = user.ask(*first, *refused, *last, SYNC)
        assert kinds(seen) == "12CEZ" and errors(seen) == ["42501"]
        assert kinds(user.ask(*first, SYNC)) == "12CZ"
    assert house.count("id IN (21, 22)") == 1


def test_text_of_several_statements_has_the_strictest_verdict(house: House) -> None:
    with house.connect() as connection:
        for text in (
            "INSERT INTO item VALUES (31, 'x'); DROP TABLE item",
            "DROP TABLE item; INSERT INTO item VALUES (31, 'x')",
            "INSERT INTO item VALUES (31, 'x'); DELETE FROM item WHERE id = 1; DROP TABLE item",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(text.encode())
        assert house.count() == 10
        held = Held(house, connection, "INSERT INTO item VALUES (31, 'x'); DELETE FROM item WHERE id = 1")
        assert house.count() == 10  # neither of the two has run
        held.decide(True)
    assert house.count() == 10 and house.count("id = 31") == 1


def test_new_rules_hold_for_what_was_prepared_under_the_old(house: House) -> None:
    with RawUser(house.gate.port) as user:
        user.ask(parse("s", "SELECT id FROM item ORDER BY id"), SYNC)
        user.ask(query("PREPARE p AS SELECT id FROM item"), query("BEGIN"), syncs=2)
        user.ask(query("DECLARE c CURSOR FOR SELECT id FROM item ORDER BY id"))
        assert len(rows(user.ask(bind("portal", "s"), execute("portal", 3), SYNC))) == 3
        assert len(rows(user.ask(execute("portal", 3), SYNC))) == 3
        house.policy.rules = ruleset(NO_READS)
        seen = user.ask(execute("portal", 3), SYNC)
        assert errors(seen) == ["42501"] and not rows(seen)
        user.ask(query("ROLLBACK"))
        for text in ("EXECUTE p", "FETCH 1 FROM c", "SELECT id FROM item", "BEGIN; SELECT id FROM item; COMMIT"):
            assert errors(user.ask(query(text))) == ["42501"], text
        seen = user.ask(bind("", "s"), execute(""), SYNC)
        assert errors(seen) == ["42501"] and not rows(seen)
        house.policy.rules = ruleset(RULES)
        assert len(rows(user.ask(bind("", "s"), execute(""), SYNC))) == 10
        assert len(rows(user.ask(query("EXECUTE p")))) == 10


def test_new_rules_hold_between_parse_and_execute_of_one_batch(house: House) -> None:
    with RawUser(house.gate.port) as user:
        user.ask(parse("s", "SELECT id FROM item"), bind("", "s"), SYNC)
        user.send(parse("t", "SELECT id FROM item"), bind("p", "t"), b"H\0\0\0\4")
        assert [user.read()[0], user.read()[0]] == ["1", "2"]
        house.policy.rules = ruleset(NO_READS)
        assert errors(user.ask(execute("p"), SYNC)) == ["42501"]


# -- held -------------------------------------------------------------------------------------------------


def test_held_statement_is_told_and_runs_when_approved(house: House) -> None:
    with house.connect() as connection:
        told: list[Any] = []
        connection.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
        held = Held(house, connection, "DELETE FROM item WHERE id = %s AND name <> %s", 3, "it's\nme")
        house.until(lambda: told)
        assert held.record.id in (told[0]) and "look first" in (told[0])
        assert f"https://gate/approvals/{held.record.id}" in (told[0])
        assert house.count() == 10
        # What it does is in its values, and the approver sees them.
        assert "-- $1 = '3'" in held.record.text and "-- $2 = 'it's\\nme'" in held.record.text
        assert held.record.objects == ("public.item",) and held.record.subject == "ana@acme.com"
        held.decide(True, reason="fine")
        assert held.tag == "DELETE 1"
        record = house.run(house.desk.find(held.record.id))
        assert (record.state, record.decided_by, record.decided_why) == ("approved", "bob@acme.com", "fine")
    assert house.count() == 9


def test_nobody_approves_for_himself(house: House) -> None:
    with house.connect() as connection:
        held = Held(house, connection, "DELETE FROM item WHERE id = 3")
        for by in (ANA, Identity("bob@acme.com", agents=("claude",)), Identity("eve@acme.com")):
            with pytest.raises(ApprovalError):
                house.run(house.desk.decide(held.record.id, by, True))
        assert house.state(held.record.id) == "pending"
        held.decide(False, reason="not today")
        assert isinstance(held.error, psycopg.errors.QueryCanceled)
        assert "denied by bob@acme.com: not today" in str(held.error)
        assert held.record.id in (held.error.diag.message_detail or "")
        assert connection.execute("SELECT count(*) FROM item").fetchone() == (10,)


def test_time_runs_out(house: House) -> None:
    with house.connect() as connection:
        held = Held(house, connection, "TRUNCATE item")
        held.join()
        assert isinstance(held.error, psycopg.errors.QueryCanceled) and "in time" in str(held.error)
        assert house.state(held.record.id) == "expired"
        assert connection.execute("SELECT count(*) FROM item").fetchone() == (10,)


def test_cancel_takes_a_held_statement_back(house: House) -> None:
    with house.connect() as connection:
        held = Held(house, connection, "DELETE FROM item")
        connection.cancel_safe()
        held.join()
        assert isinstance(held.error, psycopg.errors.QueryCanceled)
        assert held.error.diag.message_primary == "canceling statement due to user request"
        house.until(lambda: house.state(held.record.id) == "withdrawn")
        with pytest.raises(ApprovalError):
            house.run(house.desk.decide(held.record.id, BOB, True))
        assert connection.execute("SELECT count(*) FROM item").fetchone() == (10,)


def test_held_in_a_transaction_it_goes_on_and_so_do_others(house: House) -> None:
    with house.connect() as one, house.connect() as two:
        one.execute("BEGIN")
        one.execute("INSERT INTO item VALUES (41, 'x')")
        held = Held(house, one, "DELETE FROM item WHERE id = 1")
        two.execute("INSERT INTO item VALUES (42, 'y')")
        assert two.execute("SELECT count(*) FROM item").fetchone() == (11,)
        assert house.server.run(
            "SELECT state FROM pg_stat_activity WHERE query LIKE 'INSERT%41%'", dbname="policy"
        ) == [("idle in transaction",)]
        held.decide(True)
        assert one.execute("COMMIT").statusmessage == "COMMIT"
        one.execute("BEGIN")
        one.execute("INSERT INTO item VALUES (43, 'x')")
        held = Held(house, one, "DELETE FROM item WHERE id = 2")
        held.decide(False)
        assert one.execute("COMMIT").statusmessage == "ROLLBACK"
    assert house.count("id IN (41, 42)") == 2 and house.count("id IN (1, 43)") == 0 and house.count("id = 2") == 1


def test_waiting_wears_no_time_limit_out(house: House) -> None:
    """statement_timeout counts from when the target gets it; keepalives are answered all the while."""
    options = "-c statement_timeout=400 -c idle_session_timeout=0 -c tcp_keepalives_idle=1 -c tcp_keepalives_interval=1"
    with house.connect(
        options=options, keepalives=1, keepalives_idle=1, keepalives_interval=1, keepalives_count=1,
        tcp_user_timeout=1000,
    ) as connection:  # fmt: skip
        held = Held(house, connection, "DELETE FROM item WHERE id = 1")
        threading.Event().wait(2.5)
        held.decide(True)
        assert held.tag == "DELETE 1"
        assert connection.execute("SHOW statement_timeout").fetchone() == ("400ms",)
        with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
            connection.execute("SELECT pg_sleep(5)")


def test_user_who_vanishes_takes_back_what_is_held(house: House) -> None:
    with RawUser(house.gate.port) as user:
        backend = next(body[:4] for kind, body in user.opening if kind == "K")
        user.send(query("DELETE FROM item"))
        record = house.pending()
    house.until(lambda: house.state(record.id) == "withdrawn")
    pid = int.from_bytes(backend, "big")
    house.until(lambda: not house.server.run(f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"))
    assert house.count() == 10


def test_pipelined_hold_is_no_way_around_it(house: House) -> None:
    """A batch that fails must not give a held statement's name to a harmless one."""
    for batch in (
        (parse("x", "SELECT * FROM nowhere"), close("S", "s"), parse("s", "SELECT 1"), SYNC),
        (parse("s", "SELECT 1"), SYNC),
        (query("DEALLOCATE nothing; PREPARE s AS SELECT 1"), SYNC),
    ):
        with RawUser(house.gate.port) as user:
            user.ask(parse("s", "DELETE FROM item WHERE id = 5"), SYNC)
            user.send(*batch, bind("", "s"), execute(""), SYNC)
            record = house.pending()
            assert record.verb == "DELETE" and house.count() == 10
            house.run(house.desk.decide(record.id, BOB, False))
            while "57014" not in errors(user.until_ready()):
                pass
    assert house.count() == 10


def test_approved_bind_is_not_held_again_and_no_other_rides_on_it(house: House) -> None:
    with RawUser(house.gate.port) as user:
        user.ask(parse("s", "DELETE FROM item WHERE id = $1"), SYNC)
        user.send(bind("p", "s", "1"), execute("p"), bind("p", "s", "2"), execute("p"), SYNC)
        first = house.pending()
        assert "-- $1 = '1'" in first.text
        house.run(house.desk.decide(first.id, BOB, True))
        second = house.pending()
        assert second.id != first.id and "-- $1 = '2'" in second.text
        house.run(house.desk.decide(second.id, BOB, False))
        assert errors(user.until_ready()) == ["57014"]
    assert house.count() == 10  # one batch: what was approved is rolled back with what was not


# -- psql in a terminal -----------------------------------------------------------------------------------


class Psql:
    """psql in a pseudo-terminal, as a person has it."""

    def __init__(self, house: House) -> None:
        program = Path(house.server.bin) / "psql"
        self._master, slave = pty.openpty()
        environment = {**house.gate.environment, **house.server.environment, "TERM": "dumb", "PAGER": ""}
        self._process = subprocess.Popen(
            [str(program), "-X", "-n", "-P", "pager=off"], env=environment, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode() + b"\n")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until the screen has the pattern, and take it off."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := re.search(pattern, self.screen)):
            assert time.monotonic() < deadline, self.screen
            if select.select([self._master], [], [], 0.5)[0]:
                self.screen += os.read(self._master, 65536).decode(errors="replace")
        self.screen = self.screen[found.end() :]
        return found

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.type("\\q")
        self._process.wait(WAIT_SECONDS)
        os.close(self._master)


def test_ctrl_c_in_psql_takes_it_back(house: House) -> None:
    psql = Psql(house)
    try:
        psql.type("DELETE FROM item;")
        told = psql.wait_for(r'NOTICE:  held by rule "deletes": waiting for approval (ap_\w+)')
        record = house.pending()
        assert record.id == told.group(1)
        psql.wait_for("Ctrl-C withdraws it")
        psql.interrupt()
        psql.wait_for("ERROR:  canceling statement due to user request")
        house.until(lambda: house.state(record.id) == "withdrawn")
        psql.type("SELECT count(*) AS left FROM item;")
        psql.wait_for(r"left\s+-+\s+10\s")
        psql.type("BEGIN; DELETE FROM item WHERE id = 1; COMMIT;")
        told = psql.wait_for(r"waiting for approval (ap_\w+)")
        house.run(house.desk.decide(told.group(1), BOB, True))
        psql.wait_for("DELETE 1")
        psql.wait_for("COMMIT")
        psql.type("DROP TABLE item;")
        psql.wait_for('ERROR:  denied by gatecast rule "no-ddl"')
    finally:
        psql.close()
    assert house.count() == 9
