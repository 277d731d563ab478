"""Bulk that does not compress is stored as it is after a look at a sample; what compresses is compressed still."""

from __future__ import annotations

import asyncio
import base64
import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from recorder import segment as segment_module
from recorder.cipher import AuditorKey
from recorder.format import ENCRYPTED, OUT, ZSTD, Kind, looks_dense
from recorder.reader import TapeReader
from recorder.tape import Mode
from recorder.verify import verify
from tests.recorder.tapes import KEY, command, open_tape, recorder

NOISE = random.Random(7).randbytes(32 * 1024)
TEXT = (b"an ordinary line of a log, number 4711, at 10:00:03\n" * 700)[: 32 * 1024]
ANA = AuditorKey(X25519PrivateKey.generate())


def written(directory: Path, pieces: list[bytes], mode: Mode = "written", encrypted: bool = False) -> Path:
    """A tape with a block for each piece, the first one's in a block with a command (which the log takes whole)."""

    async def scenario() -> Path:
        on = recorder(directory)
        tape = open_tape(on, mode, protocol="ssh", recipients=[ANA.recipient] if encrypted else ())
        first = tape.path
        for i, piece in enumerate(pieces):
            tape.append(OUT, Kind.WIRE, piece, flow=0)
            if i % 3 == 2:
                command(tape, f"run {i}")
            await tape.commit()
        await tape.close("closed")
        return first

    return asyncio.run(scenario())


def flags_of(path: Path) -> list[int]:
    segment = TapeReader(path).segment(0)
    with path.open("rb") as file:
        return [segment.read(place.offset, file.fileno())[0].flags & ~ENCRYPTED for place in segment.data]


@pytest.mark.parametrize("mode", ["written", "durable", "strict"])
def test_noise_and_text_by_turns_are_stored_as_each_is_best(tmp_path: Path, mode: Mode) -> None:
    pieces = [NOISE, NOISE, NOISE, TEXT, TEXT, NOISE, TEXT, NOISE, NOISE]
    path = written(tmp_path, pieces, mode)
    assert flags_of(path)[: len(pieces)] == [ZSTD if piece is TEXT else 0 for piece in pieces]
    found = [record.payload for record in TapeReader(path).records() if record.kind == Kind.WIRE]
    assert found == pieces
    assert verify(path, KEY.public_keys()).tapes[0].status == "verified"


def test_encrypted_noise_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path, [NOISE] * 5, encrypted=True)
    found = [record.payload for record in TapeReader(path, [ANA]).records() if record.kind == Kind.WIRE]
    assert found == [NOISE] * 5


def test_noise_is_tried_again_after_so_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    whole = segment_module.store

    def counting(raw: bytes | memoryview) -> tuple[int, bytes]:
        tries.append(len(raw))
        return whole(raw)

    monkeypatch.setattr(segment_module, "store", counting)
    count = 2 * segment_module.DENSE_LIMIT + 1
    written(tmp_path, [NOISE] * count)
    assert sum(size > len(NOISE) for size in tries) == 3, "the first, and each that comes DENSE_LIMIT blocks later"


def test_what_looks_dense_and_what_does_not() -> None:
    assert looks_dense(NOISE) and looks_dense(memoryview(NOISE))
    assert not looks_dense(TEXT)
    assert not looks_dense(base64.b64encode(NOISE)), "a quarter can be saved"
    assert not looks_dense(NOISE[:1024] * 8 + TEXT)
    assert not looks_dense(bytes(20_000))
