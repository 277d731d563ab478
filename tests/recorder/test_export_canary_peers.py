"""Masked values are in no export of a real session: not in the text, not in the base64, not in what is inflated."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path

import psycopg
import pytest

from recorder.export_file import export_to
from recorder.export_media import command as media_command
from recorder.export_options import FORMATS, MEDIA_FORMATS, ExportError, ExportOptions
from recorder.reader import TapeReader
from tests.peers.postgres import PeerMissing, PostgresServer, need
from tests.postgres.gateway import gateway
from tests.postgres.masked_shop import CANARIES, EVERYTHING, MASKS, SCHEMA, found_canaries, ruleset

pytestmark = [pytest.mark.peer, pytest.mark.timeout(180)]

# A packed number of three bytes occurs by chance in a compressed film.
LONG = [canary for canary in CANARIES if len(canary) >= 6]


def look(data: bytes) -> list[bytes]:
    """Return the canaries in an export, in whatever of it is base64, and in text whose colours stand in its way."""
    found = found_canaries(data)
    for piece in re.findall(rb"[A-Za-z0-9+/]{8,}", data):
        if len(piece) % 4 != 1:
            found += found_canaries(base64.b64decode(piece + b"=" * (-len(piece) % 4)))
    return found + found_canaries(re.sub(rb"<[^>]*>|\x1b\[[0-9;]*m|\\u001b\[[0-9;]*m", b"", data))


def test_the_search_finds_what_is_hidden() -> None:
    for canary in CANARIES:
        assert look(b"..." + canary + b"..."), canary
        assert look(json.dumps({"base64": base64.b64encode(b"xyz" + canary).decode()}).encode()), canary
    assert look(b"<b>vogel</b>frei")
    assert not look(b"nothing")


def test_masked_values_are_in_no_export(postgres15: PostgresServer, tmp_path: Path) -> None:
    rules = ruleset(EVERYTHING + MASKS)
    with (
        postgres15.database("exports", SCHEMA),
        gateway(postgres15.port, database="exports", policy=rules.decide) as gate,
    ):
        columns = "id, name, email, card, code, note, born, balance, tags, ref, mood, mail, phones"
        query = f"SELECT {columns} FROM customers ORDER BY id"
        with psycopg.connect(gate.conninfo(), autocommit=True) as connection:
            for binary in (False, True):
                assert len(connection.execute(query.encode(), binary=binary).fetchall()) == 3
            connection.execute("SELECT * FROM customers WHERE id = %s", [2]).fetchall()
            with connection.cursor().copy(f"COPY customers ({columns}) TO STDOUT".encode()) as copy:
                assert b"".join(copy)
            with pytest.raises(psycopg.Error):
                connection.execute("SELECT 1/0")
        subprocess.run(
            [str(postgres15.bin / "psql"), "-X", "-c", f"{query};"],
            env={**gate.environment, **postgres15.environment}, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        tapes = gate.tape_files()
        assert len(tapes) == 2
        for number, path in enumerate(tapes):
            for form in FORMATS:
                out = tmp_path / f"{number}.{form}"
                if form == "har":
                    continue
                if form in MEDIA_FORMATS:
                    try:
                        media_command(form)
                    except ExportError as missing:
                        need(PeerMissing(str(missing)))
                export_to(TapeReader(path), form, out, ExportOptions(idle_limit_seconds=0.1, keys=True, raw=True))
                data = out.read_bytes()
                if form in ("gif", "mp4"):
                    assert not [canary for canary in LONG if canary in data], form
                else:
                    assert not look(data), form
                    if form != "raw":
                        assert b"customers" in data
            assert b"name1" in (tmp_path / f"{number}.txt").read_bytes()  # what is not masked is there
