"""A million mutated messages of real conversations, both ways: only PeerErrors come out, and memory stays.

make nightly runs this (pytest -m nightly); GATECAST_FUZZ_MESSAGES and GATECAST_FUZZ_SEED change how many and which.
The corpus is recorded anew each time: real clients against a real PostgreSQL through the gateway, read back from
their tapes. A failure prints its seed, its number and the messages that led to it.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import subprocess
import time
from collections import Counter
from pathlib import Path

import asyncpg
import psycopg
import pytest

from protocols.postgres import startup, wire
from proxy.core.errors import PeerError, TargetPeerError, UserPeerError
from proxy.policy.sql import SqlReader
from recorder.reader import TapeReader
from recorder.tape import OUT, USER, Kind
from tests.fakes import TOKEN, fake_gate
from tests.peers.postgres import PostgresServer
from tests.postgres.fuzzing import Chance, Dialogue, EveryCell, Mutator, Wired, messages
from tests.postgres.gateway import Gateway, gateway

pytestmark = [pytest.mark.nightly, pytest.mark.peer, pytest.mark.timeout(7200)]

MESSAGES = int(os.environ.get("GATECAST_FUZZ_MESSAGES", "1000000"))
MEMORY_GROWTH_LIMIT_KIB = 256 * 1024  # a session is a few hundred KiB; garbage of a run stays far below this


def talk(server: PostgresServer, gate: Gateway) -> None:
    """Have real clients use every message that they know."""
    with psycopg.connect(gate.conninfo(), autocommit=True) as connection:
        execute = connection.execute
        connection.prepare_threshold = 0
        execute("CREATE TEMP TABLE t (id int PRIMARY KEY, email text, data jsonb)")
        for i in range(5):
            execute("INSERT INTO t VALUES (%s, %s, %s)", (i, f"ana{i}@acme.com", '{"a": 1}'))
        execute("SELECT * FROM t WHERE id = %s", (3,), binary=True).fetchall()
        execute("SELECT repeat('x', 70000), NULL").fetchall()
        for text in ("SELECT 1; SELECT 2; SELECT email FROM t", "", ";", "SELEC", "SELECT 1/0"):
            try:
                connection.pgconn.exec_(text.encode())
            except psycopg.Error:
                raise AssertionError("exec_ tells errors by its result") from None
        for text in ("PREPARE p AS SELECT email FROM t", "EXECUTE p", "DEALLOCATE p", "SET client_encoding TO 'LATIN1'",
                     "RESET client_encoding", "SET standard_conforming_strings = off", "SELECT 'a\\b'",
                     "SET standard_conforming_strings = on", "LISTEN ch", "NOTIFY ch, 'ana@acme.com'", "SELECT 1",
                     "DO $$ BEGIN RAISE NOTICE 'ana@acme.com'; END $$"):  # fmt: skip
            connection.pgconn.exec_(text.encode())
        execute("CREATE TEMP TABLE c (id int, email text)")
        for form in ("text", "csv", "binary"):
            with connection.cursor() as cursor, cursor.copy(f"COPY c FROM STDIN (FORMAT {form})") as copy:
                if form == "binary":
                    copy.set_types(("int4", "text"))
                for i in range(20):
                    if form == "csv":
                        copy.write(f'{i},"ana, ""x""\n y"\n')
                    else:
                        copy.write_row((i, "ana,'\"\\ \n x"))
            with connection.cursor() as cursor, cursor.copy(f"COPY c TO STDOUT (FORMAT {form})") as copy:
                assert b"".join(bytes(block) for block in copy)
        with connection.pipeline():
            for i in range(10):
                execute("SELECT email FROM t WHERE id = %s", (i,))
        with connection.transaction(), connection.cursor("named") as named:
            named.execute("SELECT * FROM c")
            assert named.fetchmany(3)
        with pytest.raises(psycopg.Error), connection.transaction():
            execute("SELECT nothing")
        connection.pgconn.exec_(b"DISCARD ALL")

    async def extended() -> None:
        connection = await asyncpg.connect(
            host=gate.host, port=gate.port, user="agent", password=TOKEN, database="shop", ssl=False
        )
        await connection.execute("CREATE TEMP TABLE t (id int, email text)")
        await connection.executemany("INSERT INTO t VALUES ($1, $2)", [(i, "ana@acme.com") for i in range(30)])
        statement = await connection.prepare("SELECT * FROM t WHERE id > $1")
        assert await statement.fetch(3)
        async with connection.transaction():
            assert [row async for row in connection.cursor("SELECT * FROM t", prefetch=7)]
        with pytest.raises(asyncpg.PostgresError):
            await connection.fetch("SELECT 1/$1::int", 0)
        await connection.copy_records_to_table("t", records=[(1, "x")])
        await connection.close()

    asyncio.run(extended())
    # libpq's large objects speak FunctionCall.
    script = f"\\lo_import {__file__}\n\\lo_unlink :LASTOID\n"
    subprocess.run(
        [str(server.bin / "psql"), "-X", "-v", "ON_ERROR_STOP=1", gate.conninfo()], input=script.encode(),
        check=True, capture_output=True, timeout=60, env=dict(server.environment),
    )  # fmt: skip


def corpus(tapes: list[Path]) -> list[Dialogue]:
    """Read the tapes back as dialogues, cut where the target was ready and nothing was under way."""
    found: list[Dialogue] = []
    for tape in tapes:
        sides = [
            (record.channel == USER, record.payload)
            for record in TapeReader(tape).records()
            if record.kind == Kind.WIRE and record.channel in (USER, OUT)
        ]
        current: list[tuple[bool, bytes]] = []
        for from_user, data in _joined(sides)[1:]:  # the first is the end of the login
            current += [(from_user, message) for message in messages(data)]
            if not from_user and current[-1][1][:1] == b"Z":
                found.append(current)
                current = []
    return found


def _joined(sides: list[tuple[bool, bytes]]) -> list[tuple[bool, bytes]]:
    joined: list[tuple[bool, bytes]] = []
    for from_user, data in sides:
        if joined and joined[-1][0] == from_user:
            joined[-1] = (from_user, joined[-1][1] + data)
        else:
            joined.append((from_user, data))
    return joined


@pytest.fixture(scope="module")
def recorded(postgres18: PostgresServer) -> list[Dialogue]:
    with gateway(postgres18.port) as gate:
        talk(postgres18, gate)
        while not gate.idle():
            time.sleep(0.01)
        found = corpus(gate.tape_files())
    types = {message[:1].decode() for dialogue in found for _, message in dialogue}
    assert len(found) > 60 and types >= set("QPBEDSCTZFVdcsAIGHtn123"), types
    return found


def test_recorded_dialogues_pass_unchanged(recorded: list[Dialogue]) -> None:
    """The corpus itself is clean, so that what the mutations find is theirs."""
    for cutting in (False, True):
        mutator = Mutator(random.Random(7), recorded)
        wired = Wired()
        for dialogue in recorded:
            for from_user, message in dialogue:
                pass_on = wired.user if from_user else wired.target
                assert b"".join(pass_on(piece) for piece in (mutator.cut(message) if cutting else [message])) == message


def test_a_million_mutated_messages(recorded: list[Dialogue]) -> None:
    seed = int(os.environ.get("GATECAST_FUZZ_SEED", str(random.SystemRandom().randrange(1 << 32))))
    dice = random.Random(seed)
    mutator = Mutator(dice, recorded)
    gate = fake_gate(Chance(dice, denied=0.03), reader=SqlReader(), masker=EveryCell())
    ends: Counter[str] = Counter()
    fed = sessions = 0
    began = time.monotonic()
    before = 0
    while fed < MESSAGES:
        wired = Wired(gate)
        sessions += 1
        past: list[tuple[bool, bytes]] = []
        try:
            for _ in range(20):
                for from_user, message in mutator.dialogue():
                    past.append((from_user, message))
                    fed += 1
                    for piece in mutator.cut(message):
                        (wired.user if from_user else wired.target)(piece)
                    if wired.over:
                        break
                if wired.over:
                    break
            ends["ended" if wired.over else "lived"] += 1
        except PeerError as error:
            expected = UserPeerError if past[-1][0] else TargetPeerError
            assert type(error) is expected, _told(seed, sessions, past, error)
            ends[f"{type(error).__name__}: {str(error).rstrip('0123456789')}"] += 1
        except Exception as error:
            raise AssertionError(_told(seed, sessions, past, error)) from error
        if not before and fed > MESSAGES // 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = time.monotonic() - began
    print(f"\nseed {seed}: {fed} messages in {sessions} sessions, {seconds:.0f} s, {grown} KiB more memory")
    for end, count in ends.most_common():
        print(f"{count:8d}  {end}")
    assert grown < MEMORY_GROWTH_LIMIT_KIB
    assert len(ends) > 20, "the mutations reach too little"


def _told(seed: int, session: int, past: list[tuple[bool, bytes]], error: Exception) -> str:
    """What happened, in a form that can be pasted into a test."""
    lines = [f"{'user' if from_user else 'target'} {message[:400]!r}" for from_user, message in past[-12:]]
    return "\n".join([f"seed {seed}, session {session}: {error!r}", *lines])


def test_mutated_logins() -> None:
    """Everything that parses a start-up or login message: its own error class, and no other."""
    dice = random.Random(11)
    seeds = [
        startup.encode_startup({"user": "u", "database": "d", "options": "-c a=b", "_pq_.x": "1"})[4:],
        startup.encode_cancel(7, b"key!")[4:],
        startup.encode_ssl_request()[4:],
        startup.encode_sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abc")[5:],
        startup.encode_password(b"secret")[5:],
        startup.encode_error({"S": "ERROR", "C": "42601", "M": "x"})[5:],
        startup.encode_parameter_status("a", "b")[5:],
        startup.encode_backend_key(5, b"abcd")[5:],
        startup.encode_sasl_mechanisms(("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"))[5:],
    ]
    users = (startup.parse_first, startup.parse_startup, startup.parse_cancel, startup.parse_password,
             startup.parse_sasl_initial)  # fmt: skip
    targets = (startup.parse_auth, startup.error_fields, startup.parse_parameter_status, startup.parse_backend_key,
               startup.parse_sasl_mechanisms)  # fmt: skip
    refused = 0
    for _ in range(MESSAGES // 20):
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.randint(0, 3)):
            at = dice.randrange(len(data) + 1)
            data[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(4))
        for parsers, error in ((users, UserPeerError), (targets, TargetPeerError)):
            for parse in parsers:
                try:
                    parse(bytes(data))
                except error:
                    refused += 1
    assert refused > MESSAGES // 20
    assert wire.USER_TYPES
