"""The node's log: what is appended is there, whatever crashes; what is there is never changed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from recorder.errors import FormatError
from recorder.ledger import PENDING_LIMIT, NodeLedger
from recorder.logentry import (
    ENTRY_LIMIT,
    TEXT_LIMIT,
    decode_entry,
    encode_entry,
    pack_bundle,
    unpack_bundle,
)
from recorder.merkle import entry_hash, tree_hash
from recorder.nodelog import (
    Head,
    Heartbeat,
    KeyRotate,
    LogEntry,
    NodeLog,
    NodeLogError,
    Open,
    Sealed,
    Start,
    Tombstone,
    log_directory,
)
from recorder.seal import SealKey
from tests.recorder.nodelogs import NODE, ORIGIN, SID, LogDisk, beats, node_log
from tests.recorder.tapes import KEY

HASH = bytes(range(32))
ONE_OF_EACH: list[LogEntry] = [
    Open(SID, "main", HASH),
    Head(SID, "original", 2, 70_000, HASH),
    Sealed(SID, "main", 3, HASH, "continued"),
    Tombstone(SID, "expired after 400 days", "ana@acme", 1_795_000_000 * 10**9),
    KeyRotate(HASH, HASH[::-1]),
    Heartbeat("boot", 1_795_000_000 * 10**9),
    Start("boot", "1.0"),
]


def said(log: NodeLog) -> list[LogEntry | None]:
    """The log's entries; that they are what its checkpoint signs is checked."""
    head = log.checkpoint()
    raw = list(log.files.entries(head.size))
    assert tree_hash([entry_hash(entry) for entry in raw]) == head.root
    return [decode_entry(entry) for entry in raw]


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# -- entries ----------------------------------------------------------------------------------------------


def test_entries_byte_for_byte() -> None:
    """Written from the docstring of logentry.py alone."""
    pack = msgpack.packb
    assert [encode_entry(entry) for entry in ONE_OF_EACH] == [
        pack([1, SID, 0, HASH]),
        pack([2, SID, 1, 2, 70_000, HASH]),
        pack([3, SID, 0, 3, HASH, "continued"]),
        pack([4, SID, "expired after 400 days", "ana@acme", 1_795_000_000 * 10**9]),
        pack([5, HASH, HASH[::-1]]),
        pack([6, "boot", 1_795_000_000 * 10**9]),
        pack([7, "boot", "1.0"]),
    ]
    assert [decode_entry(encode_entry(entry)) for entry in ONE_OF_EACH] == ONE_OF_EACH


def test_later_versions_may_add_kinds_and_items() -> None:
    assert decode_entry(msgpack.packb([8, "whatever"])) is None
    assert decode_entry(msgpack.packb([7, "boot", "1.0", "more"])) == Start("boot", "1.0")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        msgpack.packb({"kind": 1}),
        msgpack.packb([]),
        msgpack.packb([0, SID]),
        msgpack.packb([True, SID, 0, HASH]),
        msgpack.packb([1, SID, 0, HASH[:-1]]),
        msgpack.packb([1, SID, 2, HASH]),
        msgpack.packb([1, "../../etc/passwd", 0, HASH]),
        msgpack.packb([2, SID, 0, -1, 0, HASH]),
        msgpack.packb([2, SID, 0, 0, 2**63, HASH]),
        msgpack.packb([3, SID, 0, 0, HASH, "fine"]),
        msgpack.packb([7, "boot"]),
        msgpack.packb([7, "b" * (TEXT_LIMIT + 1), "1.0"]),
    ],
)
def test_entries_of_another_form_are_faults(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_entry(raw)


def test_what_no_reader_would_accept_is_not_written() -> None:
    for entry in (Open("sid", "main", HASH), Open(SID, "main", b""), Open(SID, "third", HASH), Start("b" * 4097, "")):
        with pytest.raises(ValueError):
            encode_entry(entry)
    assert encode_entry(Start("b" * TEXT_LIMIT, ""))


def test_bundles() -> None:
    entries = [b"", b"a", b"b" * ENTRY_LIMIT]
    raw = pack_bundle(entries)
    assert raw[:3] == b"\x00\x00\x00" and raw[2:5] == b"\x00\x01a"
    assert unpack_bundle(raw, 3) == entries
    assert unpack_bundle(raw, 2) == entries[:2]
    for cut in (1, 3, len(raw) - 1):
        with pytest.raises(FormatError):
            unpack_bundle(raw[:cut], 3)


# -- appending --------------------------------------------------------------------------------------------


def test_what_is_appended_is_there(tmp_path: Path) -> None:
    log = node_log(tmp_path)
    sizes = [1, 1, 253, 1, 1, 700, 2, 66_000]
    expected: list[LogEntry] = []
    for count in sizes:
        more = beats(len(expected), count)
        head = log.append(more)
        expected += more
        assert head.size == len(expected)
        if count < 1000:
            assert said(log) == expected
    assert said(node_log(tmp_path)) == expected
    tiles = log.directory / "tile"
    assert len((tiles / "0" / "000").read_bytes()) == 8192
    assert len((tiles / "1" / "000").read_bytes()) == 8192
    assert [path.name for path in (tiles / "2" / "000.p").iterdir()] == ["1"]
    size = len(expected)
    assert (tiles / "entries" / f"{size // 256:03d}.p" / str(size % 256)).exists()
    assert not (tiles / "0" / "000.p").exists()  # the full one is there


def test_an_empty_append_writes_nothing(tmp_path: Path) -> None:
    log = node_log(tmp_path)
    head = log.append([Start("boot", "1.0")])
    before = files_of(log.directory)
    assert log.append([]) == head
    assert files_of(log.directory) == before


def test_a_log_that_nobody_wrote_is_the_empty_tree(tmp_path: Path) -> None:
    head = node_log(tmp_path).checkpoint()
    assert head.text == f"{ORIGIN}\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"  # H of nothing, RFC 6962 2.1


def test_two_processes_take_turns(tmp_path: Path) -> None:
    """Two objects know nothing of each other, as two workers."""
    one, two = node_log(tmp_path), node_log(tmp_path)
    expected: list[LogEntry] = []
    for i in range(300):
        more = beats(i, 2)
        (one if i % 3 else two).append(more)
        expected += more
    assert said(one) == said(two) == expected


def test_a_process_that_was_killed_holds_no_lock(tmp_path: Path) -> None:
    node_log(tmp_path).append(beats(0, 3))
    lock = log_directory(tmp_path, NODE) / "lock"
    code = "import fcntl, os, sys; d = os.open(sys.argv[1], 2); fcntl.flock(d, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(lock)], check=False).returncode == -9
    assert node_log(tmp_path).append(beats(3, 1)).size == 4


def test_names(tmp_path: Path) -> None:
    for node in ("", ".", "..", "a/b", "a\0b"):
        with pytest.raises(ValueError):
            log_directory(tmp_path, node)
    with pytest.raises(ValueError):
        NodeLog(tmp_path / "gw1", KEY, "gatecast.example/gw2")
    for origin in ("", "a b/gw1", "a+b/gw1", "x" * 256, "gatecast tape seal v1"):
        with pytest.raises(ValueError):
            NodeLog(tmp_path / origin.rsplit("/", maxsplit=1)[-1], KEY, origin)


def test_a_checkpoint_can_never_pass_for_a_seal() -> None:
    with pytest.raises(ValueError):
        KEY.sign_note(b"gatecast tape seal v1\n1\n")
    assert len(KEY.sign_note(b"gatecast tape seal v2\n1\n")) == 64


# -- crashes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 6, 300])
def test_a_disk_that_fails_at_any_call(tmp_path: Path, count: int) -> None:
    """Nothing was appended, or all of it; the same object and a new one go on."""
    before = beats(0, 252)
    node_log(tmp_path / "good").append(before)
    failed = 0
    for at in range(100):
        tapes = tmp_path / f"at-{at}"
        shutil.copytree(tmp_path / "good", tapes)
        disk = LogDisk(fail_at=at, code=errno.EIO if at % 2 else errno.ENOSPC)
        log = NodeLog(log_directory(tapes, NODE), KEY, ORIGIN, disk=disk)
        more = beats(252, count)
        try:
            log.append(more)
        except OSError:
            failed += 1
        else:
            assert disk.calls <= at
            break
        assert not disk.open_descriptors
        there = said(node_log(tapes))
        assert there in (before, before + more)
        last = beats(1000, 5)
        (log if at % 3 else node_log(tapes)).append(last)
        assert said(log) == [*there, *last]
    assert 12 < failed < 100


def test_what_a_crash_left_beyond_the_checkpoint_is_repaired(tmp_path: Path) -> None:
    """Torn, cut, garbage or other entries: partial tiles, full ones and bundles."""
    log = node_log(tmp_path)
    log.append(beats(0, 250))
    checkpoint = (log.directory / "checkpoint").read_bytes()
    log.append(beats(5000, 300))  # with the old checkpoint again, this was never said
    full = (log.directory / "tile/0/000").read_bytes()
    (log.directory / "checkpoint").write_bytes(checkpoint)
    partial = log.directory / "tile/entries/002.p/38"
    for data in (b"", partial.read_bytes()[:-1], os.urandom(500)):
        partial.write_bytes(data)
    shutil.copytree(
        log.directory / "tile/0/001.p" if (log.directory / "tile/0/001.p").exists() else log.directory / "tile/0/002.p",
        log.directory / "tile/0/000.p",
        dirs_exist_ok=True,
    )
    _restore_partials(log)
    again = node_log(tmp_path)
    expected = beats(0, 250) + beats(250, 300)
    again.append(beats(250, 300))
    assert said(again) == expected
    assert (log.directory / "tile/0/000.orphan").read_bytes() == full  # put aside, not overwritten


def _restore_partials(log: NodeLog) -> None:
    """Bring back what tidying up after the second append removed: a crash before it would have left it."""
    entries = [encode_entry(entry) for entry in beats(0, 250)]
    for name, data in (
        ("tile/0/000.p/250", b"".join(map(entry_hash, entries))),
        ("tile/entries/000.p/250", pack_bundle(entries)),
    ):
        path = log.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def test_every_cut_of_every_file_beyond_the_checkpoint(tmp_path: Path) -> None:
    log = node_log(tmp_path)
    log.append(beats(0, 3))
    checkpoint = (log.directory / "checkpoint").read_bytes()
    log.append(beats(3, 1))
    for name in ("tile/0/000.p/4", "tile/entries/000.p/4", ".checkpoint.draft"):
        data = files_of(log.directory).get(name, b"half a checkpoint")
        for cut in range(len(data)):
            (log.directory / "checkpoint").write_bytes(checkpoint)
            (log.directory / name).write_bytes(data[:cut])
            assert said(node_log(tmp_path)) == beats(0, 3)
            node_log(tmp_path).append(beats(9, 1))
            assert said(node_log(tmp_path)) == beats(0, 3) + beats(9, 1)


@pytest.mark.parametrize("name", ["tile/0/000.p/4", "tile/entries/000.p/4", "checkpoint"])
def test_damage_within_the_checkpoint_ends_all_appending(tmp_path: Path, name: str) -> None:
    log = node_log(tmp_path)
    log.append(beats(0, 4))
    path = log.directory / name
    good = path.read_bytes()
    for bad in (good[:-1], bytes([good[0] ^ 1]) + good[1:], None):
        path.unlink() if bad is None else path.write_bytes(bad)
        before = files_of(log.directory)
        with pytest.raises(NodeLogError):
            node_log(tmp_path).append(beats(4, 1))
        assert files_of(log.directory) == before
        path.write_bytes(good)
    assert node_log(tmp_path).append(beats(4, 1)).size == 5


def test_a_log_that_was_rolled_back_or_rewritten_under_a_process(tmp_path: Path) -> None:
    log = node_log(tmp_path / "a")
    log.append(beats(0, 4))
    shutil.copytree(tmp_path / "a", tmp_path / "old")
    log.append(beats(4, 4))
    other = node_log(tmp_path / "b")
    other.append(beats(100, 9))
    for source, words in (("old", "rolled back"), ("b", "rewritten")):
        shutil.rmtree(log.directory)
        shutil.copytree(log_directory(tmp_path / source, NODE), log.directory)
        with pytest.raises(NodeLogError, match=words):
            log.append(beats(8, 1))
    shutil.rmtree(log.directory)
    with pytest.raises(NodeLogError, match="lost its checkpoint"):
        log.append(beats(8, 1))


def test_another_nodes_log_and_another_key(tmp_path: Path) -> None:
    node_log(tmp_path).append(beats(0, 1))
    with pytest.raises(NodeLogError, match="another key"):
        node_log(tmp_path, SealKey.generate()).append(beats(1, 1))
    shutil.copytree(log_directory(tmp_path, NODE), log_directory(tmp_path, "node-2"))
    with pytest.raises(NodeLogError, match="another node"):
        node_log(tmp_path, node="node-2").append(beats(1, 1))


def test_a_key_is_rotated_in_the_log(tmp_path: Path) -> None:
    new = SealKey.generate()
    log = node_log(tmp_path)
    log.append(beats(0, 1))
    head = log.rotate(new)
    assert sorted(head.signers({**KEY.public_keys(), **new.public_keys()})) == sorted([KEY.id, new.id])
    head = log.append(beats(1, 1))
    assert head.signers({**KEY.public_keys(), **new.public_keys()}) == [new.id]
    with pytest.raises(NodeLogError, match="another key"):
        node_log(tmp_path).append(beats(2, 1))
    assert node_log(tmp_path, new).append(beats(2, 1)).size == 4
    with pytest.raises(ValueError, match="rotate"):
        log.append([KeyRotate(HASH, HASH)])


# -- the ledger -------------------------------------------------------------------------------------------


def test_the_ledger_says_what_happened_once(tmp_path: Path) -> None:
    ledger = NodeLedger(node_log(tmp_path), "boot", "1.0", wall_ns=lambda: 77)
    ledger.opened(SID, "main", HASH)
    ledger.head(SID, "main", 0, 0, HASH)  # no block yet
    ledger.head(SID, "main", 0, 5, HASH)
    ledger.head(SID, "main", 0, 5, HASH)  # idle
    ledger.sealed(SID, "main", 0, HASH, "closed")
    ledger.heartbeat()
    ledger.note(Tombstone(SID, "policy", "ana", 5))
    ledger.publish()
    assert said(ledger.log) == [
        Start("boot", "1.0"),
        Open(SID, "main", HASH),
        Head(SID, "main", 0, 4, HASH),
        Sealed(SID, "main", 0, HASH, "closed"),
        Heartbeat("boot", 77),
        Tombstone(SID, "policy", "ana", 5),
    ]
    assert ledger.latest == ledger.log.checkpoint()


def test_the_ledger_keeps_what_the_disk_refuses_but_not_heads_without_end(tmp_path: Path) -> None:
    disk = LogDisk(fail_at=0)
    ledger = NodeLedger(NodeLog(log_directory(tmp_path, NODE), KEY, ORIGIN, disk=disk), "boot", "1.0", start=False)
    ledger.opened(SID, "main", HASH)
    with pytest.raises(OSError):
        ledger.publish()
    for i in range(PENDING_LIMIT):
        ledger.head(SID, "main", 0, i + 1, HASH)
    ledger.publish()
    assert said(ledger.log) == [Open(SID, "main", HASH)]
    ledger.head(SID, "main", 0, PENDING_LIMIT, HASH)  # said again, as the one before was given up
    ledger.publish()
    assert said(ledger.log)[1:] == [Head(SID, "main", 0, PENDING_LIMIT - 1, HASH)]
