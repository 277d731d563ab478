"""A shop whose masked cells all hold canaries, and how to look for them in what users, tapes and logs got.

Every masked value is a canary: none of CANARIES may be in any answer (the tape's OUT channel holds the very bytes
that the user saw), in any decoded record of a tape, or in a log line. The tests never type a canary themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import pack
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from protocols.postgres.verbs import VERBS
from proxy.core.parties import Target
from proxy.policy.rules import RuleSet, load_rules
from recorder.reader import TapeReader
from tests.postgres.gateway import Gateway

EMAIL: Final = "kanarienvogel{}@secret.example"
CARD: Final = "4000123412341{:03}"
CODE: Final = 190_919_000  # + row: an integer that is masked
BORN: Final = "1909-09-1{}"
BALANCE: Final = "81927364{}.25"
TAG: Final = "vogeltag{}"
REF: Final = "ca9a51ca-ca9a-ca9a-ca9a-00000000000{}"
NOTE: Final = "vogelnote{}"
MOOD: Final = "vogelfrei"
ROWS: Final = 3

CANARIES: Final[tuple[bytes, ...]] = (
    b"kanarienvogel", b"KANARIENVOGEL", b"Kanarienvogel", b"@secret", b"kanarienvogel".hex().encode(),
    b"400012341234", b"190919", b"1909-09", b"81927364", b"vogeltag", b"VOGELTAG", b"ca9a51ca", b"vogelnote",
    b"vogelfrei", UUID(REF.format(1)).bytes[:12], pack(">i", CODE)[:3], pack(">HHH", 8, 1927, 3641),
)  # fmt: skip

SCHEMA: Final = f"""
CREATE TYPE mood AS ENUM ('calm', '{MOOD}');
CREATE DOMAIN address AS text CHECK (VALUE LIKE '%@%');
CREATE TYPE pair AS (label text, amount int);
CREATE TABLE customers (
    id int PRIMARY KEY, name text NOT NULL, email text UNIQUE, card varchar(32), code int, note jsonb, born date,
    balance numeric, tags text[], ref uuid, mood mood, mail address, phones pair[],
    CONSTRAINT has_at CHECK (email LIKE '%@%')
);
CREATE TABLE orders (oid int PRIMARY KEY, customer_id int REFERENCES customers, item text, total numeric, note text);
INSERT INTO customers SELECT i, 'name' || i, replace('{EMAIL}', '{{}}', i::text), '400012341234100' || i, {CODE} + i,
    jsonb_build_object('k', 'vogelnote' || i), ('1909-09-1' || i)::date, ('81927364' || i || '.25')::numeric,
    ARRAY['vogeltag' || i, 'vogeltag'], ('ca9a51ca-ca9a-ca9a-ca9a-00000000000' || i)::uuid, '{MOOD}',
    replace('{EMAIL}', '{{}}', i::text), ARRAY[ROW('vogeltag', {CODE} + i)::pair]
FROM generate_series(1, {ROWS}) i;
INSERT INTO orders SELECT i, i, 'item' || i, i * 10, 'plain' || i FROM generate_series(1, {ROWS}) i;
CREATE VIEW people AS SELECT id, name, email AS contact, born FROM customers;
CREATE VIEW folk AS SELECT p.id, lower(p.contact) AS reach, o.item FROM people p JOIN orders o ON o.customer_id = p.id;
CREATE MATERIALIZED VIEW frozen AS SELECT id, name, email || '' AS copied FROM customers;
CREATE TABLE visits (id int, email text, at int) PARTITION BY RANGE (at);
CREATE TABLE visits_1 PARTITION OF visits FOR VALUES FROM (0) TO (10);
CREATE TABLE visits_2 PARTITION OF visits FOR VALUES FROM (10) TO (20);
INSERT INTO visits SELECT i, replace('{EMAIL}', '{{}}', i::text), i * 5 FROM generate_series(1, {ROWS}) i;
CREATE TABLE persons (id int, contact text);
CREATE TABLE vips (rank int) INHERITS (persons);
INSERT INTO vips SELECT i, replace('{EMAIL}', '{{}}', i::text), i FROM generate_series(1, {ROWS}) i;
INSERT INTO persons VALUES (9, 'public person');
CREATE SCHEMA safe;
CREATE TABLE safe.customers (id int, name text, email text, card varchar(32));
INSERT INTO safe.customers VALUES (1, 'safe1', 'open@shop.test', '0000');
CREATE TABLE "Odd.Table" (id int, "E-Mail" text, "plain" text);
INSERT INTO "Odd.Table" SELECT i, replace('{EMAIL}', '{{}}', i::text), 'plain' || i FROM generate_series(1, {ROWS}) i;
CREATE FUNCTION emails() RETURNS SETOF text LANGUAGE sql STABLE AS 'SELECT email FROM public.customers';
CREATE FUNCTION all_customers() RETURNS SETOF customers LANGUAGE sql STABLE AS 'SELECT * FROM public.customers';
CREATE FUNCTION email_of(i int) RETURNS text LANGUAGE plpgsql IMMUTABLE
    AS 'BEGIN RETURN (SELECT email FROM public.customers WHERE id = i); END';
CREATE FUNCTION contact_of(c customers) RETURNS text LANGUAGE sql STABLE AS 'SELECT c.email';
CREATE FUNCTION shout(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''%'', $1; RETURN 1; END';
CREATE FUNCTION scream(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''%'', $1; END';
CREATE FUNCTION whisper(text) RETURNS void LANGUAGE sql AS $$ SELECT pg_notify('leak', $1) $$;
CREATE PROCEDURE tell() LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''%'', (SELECT max(email) FROM public.customers); END';
ANALYZE;
"""

MASKS: Final = """
  - name: personal
    mask:
      - {columns: [public.customers.email, public.customers.mail, public.visits_1.email, public.visits.email],
         action: partial, keep: 2}
      - {columns: [public.customers.card], action: hash}
      - {columns: [public.customers.code, public.customers.born, public.customers.balance, public.customers.ref,
                   public.customers.mood, public.customers.tags], action: redact}
      - {columns: [public.customers.note], action: constant, text: '{"hidden": true}'}
      - {columns: [public.customers.phones], action: "null"}
      - {columns: [public.vips.contact, "public.Odd?Table.E-Mail"], action: redact, text: "<hidden>"}
"""

EVERYTHING: Final = """
rules:
  - name: everything
    commands: {kinds: [read, write, define, delete, execute, transfer, admin, session, unknown], opaque: true}
    allow: true
"""

SHOP: Final = Target("shop", "postgres", database="shop")


def ruleset(text: str) -> RuleSet:
    """Load rules as the gateway does."""
    return load_rules(text, "rules.yaml", [SHOP], verbs={"postgres": VERBS}, detectors=("email", "card"))


def found_canaries(data: bytes) -> list[bytes]:
    """Return the canaries in data."""
    return [canary for canary in CANARIES if canary in data]


@dataclass
class Watch:
    """Looks at the tapes of a gateway, each once."""

    gate: Gateway
    seen: set[str] = field(default_factory=set)

    def leaks(self) -> list[tuple[str, list[bytes], bytes]]:
        """Wait until no session is open, then return every record of the new tapes that holds a canary."""
        deadline = time.monotonic() + 20
        while not self.gate.idle():
            assert time.monotonic() < deadline, "a session does not end"
        found = []
        for path in self.gate.tape_files():
            if path.name in self.seen:
                continue
            self.seen.add(path.name)
            for record in TapeReader(path).records():
                canaries = found_canaries(bytes(record.payload))
                if canaries:
                    found.append((str(record.kind), canaries, bytes(record.payload)[:400]))
        return found


def everything(connection: psycopg.Connection[Any], text: str, binary: bool = False) -> str:
    """Run one text and return all that a user can read of it: rows, columns, tag, or the error; one string."""
    notices: list[str] = []
    connection.add_notice_handler(lambda diagnostic: notices.append(str(diagnostic.message_primary)))
    cursor = connection.cursor(binary=binary, row_factory=tuple_row)
    shown: list[Any] = []
    try:
        if text.lstrip().lower().startswith("copy") and "stdout" in text.lower():
            with cursor.copy(text.encode()) as copy:
                shown.append(b"".join(bytes(block) for block in copy))
        else:
            cursor.execute(text.encode())
            while True:
                shown.append(cursor.statusmessage)
                if cursor.description is not None:
                    shown += [[column.name for column in cursor.description], *cursor.fetchall()]
                if not cursor.nextset():
                    break
    except psycopg.Error as error:
        diagnostic = error.diag
        shown.append(
            ("ERROR", error.sqlstate, diagnostic.message_primary, diagnostic.message_detail, diagnostic.message_hint,
             diagnostic.context, diagnostic.internal_query, str(error))
        )  # fmt: skip
    return f"{shown} {notices}"


def columns_of(rows: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The columns of some rows."""
    yield from zip(*rows, strict=True)
