"""Attacks by a file on whoever looks at it: small files that would fill the memory, deep nesting, absurd numbers."""

from __future__ import annotations

import asyncio
import io
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard

from proxy.cli import main
from recorder.cli import show
from recorder.errors import FormatError
from recorder.export import export_tape
from recorder.format import BlockType, Kind, encode_block_header, encode_header, encode_trailer
from recorder.reader import TapeReader
from recorder.seal import chain_hash, header_hash, leaf_hash
from recorder.verify import verify
from tests.recorder.nodelogs import KEYS
from tests.recorder.tapes import KEY, recorder, small_tape

SID = "01JD8Z7Q000000000000000000"
MEGABYTE = 1 << 20
HEADER: dict[str, Any] = {
    "sid": SID, "segment": 0, "prev": None, "first_record": 0, "track": "main", "node": "n", "boot": "b",
    "wall0_ns": 1_795_000_000 * 10**9, "mono0_ns": 0, "protocol": "postgres", "target": "shop",
    "identity": {"subject": "ana"}, "run": "", "policy_rev": "", "mode": "durable", "more": {},
}  # fmt: skip


class Forger:
    """Writes a file block by block, with a chain that holds and no seal: what anybody can make."""

    def __init__(self, path: Path, **header: Any) -> None:
        self.path = path
        raw = encode_header({**HEADER, **header})
        self.file = path.open("wb")
        self.file.write(raw)
        self.chain = header_hash(raw)
        self.seq = self.record = 0
        self.size = self.start = len(raw)

    def block(self, kind: BlockType, raw: bytes, records: int = 0, flags: int = 1, raw_len: int | None = None) -> int:
        stored = zstandard.ZstdCompressor(3).compress(raw) if flags & 1 else raw
        length = len(raw) if raw_len is None else raw_len
        head = encode_block_header(int(kind), flags, self.seq, self.record, 0, records, length, len(stored))
        self.chain = chain_hash(self.chain, leaf_hash(head, stored))
        self.file.write(head + stored + self.chain)
        at, self.size = self.size, self.size + 80 + len(stored)
        self.seq += 1
        self.record += records
        return at

    def data(self, *payloads: tuple[int, bytes]) -> None:
        records = [[self.record + i, 0, 1, kind, payload] for i, (kind, payload) in enumerate(payloads)]
        self.block(BlockType.DATA, b"".join(map(msgpack.packb, records)), len(records))

    def sealed(self, index_at: int, body: dict[str, Any] | None = None) -> Path:
        """End it with a seal that nobody checks before the trailer leads a reader to it."""
        said = {"status": "closed", "commands": 0, "records": self.record, "t_last": 0, **(body or {})}
        self.block(BlockType.SEAL, KEY.seal(said), flags=0)
        self.file.write(encode_trailer(index_at))
        return self.done()

    def done(self) -> Path:
        self.file.close()
        return self.path


@contextmanager
def memory(limit: int) -> Iterator[None]:
    """Fail if the body takes more than so much at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak / MEGABYTE:.0f} MiB"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / f"{SID}.000.gct"


def commands(count: int = 8000) -> bytes:
    one: bytes = msgpack.packb([0, 0, "", "", "", "x" * 100])
    return one * count


def test_a_bomb_of_command_indexes(path: Path) -> None:
    """A hundred bytes for each 880 KB of entries, all of them objects in memory: before any signature was looked at."""
    forger = Forger(path)
    forger.data((Kind.WIRE, b"x"))
    for _ in range(100):
        forger.block(BlockType.COMMANDS, commands())
    assert forger.done().stat().st_size < MEGABYTE
    with memory(60 * MEGABYTE):
        report = verify(path, KEYS)
    assert report.status == "altered" and "more commands" in str(report.tapes[0].fault)


def test_a_bomb_of_commands_in_the_records(path: Path) -> None:
    forger = Forger(path)
    command = msgpack.packb({"verb": "x" * 200, "text": "y" * 120})
    for _ in range(30):
        forger.data(*((Kind.COMMAND, command) for _ in range(2400)))
    size = forger.done().stat().st_size
    assert size < MEGABYTE
    report = verify(path, KEYS)
    assert "more commands" in str(report.tapes[0].fault), report
    with memory(80 * MEGABYTE), pytest.raises(FormatError, match="more commands"):
        list(TapeReader(path).commands())


@pytest.mark.parametrize("kind", [BlockType.INDEX, BlockType.COMMANDS])
def test_a_bomb_behind_a_trailer(path: Path, kind: BlockType) -> None:
    """Opening went by the trailer and read all that it led to."""
    forger = Forger(path)
    forger.data((Kind.WIRE, b"x"))
    entries = [[forger.start, 1, 0, 0, 0, 1, bytes(32)]]
    if kind is BlockType.COMMANDS:
        at = [forger.block(kind, bytes(MEGABYTE // 2) + b"\xc0") for _ in range(60)]
        entries += [[offset, int(kind), seq, 1, 0, 0, bytes(32)] for seq, offset in enumerate(at, 1)]
    index_at = forger.block(BlockType.INDEX, b"".join(map(msgpack.packb, entries)))
    if kind is BlockType.INDEX:
        for i in range(60):
            forger.block(kind, msgpack.packb([0, 1, i + 2, 1, 0, 1, bytes(32)]) + bytes(MEGABYTE // 2))
    forger.sealed(index_at, {"commands": 1})
    assert path.stat().st_size < 100_000
    with memory(40 * MEGABYTE):
        tape = TapeReader(path)
        try:
            list(tape.commands())
            list(tape.records())
        except FormatError as error:
            assert "more commands or blocks" in error.reason
        else:
            assert kind is BlockType.INDEX  # the blocks are walked, then


def test_a_block_that_says_more_than_it_holds(path: Path) -> None:
    forger = Forger(path)
    frame = zstandard.ZstdCompressor().compress(bytes(64 * MEGABYTE))
    head = encode_block_header(1, 1, 0, 0, 0, 1, MEGABYTE, len(frame))
    chain = chain_hash(forger.chain, leaf_hash(head, frame))
    forger.file.write(head + frame + chain)
    forger.done()
    with memory(8 * MEGABYTE):
        report = verify(path, KEYS)
    assert "content size" in str(report.tapes[0].fault)


@pytest.mark.parametrize("depth", [500, 1000, 1023, 5000, 60_000])
def test_deep_nesting(path: Path, depth: int) -> None:
    deep = b"\x91" * depth + b"\xc0"
    forger = Forger(path)
    payload = b"\x82\xa4verb" + deep + b"\xa4text" + deep
    forger.data((Kind.COMMAND, payload), (Kind.RESULT, b"\x81\xa5error" + deep), (Kind.MARK, deep))
    forger.block(BlockType.DATA, b"\x95" + deep, 1)
    forger.done()
    assert verify(path, KEYS).status in ("altered", "incomplete")
    seen = show(path)
    assert seen["sid"] == SID
    for form in ("jsonl", "txt", "asciicast-v2", "html"):
        export_tape(TapeReader(path), form, io.StringIO())


@pytest.mark.parametrize("depth", [400, 900, 1020])
def test_deep_nesting_in_a_header(path: Path, depth: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep: Any = None
    for _ in range(depth):
        deep = [deep]
    body = msgpack.Packer(use_bin_type=True)
    fields = {key: value for key, value in HEADER.items() if key != "more"}
    raw = body.pack_map_header(len(fields) + 1)
    raw += b"".join(body.pack(key) + body.pack(value) for key, value in fields.items())
    raw += body.pack("more") + b"\x91" * depth + b"\xc0"
    from recorder.layout import _CRC, _PROLOGUE, MAGIC

    head = _PROLOGUE.pack(MAGIC, 1, len(raw)) + raw
    import zlib

    path.write_bytes(head + _CRC.pack(zlib.crc32(head)))
    key = tmp_path / "seal.pub"
    key.write_bytes(KEY.public_pem())
    assert main(["verify", str(path), "--key", str(key)]) == 1
    for arguments in (["sessions", "show", str(path)], ["sessions", "show", str(path), "--json"],
                      ["export", str(path), "--format", "jsonl"]):  # fmt: skip
        assert main(arguments) in (0, 1)
    assert "internal error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "header",
    [
        {"wall0_ns": 2**64 - 1}, {"wall0_ns": -(2**63)}, {"first_record": 2**64 - 1}, {"first_record": -5},
        {"segment": 2**63}, {"segment": -1}, {"sid": "../../../etc/passwd"}, {"sid": "x" * 60_000},
        {"sid": "\x1b]0;x\x07\n"}, {"track": ["x"]}, {"node": {"a": 1}}, {"identity": [1]},
        {"more": {"tty": [10**9, 10**9]}},
        {"enc": "x"}, {"enc": {"suite": "AES-256-GCM", "salt": b"", "commit": b"", "wraps": b""}}, {"log": ["a"]},
        {"log": "\ud7ff\n"}, {"wall0_ns": True}, {"identity": {"agents": 5, "groups": "x"}},
    ],
)  # fmt: skip
def test_headers_that_say_anything(
    path: Path, header: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forger = Forger(path, **header)
    forger.data((Kind.WIRE, b"x"))
    forger.done()
    key = tmp_path / "seal.pub"
    key.write_bytes(KEY.public_pem())
    assert main(["verify", str(tmp_path), "--key", str(key)]) in (1, 2, 3)
    for arguments in (["sessions", "show", str(path)], ["replay", str(path), "--plain"],
                      ["export", str(path), "--format", "html"]):  # fmt: skip
        assert main(arguments) in (0, 1)
    said = capsys.readouterr()
    assert "internal error" not in said.err and "\x1b]" not in said.out + said.err


def test_a_signature_is_not_asked_for_by_name_alone(tmp_path: Path) -> None:
    """The key's id is what the file says; another key's signature under it does not hold."""
    of = recorder(tmp_path / "tapes")
    path = asyncio.run(small_tape(of))
    of.close()
    data = bytearray(path.read_bytes())
    at = data.rindex(KEY.id.encode())
    data[at + 30] ^= 1
    path.write_bytes(data)
    assert verify(path, KEYS).status == "altered"


def test_nothing_here_was_near_the_limit_of_the_process() -> None:
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 1024 * 1024  # KiB
