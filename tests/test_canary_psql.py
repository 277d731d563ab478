"""Canaries: masked values, the target's password and the user's token are in no byte that a gateway leaves behind.

One real gateway with everything on: masks, an original track for an auditor, encryption, two workers, index, vault,
JSON log. Real psql and psycopg make it handle masked values in every way; then it is killed, so that its write-ahead
logs stay. What is searched: the state directory, each block of tapes and logs decrypted and inflated, the databases,
the vault, logs, temporary files, the processes' environments, and what every command of gatecast prints and exports.

The same search with the mask of one column taken out must find that column at each of these places: a search that
finds nothing may just be blind.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
import zstandard

from proxy import cli
from proxy.certificates import self_signed
from proxy.identity.commands import token_issue
from recorder.cipher import AuditorKey, SegmentCipher, unlock
from recorder.format import BLOCK_HEADER_BYTES, CHAIN_BYTES, ENCRYPTED, KEYS_SUFFIX, ZSTD, decode_header
from recorder.reader import TapeReader
from recorder.walformat import EntryKind, decode_open, read_entries
from tests.peers.postgres import PASSWORD, PostgresServer
from tests.postgres.masked_shop import CANARIES, EVERYTHING, MASKS, SCHEMA
from tests.test_kill_psql import environment, port_of

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]

# A packed number of three bytes is in any film or cipher text by chance: those are searched in plain records only.
LONG: Final = tuple(one for one in CANARIES if len(one) >= 6 and not re.fullmatch(rb"([0-9a-f]{2}){13}", one))
FORMATS: Final = ("asciicast-v2", "asciicast-v3", "txt", "jsonl", "html", "sql", "raw", "svg")
COLUMNS: Final = "id, name, email, card, code, note, born, balance, tags, ref, mood, mail, phones"
# The mask that the blind copy lacks.
UNMASKED: Final = MASKS.replace("public.customers.email, public.customers.mail", "public.customers.mail")
STATEMENTS: Final = (
    f"SELECT {COLUMNS} FROM customers ORDER BY id",
    "SELECT email::int FROM customers",
    "SELECT scream(email) FROM customers",
    "SELECT shout(email) FROM customers",
    "SELECT shout(contact_of(customers)) FROM customers",
    "CALL tell()",
    "UPDATE customers SET email = 'no address' WHERE id = 1",
    "UPDATE customers SET id = id + 1 WHERE id = 1 RETURNING email",
    "SELECT * FROM people",
    "SELECT * FROM folk",
    "SELECT * FROM all_customers()",
    "SELECT row_to_json(c) FROM customers c",
    "SELECT encode(convert_to(email, 'utf8'), 'base64'), encode(convert_to(email, 'utf8'), 'hex') FROM customers",
    "BEGIN",
    "DECLARE c CURSOR FOR SELECT * FROM customers",
    "FETCH 2 FROM c",
    "FETCH ALL FROM c",
    "ROLLBACK",
    "PREPARE p AS SELECT email, card FROM customers WHERE id = $1",
    "EXECUTE p(2)",
    f"COPY customers ({COLUMNS}) TO STDOUT",
    f"COPY customers ({COLUMNS}) TO STDOUT (FORMAT csv)",
    "COPY customers FROM STDIN",
)


def needles(canary: bytes) -> dict[bytes, str]:
    """Return the ways in which a canary may be written."""
    text = canary.decode("latin-1")
    found = {
        canary: "plain",
        canary.hex().encode(): "hex",
        canary.hex().upper().encode(): "HEX",
        text.encode("utf-16-le"): "UTF-16LE",
        text.encode("utf-16-be"): "UTF-16BE",
        canary[::-1]: "backwards",
    }
    for shift in range(3):  # whatever stands before it
        encoded = base64.b64encode(bytes(shift) + canary)
        inner = encoded[-(-shift * 8 // 6) : (shift + len(canary)) * 8 // 6]
        found[inner] = found[inner.replace(b"+", b"-").replace(b"/", b"_")] = f"base64+{shift}"
    return found


def layers(data: bytes) -> Iterator[bytes]:
    """Yield the data, what is inflated from it, what is base64 in it, and text without what stands between letters."""
    yield data
    yield re.sub(rb"<[^>]*>|\x1b\[[0-9;]*m|\\u001b\[[0-9;]*m|\s", b"", data)
    inflated = []
    for piece in (data, *_from_base64(data)):
        if piece is not data:
            yield piece
        for start in (b"\x1f\x8b\x08", b"\x78\x9c", b"\x78\xda", b"\x78\x01", b"\x28\xb5\x2f\xfd"):
            at = -1
            while (at := piece.find(start, at + 1)) >= 0:
                with contextlib.suppress(zlib.error, zstandard.ZstdError):
                    if start[0] == 0x28:
                        inflated.append(zstandard.ZstdDecompressor().decompressobj().decompress(piece[at:]))
                    else:
                        inflated.append(zlib.decompressobj(47).decompress(piece[at:]))
    yield from inflated
    for piece in inflated:
        yield from _from_base64(piece)


def _from_base64(data: bytes) -> Iterator[bytes]:
    for piece in re.findall(rb"[A-Za-z0-9+/]{64,}", data):
        yield base64.b64decode(piece[: len(piece) // 4 * 4])


class Search:
    """Looks for canaries; found: (place, canary, how it was written)."""

    def __init__(self, canaries: tuple[bytes, ...]) -> None:
        self._needles = {needle: (canary, how) for canary in canaries for needle, how in needles(canary).items()}
        self.found: set[tuple[str, bytes, str]] = set()
        self.searched: dict[str, int] = {}

    def look(self, place: str, data: bytes) -> None:
        for layer in layers(data):
            self.searched[place] = self.searched.get(place, 0) + len(layer)
            for needle, (canary, how) in self._needles.items():
                if needle in layer:
                    self.found.add((place, canary, how))

    @property
    def places(self) -> set[str]:
        return {place for place, _, _ in self.found}


def unpacked(flags: int, stored: bytes, cipher: SegmentCipher | None, head: bytes, seq: int) -> bytes:
    if flags & ENCRYPTED:
        if cipher is None:
            return b""
        stored = cipher.open(head, seq, stored)
    return zstandard.ZstdDecompressor().decompress(stored) if flags & ZSTD else stored


def blocks(data: bytes, keys_file: bytes | None, keys: list[AuditorKey]) -> Iterator[bytes]:
    """Yield the content of every block of a segment, the indexes too; nothing of one that the keys do not open."""
    header = decode_header(data)
    cipher = None
    if "enc" in header.map_:
        with contextlib.suppress(Exception):  # it is for somebody else
            cipher = unlock(header, keys_file, keys)
    at = len(header.raw)
    while data[at : at + 4] == b"GCTB" and at + BLOCK_HEADER_BYTES <= len(data):
        head = data[at : at + BLOCK_HEADER_BYTES]
        size = int.from_bytes(head[40:44], "little")
        stored = data[at + BLOCK_HEADER_BYTES : at + BLOCK_HEADER_BYTES + size]
        if len(stored) < size:
            return
        yield unpacked(head[5], stored, cipher, head, int.from_bytes(head[8:16], "little"))
        at += BLOCK_HEADER_BYTES + size + CHAIN_BYTES


def log_blocks(data: bytes, keys: list[AuditorKey]) -> Iterator[bytes]:
    """Yield the content of every block that a write-ahead log's file holds."""
    ciphers: dict[tuple[bytes, int, int], SegmentCipher | None] = {}
    for entry in read_entries(data):
        key = (entry.sid, entry.track, entry.segment)
        if entry.kind is EntryKind.OPEN:
            raw, keys_file = decode_open(entry.body)
            ciphers[key] = None
            if "enc" in decode_header(raw).map_:
                with contextlib.suppress(Exception):
                    ciphers[key] = unlock(decode_header(raw), keys_file, keys)
        elif entry.kind is EntryKind.FULL:
            head = entry.body[:BLOCK_HEADER_BYTES]
            seq = int.from_bytes(head[8:16], "little")
            yield unpacked(head[5], entry.body[BLOCK_HEADER_BYTES:], ciphers[key], head, seq)


def place_of(path: Path, folder: Path) -> str:
    """A short name for a sort of file."""
    name = path.relative_to(folder).as_posix()
    if "/tapes/" in f"/{name}":
        return "tape" if name.endswith(".gct") else "wal" if "/wal/" in name else "beside the tapes"
    return "export" if name.startswith("exports/") else name.split("/")[0]


def search_files(search: Search, folder: Path, keys: list[AuditorKey]) -> None:
    """Look into every file below the folder, but for the target's secret and the clients' own files."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink() or path == folder / "secret" or "clients" in path.parts:
            continue
        data, place = path.read_bytes(), place_of(path, folder)
        search.look(place, data.rstrip(b"\0") if path.suffix == ".wal" else data)
        if ".gct" in path.name and data.startswith(b"\x89GCT"):
            keys_path = path.with_name(path.name.partition(".gct")[0].rpartition(".")[0] + KEYS_SUFFIX)
            keys_file = keys_path.read_bytes() if keys_path.exists() else None
            for content in blocks(data, keys_file, keys):
                search.look(f"{place}, inside", content)
        elif path.suffix == ".wal":
            for content in log_blocks(data, keys):
                search.look(f"{place}, inside", content)


class World:
    """A gateway's folder, and the clients that use it."""

    def __init__(self, folder: Path, server: PostgresServer, database: str, rules: str) -> None:
        self.folder = folder
        self.reader = AuditorKey.generate(folder / "reader.key")
        self.auditor = AuditorKey.generate(folder / "auditor.key")
        (folder / "reader.pub").write_bytes(self.reader.public_pem())
        (folder / "auditor.pub").write_bytes(self.auditor.public_pem())
        self_signed(folder, ["localhost", "127.0.0.1"])
        for name in ("tmp", "vault", "vault-keys", "exports", "clients"):
            (folder / name).mkdir()
        (folder / "secret").write_text(f"{PASSWORD}\n")
        (folder / "secret").chmod(0o600)
        (folder / "rules.yaml").write_text(rules)
        target = (
            f"host: 127.0.0.1, port: {server.port}, database: {database}, sslmode: disable,"
            " credential: {user: by_scram, password_file: secret}"
        )
        (folder / "gatecast.yaml").write_text(
            "state: state\n"
            "workers: 2\n"
            "listeners: [{name: pg, protocol: postgres, address: '127.0.0.1:0', tls: {cert: tls.crt, key: tls.key}}]\n"
            "targets:\n"
            f"  - {{name: watched, original_to: [auditor.pub], {target}}}\n"
            f"  - {{name: locked, recording: strict, encrypt_to: [reader.pub], {target}}}\n"
            "recorder: {reserve: 0}\n"
            f"vault: {{url: 'file://{folder / 'vault'}', keys_url: 'file://{folder / 'vault-keys'}'}}\n"
            "limits: {drain_seconds: 0}\n"
            "rules_file: rules.yaml\n"
        )
        state = folder / "state" / "gatecast.db"
        self.token: str = token_issue(state, "ana@example.com", groups=["dev"])["token"]
        self.environment = {**environment(""), "TMPDIR": str(folder / "tmp"), "GATECAST_DEBUG": "1"}

    @contextlib.contextmanager
    def serving(self, name: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        log = self.folder / name
        with log.open("w") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "proxy", "serve", "--log-json"],
                cwd=self.folder, env=self.environment, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        try:
            yield child, port_of(child, log)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait(30)

    def conninfo(self, port: int, target: str) -> str:
        return (
            f"host=localhost port={port} user=whoever dbname={target} sslmode=verify-full"
            f" sslrootcert={self.folder / 'tls.crt'} application_name=canary"
        )

    def use(self, port: int, target: str) -> None:
        """Handle masked values in every way that clients have."""
        script = "\n".join(f"{text};" if not text.endswith("STDIN") else f"{text};\n\\." for text in STATEMENTS)
        done = subprocess.run(
            ["psql", "-X", "-v", "VERBOSITY=verbose", self.conninfo(port, target)], input=script,
            env={**environment(self.token), "TMPDIR": str(self.folder / "clients")},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "name1" in done.stdout, done.stderr
        (self.folder / "clients" / f"psql-{target}").write_text(done.stdout + done.stderr)
        with psycopg.connect(f"{self.conninfo(port, target)} password={self.token}", autocommit=True) as connection:
            for binary in (False, True):
                query = f"SELECT {COLUMNS} FROM customers WHERE id > %s ORDER BY id".encode()
                assert connection.execute(query, [0], binary=binary).fetchall()
            with connection.cursor().copy(f"COPY customers ({COLUMNS}) TO STDOUT (FORMAT binary)".encode()) as copy:
                assert b"".join(copy)
            for text in (b"SELECT email::int FROM customers", b"SELECT 1/0"):
                with contextlib.suppress(psycopg.Error):
                    connection.execute(text)
            with connection.transaction(), connection.cursor(name="scrolled", binary=True) as cursor:
                cursor.execute(b"SELECT * FROM customers")
                cursor.fetchmany(2)

    def hang(self, port: int, target: str) -> psycopg.Connection[tuple[object, ...]]:
        """A session that is open when the gateway is killed."""
        connection = psycopg.connect(f"{self.conninfo(port, target)} password={self.token}")
        assert connection.execute(f"SELECT {COLUMNS} FROM customers".encode()).fetchall()
        return connection


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(word) for word in task.read_text().split()]
    return found


def wait_for(condition: object, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def commands_output(world: World, capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[tuple[str, bytes]]:
    """Run every command that shows or exports sessions; yield its name and what it printed, its errors too."""
    identity = str(world.folder / "reader.key")
    sids = sorted(path.name[:26] for path in (world.folder / "state" / "tapes").rglob("*.000.gct"))
    lines: list[tuple[str, list[str]]] = [
        ("sessions reindex", ["sessions", "reindex"]),
        ("sessions list", ["sessions", "list", "--json"]),
        ("verify", ["verify", "--json", "--identity", identity]),
        ("vault", ["vault", "status"]),
    ]
    lines += [("sessions search", ["sessions", "search", word, "--json"]) for word in ("customers", "email", "shout")]
    for sid in dict.fromkeys(sids):
        lines.append(("sessions show", ["sessions", "show", sid, "--json", "--identity", identity]))
        lines.append(("replay", ["replay", sid, "--plain", "--raw", "--identity", identity]))
        lines.append(("replay", ["replay", sid, "--plain", "--identity", identity]))
        for form in FORMATS:
            out = world.folder / "exports" / f"{sid}.{form}.{time.monotonic_ns()}"
            more = ["--keys", "--raw"] if "cast" in form else ["--direction", "all"] if form == "raw" else []
            lines.append((form, ["export", sid, "--format", form, "-o", str(out), "--identity", identity, *more]))
    capfdbinary.readouterr()
    for name, line in lines:
        with contextlib.suppress(SystemExit):
            code = cli.main(line)
            assert code in (0, 1, 2), line
        said = capfdbinary.readouterr()
        yield name, said.out + said.err


def run_world(
    world: World, search: Search, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Use a gateway, kill it, and look everywhere; start it again, and look once more."""
    folder = world.folder
    keys = [world.reader]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    with world.serving("log-1") as (child, port):
        for target in ("watched", "locked"):
            world.use(port, target)
        hanging = [world.hang(port, target) for target in ("watched", "locked")]
        wait_for(lambda: list((folder / "vault").rglob("*.gct")), "the vault has a tape")
        for pid in family(child.pid):
            search.look("environment", Path(f"/proc/{pid}/environ").read_bytes())
            search.look("environment", Path(f"/proc/{pid}/cmdline").read_bytes())
        shutil.copytree(folder / "state", folder / "while-it-runs", ignore=shutil.ignore_patterns("*.sock"))
        for pid in reversed(family(child.pid)):
            os.kill(pid, signal.SIGKILL)
        child.wait(30)
        for connection in hanging:
            connection.close()
    assert list((folder / "state").rglob("*.wal"))
    search_files(search, folder, keys)
    for name, said in commands_output(world, capfdbinary):
        search.look(name, said)
    with world.serving("log-2") as (child, _):
        wait_for(lambda: not any(one.suffix == ".wal" for one in (folder / "vault").rglob("*")), "no log is uploaded")
    for name, said in commands_output(world, capfdbinary):
        search.look(name, said)
    search_files(search, folder, keys)


@pytest.fixture
def canary_shop(postgres15: PostgresServer) -> Iterator[PostgresServer]:
    grants = "GRANT ALL ON ALL TABLES IN SCHEMA public, safe TO by_scram; GRANT USAGE ON SCHEMA safe TO by_scram;"
    with postgres15.database("canaries", SCHEMA + grants):
        yield postgres15


def test_needles_are_found_however_they_are_written() -> None:
    for canary in LONG:
        for before in (b"", b"x", b"xy", b"xyz"):
            for data in (
                before + canary, (before + canary).hex().encode(), base64.b64encode(before + canary),
                (before + canary).decode("latin-1").encode("utf-16-le"), zlib.compress(before + canary),
                zstandard.compress(before + canary), base64.b64encode(zlib.compress(before + canary + os.urandom(64))),
            ):  # fmt: skip
                search = Search(LONG)
                search.look("here", b".." + data + b"..")
                assert canary.lower() in {found.lower() for _, found, _ in search.found}, (canary, data)


def test_nothing_that_is_masked_or_secret_is_anywhere(
    tmp_path: Path,
    canary_shop: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    world = World(tmp_path, canary_shop, "canaries", EVERYTHING + MASKS)
    secrets = (world.token.encode(), world.token.encode()[-24:], PASSWORD.encode(), PASSWORD.encode()[:13])
    search = Search((*LONG, *secrets))
    run_world(world, search, monkeypatch, capfdbinary)
    assert search.found == set()
    for place in ("tape, inside", "wal, inside", "state", "vault", "log-1", "export", "replay", "sessions search"):
        assert search.searched.get(place, 0) > 100, (place, search.searched)

    originals = sorted((tmp_path / "state" / "tapes").rglob("*.original.000.gct"))
    assert originals
    found = b""
    for path in originals:
        data, keys_file = path.read_bytes(), path.with_name(f"{path.name[:26]}.original{KEYS_SUFFIX}").read_bytes()
        assert b"".join(blocks(data, keys_file, [world.auditor])), path
        found += b"".join(record.payload for record in TapeReader(path, [world.auditor]).records())
    assert {
        canary for canary in (b"kanarienvogel", b"vogeltag", b"vogelfrei", b"190919") if canary not in found
    } == set()
    assert PASSWORD.encode() not in found
    assert world.token.encode() not in found


def test_the_search_sees_a_mask_that_is_missing(
    tmp_path: Path,
    canary_shop: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    world = World(tmp_path, canary_shop, "canaries", EVERYTHING + UNMASKED)
    search = Search(LONG)
    run_world(world, search, monkeypatch, capfdbinary)
    places = {place for place, canary, _ in search.found if canary == b"kanarienvogel"}
    assert {"tape, inside", "wal, inside", "export", "replay"} <= places, places
