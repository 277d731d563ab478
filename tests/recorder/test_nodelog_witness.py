"""Anchors and witnesses: what they are given, what is kept, and that a failure is told and stops nothing."""

from __future__ import annotations

import errno
import json
import shutil
import ssl
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from recorder.anchor import Anchor, DirectoryStore, object_name, read_anchored
from recorder.checkpoint import Checkpoint, decode_checkpoint, log_key
from recorder.errors import FormatError
from recorder.nodelog import NodeLog
from recorder.seal import SealKey
from recorder.witness import (
    RESPONSE_LIMIT,
    Cosigner,
    Witness,
    WitnessClient,
    WitnessError,
    load_witnesses,
)
from tests.recorder.nodelogs import KEYS, ORIGIN, WALL_NS, LogDisk, StandInWitness, beats, node_log, serving
from tests.recorder.tapes import KEY


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class BrokenStore:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.put_: list[int] = []

    def put(self, checkpoint: Checkpoint, wall_ns: int) -> None:
        if self.error is not None:
            raise self.error
        self.put_.append(checkpoint.size)


def test_a_checkpoint_a_minute_and_only_new_ones(tmp_path: Path) -> None:
    log, store, clock = node_log(tmp_path), BrokenStore(), Seconds()
    events: list[str] = []
    anchor = Anchor(log.checkpoint, store, lambda event, text: events.append(event), monotonic=clock)
    log.append(beats(0, 3))
    assert anchor.tick()
    log.append(beats(3, 1))
    clock.now += 59
    assert not anchor.tick()
    clock.now += 1
    assert anchor.tick()
    clock.now += 60
    assert not anchor.tick()
    assert store.put_ == [3, 4]
    assert events == []


def test_a_store_that_fails_is_told_and_the_alarm_goes_off_after_ten_minutes(tmp_path: Path) -> None:
    log, store, clock = node_log(tmp_path), BrokenStore(), Seconds()
    events: list[tuple[str, str]] = []
    anchor = Anchor(log.checkpoint, store, lambda event, text: events.append((event, text)), monotonic=clock)
    store.error = OSError(errno.EIO, "the bucket is on fire")
    for _ in range(10):
        assert not anchor.tick()
        clock.now += 60
    assert {event for event, _ in events} == {"failed"}
    assert not anchor.tick()
    clock.now += 60
    assert not anchor.tick()
    assert [event for event, _ in events].count("alarm") == 1
    store.error = None
    clock.now += 60
    assert anchor.tick()
    assert events[-1][0] == "recovered"
    assert "on fire" in events[0][1]


def test_a_directory_of_anchors(tmp_path: Path) -> None:
    log, store = node_log(tmp_path / "tapes"), DirectoryStore(tmp_path / "anchors")
    heads = [log.append(beats(i, 1)) for i in range(3)]
    for i, head in enumerate(heads):
        store.put(head, WALL_NS + i * 86_400 * 10**9 // 2)
    files = sorted(path.relative_to(tmp_path / "anchors") for path in (tmp_path / "anchors").rglob("*.jsonl"))
    folder = Path("gatecast.example%2Fnode-1")
    assert files == [folder / "2026-11-18.jsonl", folder / "2026-11-19.jsonl"]
    found = list(read_anchored(tmp_path / "anchors"))
    assert [checkpoint for _, _, checkpoint in found] == heads
    assert found[0][1] == "2026-11-18T11:06:40Z"
    assert found[1][0].endswith("2026-11-18.jsonl:2")
    line = json.loads((tmp_path / "anchors" / files[0]).read_text().splitlines()[0])
    assert decode_checkpoint(line["checkpoint"].encode()) == heads[0]


def test_an_anchor_line_that_a_crash_tore_stays_apart(tmp_path: Path) -> None:
    log, store = node_log(tmp_path / "tapes"), DirectoryStore(tmp_path / "anchors", nested=False)
    head = log.append(beats(0, 1))
    store.put(head, WALL_NS)
    path = next((tmp_path / "anchors").glob("*.jsonl"))
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        store.put(head, WALL_NS)
        assert [checkpoint for _, _, checkpoint in read_anchored(path)].count(head) >= 2, cut
    path.write_text('{"time": "x", "checkpoint": 5}\n')
    with pytest.raises(FormatError):
        list(read_anchored(path))


def test_an_anchor_on_a_disk_that_fails_at_any_call(tmp_path: Path) -> None:
    head = node_log(tmp_path / "tapes").append(beats(0, 1))
    for at in range(20):
        disk = LogDisk(fail_at=at)
        store = DirectoryStore(tmp_path / f"anchors-{at}", disk=disk)
        try:
            store.put(head, WALL_NS)
        except OSError:
            store.put(head, WALL_NS)
            found = [checkpoint for _, _, checkpoint in read_anchored(tmp_path / f"anchors-{at}")]
            assert found[-1] == head
        else:
            break
    assert 3 < at < 20


def test_objects_of_a_bucket(tmp_path: Path) -> None:
    head = node_log(tmp_path / "tapes").append(beats(0, 7))
    name = object_name(head, WALL_NS)
    root = head.root.hex()[:16]
    assert name == f"gatecast.example%2Fnode-1/2026-11-18/00000000000000000007-{root}.checkpoint"
    path = tmp_path / "bucket" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(head.encode())
    assert [checkpoint for _, _, checkpoint in read_anchored(tmp_path / "bucket")] == [head]


# -- witnesses --------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> NodeLog:
    found = node_log(tmp_path / "tapes")
    found.append(beats(0, 5))
    return found


def client_of(witness: StandInWitness, url: str, timeout_seconds: float = 10.0) -> WitnessClient:
    return WitnessClient(
        Witness(witness.key, url), timeout_seconds=timeout_seconds, wall=lambda: float(witness.seconds) + 5
    )


def test_a_witness_cosigns_as_the_log_grows(log: NodeLog) -> None:
    witness = StandInWitness(ORIGIN, KEYS)
    with serving(witness) as url:
        client = client_of(witness, url)
        for count in (0, 1, 300, 0, 70_000):
            head = log.append(beats(5, count)) if count else log.checkpoint()
            signatures = client.cosign(log, head)
            assert head.with_signatures(signatures).cosigned(witness.key) == witness.seconds
            assert witness.size == head.size
    first = witness.requests[0].split(b"\n\n", 1)
    assert first[0] == b"old 0"  # with no proof, an empty line, the note
    assert decode_checkpoint(first[1]).size == 5
    assert witness.requests[1].startswith(b"old 5\n")


def test_a_client_that_does_not_know_where_the_witness_is(log: NodeLog) -> None:
    witness = StandInWitness(ORIGIN, KEYS)
    with serving(witness) as url:
        client_of(witness, url).cosign(log, log.checkpoint())
        head = log.append(beats(5, 600))
        assert client_of(witness, url).cosign(log, head)  # asked with 0, told 5, asked again
    assert [request.split(b"\n")[0] for request in witness.requests] == [b"old 0", b"old 0", b"old 5"]


def fork(log: NodeLog, count: int) -> NodeLog:
    shutil.rmtree(log.directory)
    other = node_log(log.directory.parents[1])
    other.append(beats(100, count))
    return other


@pytest.mark.parametrize(("count", "words"), [(3, "has seen 5 entries"), (5, "another log of 5"), (9, "answers 422")])
def test_a_log_that_is_not_the_one_that_was_cosigned(log: NodeLog, count: int, words: str) -> None:
    """Rolled back, another of the same size, another and longer one: told as a fork, never cosigned."""
    witness = StandInWitness(ORIGIN, KEYS)
    with serving(witness) as url:
        client_of(witness, url).cosign(log, log.checkpoint())
        root = witness.root
        other = fork(log, count)
        with pytest.raises(WitnessError, match=words) as caught:
            client_of(witness, url).cosign(other, other.checkpoint())
        assert caught.value.fork
        assert (witness.size, witness.root) == (5, root)
        events: list[str] = []
        cosigner = Cosigner(other, [client_of(witness, url)], lambda event, text: events.append(event))
        assert cosigner.tick() is None
        assert "fork" in events
    assert not (other.directory / "checkpoint.cosigned").exists()


def test_a_witness_that_does_not_know_the_log_or_the_key(log: NodeLog) -> None:
    for witness, words in (
        (StandInWitness("elsewhere.example/node-1", KEYS), "answers 404"),
        (StandInWitness(ORIGIN, SealKey.generate().public_keys()), "answers 403"),
    ):
        with serving(witness) as url, pytest.raises(WitnessError, match=words) as caught:
            client_of(witness, url).cosign(log, log.checkpoint())
        assert not caught.value.fork


def answers(body: Callable[[StandInWitness, bytes], tuple[int, bytes]]) -> StandInWitness:
    class Other(StandInWitness):
        def answer(self, request: bytes) -> tuple[int, bytes]:
            return body(self, request)

    return Other(ORIGIN, KEYS)


def honest(witness: StandInWitness, request: bytes) -> bytes:
    return StandInWitness.answer(witness, request)[1]


@pytest.mark.parametrize(
    "body",
    [
        lambda witness, request: (200, b""),
        lambda witness, request: (200, b"\xff\n"),
        lambda witness, request: (200, b"ok\n"),
        lambda witness, request: (200, b"x" * (RESPONSE_LIMIT + 1)),
        lambda witness, request: (200, StandInWitness(ORIGIN, KEYS).answer(request)[1]),
        lambda witness, request: (200, honest(witness, request).replace(b"w1", b"w2")),
        lambda witness, request: (200, honest(witness, request)[:-9] + b"AAAAAAA=\n"),
        lambda witness, request: (409, b"-1\n"),
        lambda witness, request: (409, b"9" * 30),
        lambda witness, request: (409, b"3\n"),
        lambda witness, request: (500, b"\x1b[31m"),
        lambda witness, request: (302, b""),
    ],
)
def test_answers_that_are_no_cosignature(
    log: NodeLog, body: Callable[[StandInWitness, bytes], tuple[int, bytes]]
) -> None:
    witness = answers(body)
    with serving(witness) as url, pytest.raises((WitnessError, FormatError)) as caught:
        client_of(witness, url).cosign(log, log.checkpoint())
    assert "\x1b" not in str(caught.value)


def test_a_witness_whose_clock_is_off(log: NodeLog) -> None:
    witness = StandInWitness(ORIGIN, KEYS)
    with serving(witness) as url:
        client = WitnessClient(Witness(witness.key, url), wall=lambda: float(witness.seconds) + 601)
        with pytest.raises(WitnessError, match="clock"):
            client.cosign(log, log.checkpoint())


def test_cosignatures_of_others_are_ignored(log: NodeLog) -> None:
    other = StandInWitness(ORIGIN, KEYS, "witness.example/w2")
    witness = answers(lambda self, request: (200, other.answer(request)[1] + honest(self, request)))
    with serving(witness) as url:
        signatures = client_of(witness, url).cosign(log, log.checkpoint())
    assert [signature.name for signature in signatures] == [witness.key.name]


def test_what_is_kept_of_cosignatures(log: NodeLog) -> None:
    one, two = StandInWitness(ORIGIN, KEYS), StandInWitness(ORIGIN, KEYS, "witness.example/w2")
    clock = Seconds()
    with serving(one) as first, serving(two) as second:
        clients = [client_of(one, first), client_of(two, second)]
        cosigner = Cosigner(log, clients, lambda event, text: None, monotonic=clock, wall_ns=lambda: WALL_NS)
        kept = cosigner.tick()
        assert kept is not None and [kept.cosigned(one.key), kept.cosigned(two.key)] == [one.seconds, two.seconds]
        assert cosigner.tick() is None  # ten seconds did not pass
        clock.now += 10
        assert cosigner.tick() is None  # nothing new
        log.append(beats(5, 1))
        clock.now += 10
        assert cosigner.tick() is not None
    assert decode_checkpoint((log.directory / "checkpoint.cosigned").read_bytes()).size == 6
    history = [checkpoint.size for _, _, checkpoint in read_anchored(log.directory / "cosigned") if checkpoint]
    assert history == [5, 6]
    assert len(one.requests) == 2


def test_a_witness_that_is_down_stops_nothing(log: NodeLog) -> None:
    up, down = StandInWitness(ORIGIN, KEYS), StandInWitness(ORIGIN, KEYS, "witness.example/down")
    clock = Seconds()
    events: list[tuple[str, str]] = []
    with serving(down) as url:
        gone = url
    with serving(up) as url:
        clients = [client_of(up, url), client_of(down, gone)]
        cosigner = Cosigner(log, clients, lambda *event: events.append(event), monotonic=clock)
        for i in range(62):
            log.append(beats(5 + i, 1))
            assert cosigner.tick() is not None
            clock.now += 10
    assert [event for event, _ in events].count("alarm") == 1
    assert all("witness.example/down" in text for _, text in events)
    assert up.size == log.checkpoint().size


def test_a_witness_that_does_not_answer(log: NodeLog) -> None:
    import socket

    witness = StandInWitness(ORIGIN, KEYS)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(WitnessError, match="cannot be reached"):
            client_of(witness, url, timeout_seconds=0.05).cosign(log, log.checkpoint())


def test_https_trusts_no_unknown_certificate(log: NodeLog) -> None:
    """A plain server where TLS is asked for; the context is the caller's."""
    witness = StandInWitness(ORIGIN, KEYS)
    with serving(witness) as url:
        where = Witness(witness.key, url.replace("http:", "https:"))
        client = WitnessClient(where, context=ssl.create_default_context(), timeout_seconds=2)
        with pytest.raises(WitnessError, match="cannot be reached"):
            client.cosign(log, log.checkpoint())


def test_keys_and_addresses_of_witnesses(tmp_path: Path) -> None:
    key = StandInWitness(ORIGIN, KEYS).key
    assert Witness.of(key.vkey, "https://w.example/x/").url == "https://w.example/x"
    for url in ("", "ftp://w", "https://", "http://w/?a", "w.example"):
        with pytest.raises(ValueError):
            Witness.of(key.vkey, url)
    with pytest.raises(ValueError):
        Witness.of(log_key(ORIGIN, KEYS[KEY.id]).vkey, "https://w.example")  # a log's key is no witness's
    path = tmp_path / "witnesses"
    path.write_text(f"# ours\n\n{key.vkey}\n")
    assert load_witnesses(path) == [key]
    for text in ("", "# none\n", "nonsense\n", log_key(ORIGIN, KEYS[KEY.id]).vkey):
        path.write_text(text)
        with pytest.raises(FormatError):
            load_witnesses(path)


def test_the_request_is_that_of_the_specification(log: NodeLog) -> None:
    from recorder.witness import request_body

    head = log.checkpoint()
    proof = log.consistency(3, head)
    lines = [b64encode(piece).decode() for piece in proof]
    assert request_body(3, proof, head).decode() == "\n".join(["old 3", *lines, "", head.encode().decode()])
