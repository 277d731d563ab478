"""Encrypted tapes from end to end: who can read them, who can verify them, and what erasing their keys leaves."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from recorder import cipher
from recorder.cipher import AuditorKey
from recorder.errors import FormatError, Unreadable
from recorder.format import BlockType, Kind, decode_header
from recorder.reader import TapeReader
from recorder.seal import PublicKeys
from recorder.tape import GATE, OUT, Recorder
from recorder.verify import verify
from tests.recorder.tapes import KEY, Clock, command, open_tape, pack, recorder
from tests.recorder.test_tape_cipher import open_by_the_book
from tests.recorder.test_tape_verify import blocks_of, remake

KEYS: PublicKeys = KEY.public_keys()
CANARY = b"canary-cell-91d2"
PRIVATE = X25519PrivateKey.generate()
ANA, EVE = AuditorKey(PRIVATE), AuditorKey(X25519PrivateKey.generate())


async def write(directory: Path, mode: Any = "durable", answers: int = 12, close: bool = True) -> Path:
    """Write an encrypted tape of several segments that holds CANARY in clear, in commands and in answers."""
    of = recorder(directory, segment_limit=1500)
    tape = open_tape(of, mode, recipients=[ANA.recipient])
    first = tape.path
    for i in range(answers):
        n = command(tape, f"SELECT {i}, '{CANARY.decode()}'")
        await tape.commit()
        tape.append(OUT, Kind.WIRE, (CANARY + b"%d " % i) * 80)
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "SELECT 1", "count": 1, "bytes": 200}))
        await tape.written()
    if close:
        await tape.close("closed", "bye")
        of.close()
    return first


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    return asyncio.run(write(tmp_path / "tapes"))


def everything(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def report(path: Path, decrypt: Sequence[AuditorKey] = ()) -> tuple[str, str, str]:
    found = verify(path, KEYS, decrypt)
    [one] = found.tapes
    return one.status, one.content, one.fault.reason if one.fault else ""


@pytest.mark.parametrize("mode", ["durable", "written", "strict"])
def test_no_byte_of_the_content_is_on_the_disk(tmp_path: Path, mode: str) -> None:
    """Neither in the tape nor in the log, also while the session runs."""

    async def scenario() -> None:
        path = await write(tmp_path / "tapes", mode, close=False)
        data = everything(tmp_path)
        assert path.stem[:26].encode() in data
        assert CANARY not in data
        assert b"SELECT" not in data

    asyncio.run(scenario())
    path = asyncio.run(write(tmp_path / "more", mode))
    data = everything(tmp_path)
    assert CANARY not in data
    for name in path.parent.glob("*.gct"):
        for block, stored in blocks_of(name.read_bytes()):
            if block.flags & 1 and not block.flags & 2:
                assert CANARY not in zstandard.ZstdDecompressor().decompress(stored)
            assert (block.flags & 2 != 0) == (block.type in (BlockType.DATA, BlockType.COMMANDS))


def test_with_the_key_it_reads_like_any_tape(tape: Path) -> None:
    reader = TapeReader(tape, [EVE, ANA])
    assert reader.encrypted
    assert len(reader.segments) >= 3
    records = list(reader.records())
    assert [r.n for r in records] == list(range(12 * 4 + 1))
    assert [r.payload for r in records if r.kind == Kind.WIRE][-1] == (CANARY + b"11 ") * 80
    entries = list(reader.commands())
    assert [entry.text for entry in entries] == [f"SELECT {i}, '{CANARY.decode()}'" for i in range(12)]
    assert next(reader.records(entries[7].n)).n == entries[7].n


@pytest.mark.parametrize("keys", [[], [EVE]])
def test_without_the_key_all_but_the_content_is_readable(tape: Path, keys: list[AuditorKey]) -> None:
    reader = TapeReader(tape, keys)
    assert reader.status == "closed"
    assert reader.next_record == 12 * 4 + 1
    assert reader.duration_ns > 0
    assert reader.header.map_["target"] == "shop"
    assert reader.last.seal is not None
    for look in (reader.records, reader.commands):
        with pytest.raises(Unreadable) as error:
            list(look())
        assert str(error.value) == f"encrypted to key {ANA.id}; give --identity FILE with it"


def test_a_live_tape_without_the_key(tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> None:
        of = recorder(tmp_path, monotonic_ns=clock)
        tape = open_tape(of, recipients=[ANA.recipient])
        assert TapeReader(tape.path).duration_ns == 0
        clock.pass_ms(20)
        command(tape, "SELECT 1")
        await tape.commit()
        reader = TapeReader(tape.path)
        assert (reader.status, reader.next_record, reader.duration_ns) == ("", 2, 20_000_000)
        with pytest.raises(Unreadable, match="--identity"):
            list(reader.records())  # and not as if its end were torn
        assert len(list(TapeReader(tape.path, [ANA]).records())) == 2
        await tape.close("closed")
        of.close()

    asyncio.run(scenario())


def test_a_stranger_reads_it_by_the_specification(tape: Path) -> None:
    keys_file = tape.with_name(tape.name.split(".")[0] + ".keys").read_bytes()
    records = []
    for path in TapeReader(tape).segments:
        data = path.read_bytes()
        said = decode_header(data).map_
        for block, stored in blocks_of(data):
            if block.type is not BlockType.DATA:
                continue
            head = data[block.offset : block.offset + 48]
            raw = open_by_the_book(PRIVATE, said, keys_file, (head, block.seq, stored))
            raw = zstandard.ZstdDecompressor().decompress(raw) if block.flags & 1 else raw
            unpacker = msgpack.Unpacker()
            unpacker.feed(raw)
            records += [(item[0], item[4]) for item in unpacker]
    assert records == [(r.n, r.payload) for r in TapeReader(tape, [ANA]).records()]


def test_no_nonce_is_used_twice_under_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []

    class Watched:
        def __init__(self, key: bytes) -> None:
            self.key, self.aead = key, AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            seen.append((self.key, nonce))
            return self.aead.encrypt(nonce, data, associated)

    monkeypatch.setattr(cipher, "AESGCM", Watched)
    path = asyncio.run(write(tmp_path, answers=40))
    segments = TapeReader(path).segments
    assert len(segments) >= 8
    assert len(seen) > 80
    assert len(set(seen)) == len(seen)
    assert len({key for key, _ in seen}) == len(segments)


# -- verification -------------------------------------------------------------------------------------------


def test_it_verifies_without_any_key_but_the_seals(tape: Path) -> None:
    assert report(tape) == ("verified", "encrypted", "")
    assert report(tape, [EVE]) == ("verified", "encrypted", "")
    assert report(tape, [ANA]) == ("verified", "checked", "")
    for decrypt in ([], [ANA]):
        [found] = verify(tape, KEYS, decrypt).tapes
        assert (found.commands, found.records) == (12, 49)


def test_erasing_the_keys_leaves_it_verifiable_and_unreadable(tape: Path) -> None:
    tape.with_name(tape.name.split(".")[0] + ".keys").unlink()
    assert report(tape, [ANA]) == ("verified", "erased", "")
    with pytest.raises(Unreadable, match="erased"):
        list(TapeReader(tape, [ANA]).records())


def test_every_changed_byte_of_the_keys_file_is_noticed_without_a_key(tape: Path) -> None:
    file = tape.with_name(tape.name.split(".")[0] + ".keys")
    good = file.read_bytes()
    for i in range(len(good)):
        file.write_bytes(good[:i] + bytes([good[i] ^ 0x40]) + good[i + 1 :])
        assert report(tape) == ("altered", "checked", "the .keys file is not the one that the header names")
    file.write_bytes(good + b"\0" * cipher.KEYS_FILE_LIMIT)
    assert report(tape)[0] == "altered"


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A tape of one segment."""

    async def scenario() -> Path:
        of = recorder(tmp_path / "short")
        tape = open_tape(of, recipients=[ANA.recipient])
        for i in range(3):
            command(tape, f"SELECT {i}")
            await tape.commit()
        await tape.close("closed")
        of.close()
        return tape.path

    return asyncio.run(scenario())


def test_what_a_forger_with_the_seal_key_cannot_hide_from_the_auditor(short: Path) -> None:
    """Whoever holds the seal key but not the data key can reseal anything; it does not decrypt."""
    good = short.read_bytes()

    def flip(blocks: list[dict[str, Any]]) -> None:
        stored = bytearray(blocks[1]["stored"])
        stored[3] ^= 1
        blocks[1]["stored"] = bytes(stored)

    def cut_tag(blocks: list[dict[str, Any]]) -> None:
        blocks[1]["stored"] = blocks[1]["stored"][:-1]

    def swap(blocks: list[dict[str, Any]]) -> None:
        blocks[0]["stored"], blocks[1]["stored"] = blocks[1]["stored"], blocks[0]["stored"]

    for change in (flip, cut_tag, swap):
        short.write_bytes(remake(good, change))
        assert report(short)[:2] == ("verified", "encrypted")  # the seal key's holder: the node's log answers that
        status, _, reason = report(short, [ANA])
        assert (status, "does not decrypt" in reason) == ("altered", True)
        with pytest.raises(FormatError, match="does not decrypt"):
            list(TapeReader(short, [ANA]).records())

    said = dict(decode_header(good).map_)
    said["enc"] = {**said["enc"], "salt": bytes(24)}
    short.write_bytes(remake(good, header=said))
    assert report(short)[0] == "verified"
    assert report(short, [ANA]) == ("altered", "checked", "header: the key's commitment does not hold")


def test_a_block_in_the_clear_in_an_encrypted_tape_is_refused_without_a_key(short: Path) -> None:
    def clear(blocks: list[dict[str, Any]]) -> None:
        raw = pack([blocks[1]["first_record"], 0, 0, 8, pack({"label": "x", "text": "y"})]) * blocks[1]["n_records"]
        blocks[1].update(flags=0, stored=raw, raw_len=len(raw))

    good = short.read_bytes()
    short.write_bytes(remake(good, clear))
    assert "in the clear" in report(short)[2]
    assert report(short)[0] == "altered"
    said = {key: value for key, value in decode_header(good).map_.items() if key != "enc"}
    short.write_bytes(remake(good, header=said))
    assert report(short)[0] == "altered"


# -- crashes ------------------------------------------------------------------------------------------------


def test_a_crash_leaves_what_the_auditor_can_read(tmp_path: Path) -> None:
    """What was acknowledged comes back from the log, as cipher text, with the .keys file."""
    live, after = tmp_path / "live", tmp_path / "after"

    async def scenario() -> Path:
        path = await write(live, close=False)
        shutil.copytree(live, after)
        return path

    first = after / asyncio.run(scenario()).relative_to(live)
    (keys_file,) = after.rglob("*.keys")
    saved = keys_file.read_bytes()
    keys_file.unlink()
    last = max(first.parent.glob("*.gct"))
    last.write_bytes(last.read_bytes()[: len(decode_header(last.read_bytes()).raw) + 10])  # a power cut took the rest
    Recorder(after, KEY, node="node-1").recover()
    assert keys_file.read_bytes() == saved
    status, content, reason = report(first, [ANA])
    assert (status, content) == ("incomplete", "checked"), reason
    texts = [r.payload for r in TapeReader(first, [ANA]).records() if r.kind == Kind.COMMAND]
    assert len(texts) == 12
    assert CANARY not in everything(after)
