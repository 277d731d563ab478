"""Encrypted tapes and the original track with a real PostgreSQL: who holds which key sees what."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from proxy.core.parties import Target
from recorder.cipher import AuditorKey
from recorder.errors import Unreadable
from recorder.format import Kind, Record, fields
from recorder.reader import TapeReader
from recorder.verify import verify
from tests.fakes import FakeTargets
from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import gateway
from tests.postgres.masked_shop import CANARIES, EVERYTHING, MASKS, SCHEMA, everything, found_canaries, ruleset

pytestmark = pytest.mark.peer

KEEPER, AUDITOR = AuditorKey(X25519PrivateKey.generate()), AuditorKey(X25519PrivateKey.generate())
TEXTS = (
    "SELECT id, name FROM customers ORDER BY id",
    "SELECT * FROM customers ORDER BY id",
    "COPY customers (id, email) TO STDOUT",
    "INSERT INTO customers (id, name, email) SELECT 9, 'x', email FROM customers WHERE id = 1",
    "SELECT scream(email) FROM customers WHERE id = 2",
    "UPDATE customers SET name = 'y' WHERE id = 3 RETURNING email, note",
)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the recorder's directory after sessions of text and binary rows; made as it was just before the end."""
    server: PostgresServer = request.getfixturevalue("postgres18")
    kept: Path = tmp_path_factory.mktemp("kept")
    target = Target(
        "shop", "postgres", host="127.0.0.1", port=server.port, database="originals", settings={"sslmode": "disable"},
        encrypt_to=(KEEPER.recipient,), original_to=(AUDITOR.recipient,),
    )  # fmt: skip
    with (
        server.database("originals", SCHEMA),
        gateway(
            server.port, database="originals", policy=ruleset(EVERYTHING + MASKS).decide, targets=FakeTargets(target)
        ) as gate,
    ):
        for binary in (False, True):
            with psycopg.connect(gate.conninfo(), autocommit=True) as connection:
                for text in TEXTS:
                    shown = everything(connection, text, binary)
                    assert not found_canaries(shown.encode()), (text, shown)
                copy_of(gate.tapes, kept / f"while-{binary}")
        deadline = time.monotonic() + 20
        while not gate.idle():
            assert time.monotonic() < deadline, "a session does not end"
        (kept / "seal.pub").write_bytes(gate.key.public_pem())
        copy_of(gate.tapes, kept / "after")
        assert verify(kept / "after", gate.key.public_keys(), [KEEPER, AUDITOR]).status == "verified"
    return kept


def copy_of(source: Path, to: Path) -> None:
    """Copy what is there now; a log that is written to meanwhile is cut where it is."""
    for path in [path for path in source.rglob("*") if path.is_file()]:
        place = to / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())


def tapes(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "after").rglob("*.gct") if ".original." not in path.name)


def test_no_canary_is_on_the_disk_while_and_after(folder: Path) -> None:
    count = 0
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            count += 1
            assert not [canary for canary in CANARIES if len(canary) > 5 and canary in data], path
    assert count > 12
    assert sum(path.name.endswith(".original.000.gct") for path in (folder / "after").rglob("*")) == 2


def test_the_tape_is_masked_for_whoever_can_read_it(folder: Path) -> None:
    for path in tapes(folder):
        records = list(TapeReader(path, [KEEPER]).records())
        assert len(records) > 20
        assert not [record for record in records if found_canaries(record.payload)]


def test_the_auditor_has_what_the_masks_took_at_its_place(folder: Path) -> None:
    for path in tapes(folder):
        main: dict[int, Record] = {record.n: record for record in TapeReader(path, [KEEPER]).records()}
        original = path.with_name(path.name.replace(".000.", ".original.000."))
        pairs: list[tuple[dict[str, Any], bytes]] = []
        for record in TapeReader(original, [AUDITOR]).records():
            if record.kind == Kind.MARK:
                pairs.append((fields(record.payload), b""))
            elif record.kind == Kind.WIRE:
                pairs[-1] = (pairs[-1][0], pairs[-1][1] + record.payload)
        asked = {}
        for said, unmasked in pairs:
            assert found_canaries(unmasked), said
            seen = main[said["record"]]
            assert (seen.kind, seen.payload == unmasked) == (Kind.WIRE, False)
            assert seen.payload[:1] == unmasked[:1]  # the same message of PostgreSQL's, masked
            asked[fields(main[said["command"]].payload)["text"]] = unmasked
        # Not the first, which touches nothing that is masked; nor what the guard refused.
        assert {text.split()[0] for text in asked} == {"SELECT", "COPY", "UPDATE"}
        assert [text for text in asked if text.startswith("SELECT")] == [TEXTS[1], TEXTS[4]]
        assert b"kanarienvogel1@secret.example" in asked[TEXTS[2]]
        assert b"kanarienvogel2@secret.example" in asked[TEXTS[4]]


def test_the_disk_s_owner_cannot_read_it(folder: Path) -> None:
    for path in (folder / "after").rglob("*.gct"):
        with pytest.raises(Unreadable, match="give --identity FILE"):
            list(TapeReader(path, [KEEPER] if ".original." in path.name else [AUDITOR]).records())
