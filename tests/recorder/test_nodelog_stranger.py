"""A stranger, with the docstrings and C2SP's documents alone, verifies a node's log and the tapes that it speaks of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from recorder.ledger import NodeLedger
from recorder.nodelog import Tombstone, log_directory
from recorder.seal import SealKey
from recorder.witness import Cosigner, Witness, WitnessClient
from tests.recorder.nodelogs import NODE, ORIGIN, SID, WALL_NS, StandInWitness, beats, house, node_log, serving
from tests.recorder.second_log_reader import HEARTBEAT, OPEN, SEALED, compare, read_log_directory
from tests.recorder.second_reader import Refusal, read_tape
from tests.recorder.tapes import KEY, recorder, small_tape

KEYS = list(KEY.public_keys().values())


def test_a_log_and_its_tapes(tmp_path: Path) -> None:
    paths, log = house(tmp_path)
    log.append([Tombstone(SID, "expired", "ana", WALL_NS), *beats(4, 600)])
    note, entries = read_log_directory(log_directory(tmp_path, NODE), KEYS)
    assert note.origin == ORIGIN
    assert note.size == len(entries) > 600
    assert {entry[0] for entry in entries if entry} == {1, 2, 3, 4, 6, 7}
    for path in paths:
        segments, _ = read_tape([path.read_bytes()], KEYS)
        assert compare(entries, segments) == 2 + len([block for block in segments[0].blocks if block.type == 1])
        segments[0].blocks[1:2] = []
        with pytest.raises(Refusal, match="HEAD"):
            compare(entries, segments)


def test_what_a_recorder_told_its_log(tmp_path: Path) -> None:
    """Not what a test put in: the real upkeep thread did."""
    of = recorder(tmp_path, ledger=NodeLedger(node_log(tmp_path), "boot", "1.0"))
    path = asyncio.run(small_tape(of, commands=5, mode="durable"))
    of.close()
    _, entries = read_log_directory(log_directory(tmp_path, NODE), KEYS)
    segments, _ = read_tape([path.read_bytes()], KEYS)
    assert segments[0].head["log"] == ORIGIN
    assert compare(entries, segments) >= 2
    assert {entry[0] for entry in entries if entry} >= {OPEN, SEALED}


def test_a_rotated_key_and_a_witness(tmp_path: Path) -> None:
    new = SealKey.generate()
    both = [*KEYS, *new.public_keys().values()]
    log = node_log(tmp_path)
    witness = StandInWitness(ORIGIN, {**KEY.public_keys(), **new.public_keys()})
    cosigners = [witness.key.vkey]
    with serving(witness) as url:
        client = WitnessClient(Witness(witness.key, url), wall=lambda: float(witness.seconds) + 5)
        cosigner = Cosigner(log, [client], lambda event, text: None)
        steps: list[Callable[[], object]] = [
            lambda: log.append(beats(0, 300)),
            lambda: log.rotate(new),
            lambda: log.append(beats(300, 70)),
        ]
        for step in steps:
            step()
            read_log_directory(log.directory, both)
            cosigner.tick()
    assert len(witness.requests) > 0
    note, _ = read_log_directory(log.directory, both, cosigners)
    assert note.size == 371
    with pytest.raises(Refusal, match="valid key"):
        read_log_directory(log.directory, KEYS)
    stranger = StandInWitness(ORIGIN, {})
    with pytest.raises(Refusal, match="no witness"):
        read_log_directory(log.directory, both, [stranger.key.vkey])


def test_whatever_byte_is_changed_is_noticed(tmp_path: Path) -> None:
    house(tmp_path, 1)
    directory = log_directory(tmp_path, NODE)
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "lock"]
    current = read_log_directory(directory, KEYS)[0].size
    live = [path for path in files if path.parent.suffix != ".p" or path.name == str(current)]
    assert {path.name for path in live} == {"checkpoint", str(current)}
    for path in live:
        data = path.read_bytes()
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises((Refusal, ValueError)):  # ValueError: what is no text, number or base64
                read_log_directory(directory, KEYS)
        path.unlink()
        with pytest.raises((Refusal, FileNotFoundError)):
            read_log_directory(directory, KEYS)
        path.write_bytes(data)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 66_000])
def test_logs_of_any_size(tmp_path: Path, size: int) -> None:
    log = node_log(tmp_path)
    log.append(beats(0, size))
    note, entries = read_log_directory(log.directory, KEYS)
    assert note.size == size
    assert entries == [[HEARTBEAT, "boot", WALL_NS + i * 60 * 10**9] for i in range(size)]
