"""What the tests of the node's log share: tapes with their log, a disk that fails at any call, a stand-in witness."""

from __future__ import annotations

import asyncio
import errno
import http.server
import os
import threading
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from recorder.checkpoint import COSIGNATURE, NoteKey, NoteSignature, cosigned_text, decode_checkpoint
from recorder.disk import Disk
from recorder.errors import FormatError
from recorder.format import (
    BLOCK_HEADER_BYTES,
    CHAIN_BYTES,
    TRAILER_BYTES,
    BlockType,
    decode_block_header,
    decode_header,
)
from recorder.merkle import EMPTY_ROOT, consistency_holds
from recorder.nodelog import Head, Heartbeat, LogEntry, NodeLog, Open, Sealed, Start, log_directory
from recorder.reader import TapeReader
from recorder.seal import PublicKeys, SealKey, header_hash
from tests.recorder.tapes import KEY, recorder, small_tape

NODE = "node-1"
ORIGIN = f"gatecast.example/{NODE}"
KEYS = KEY.public_keys()
WALL_NS = 1_795_000_000 * 10**9
SID = "01JD8Z7Q000000000000000000"


class LogDisk(Disk):
    """Counts the calls that change something; the one numbered fail_at fails, a write after half of its bytes."""

    def __init__(self, fail_at: int = -1, code: int = errno.EIO) -> None:
        self.calls = 0
        self.fail_at, self.code = fail_at, code
        self.open_descriptors: set[int] = set()

    def _count(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            raise OSError(self.code, os.strerror(self.code))

    def make_directories(self, path: Path) -> list[Path]:
        self._count()
        return super().make_directories(path)

    def create(self, path: Path) -> int:
        self._count()
        descriptor = super().create(path)
        self.open_descriptors.add(descriptor)
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes]) -> None:
        try:
            self._count()
        except OSError:
            data = b"".join(buffers)
            os.write(descriptor, data[: len(data) // 2])
            raise
        super().write(descriptor, buffers)

    def sync(self, descriptor: int) -> None:
        self._count()
        super().sync(descriptor)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)

    def rename(self, path: Path, to: Path) -> None:
        self._count()
        super().rename(path, to)

    def close(self, descriptor: int) -> None:
        self.open_descriptors.discard(descriptor)
        super().close(descriptor)


def node_log(tapes: Path, key: SealKey = KEY, node: str = NODE) -> NodeLog:
    return NodeLog(log_directory(tapes, node), key, f"gatecast.example/{node}")


def beats(first: int, count: int) -> list[LogEntry]:
    """Heartbeats, a minute apart."""
    return [Heartbeat("boot", WALL_NS + (first + i) * 60 * 10**9) for i in range(count)]


def chains(path: Path) -> list[bytes]:
    """The chain value behind each DATA block of a segment."""
    data = path.read_bytes()
    at, found = len(decode_header(data).raw), []
    while at < len(data) - TRAILER_BYTES:
        block = decode_block_header(data[at : at + BLOCK_HEADER_BYTES], at)
        if block.type is BlockType.DATA:
            found.append(data[block.end - CHAIN_BYTES : block.end])
        at = block.end
    return found


def opened(path: Path) -> Open:
    """The OPEN of the tape that this segment 0 begins."""
    header = decode_header(path.read_bytes())
    return Open(header.sid, str(header.map_["track"]), header_hash(header.raw))


def entries_of(path: Path, sealed: bool = True) -> list[LogEntry]:
    """What the log of an honest node has of a tape of one or more segments: OPEN, some HEADs, SEALs."""
    reader = TapeReader(path)
    first = opened(reader.segments[0])
    found: list[LogEntry] = [first]
    for number, file in enumerate(reader.segments):
        found += [Head(first.sid, first.track, number, seq, chain) for seq, chain in enumerate(chains(file))]
        seal = reader.segment(number).seal
        if sealed and seal is not None:
            found.append(Sealed(first.sid, first.track, number, seal.body["root"], seal.body["status"]))
    return found


def house(tapes: Path, count: int = 3) -> tuple[list[Path], NodeLog]:
    """A directory of closed tapes and the log that saw all of them."""
    of = recorder(tapes)
    try:
        paths = [asyncio.run(small_tape(of, mode="written")) for _ in range(count)]
    finally:
        of.close()
    log = node_log(tapes)
    log.append([Start("boot", "1.0"), *beats(0, 1)])
    for at, path in enumerate(paths):
        log.append([*entries_of(path), *beats(at + 1, 1)])
    return paths, log


class StandInWitness:
    """A witness for the suite, after C2SP tlog-witness; a stand-in, not litewitness or omniwitness."""

    def __init__(self, origin: str, keys: PublicKeys, name: str = "witness.example/w1") -> None:
        self._private = Ed25519PrivateKey.generate()
        self.key = NoteKey(name, COSIGNATURE, self._private.public_key())
        self.origin, self.keys = origin, keys
        self.size, self.root = 0, EMPTY_ROOT
        self.seconds = 1_795_000_000
        self.requests: list[bytes] = []

    def answer(self, body: bytes) -> tuple[int, bytes]:
        """The response to an add-checkpoint request."""
        self.requests.append(body)
        head, _, note = body.partition(b"\n\n")
        lines = head.decode().split("\n")
        try:
            checkpoint = decode_checkpoint(note)
            if checkpoint.origin != self.origin:
                return 404, b"unknown log"
            if not checkpoint.signers(self.keys):
                return 403, b"unknown key"
        except FormatError as error:
            return 403, error.reason.encode()
        old = int(lines[0].removeprefix("old "))
        if old > checkpoint.size:
            return 400, b"old size above the size"
        if old != self.size or (old == checkpoint.size and checkpoint.root != self.root):
            return 409, b"%d\n" % self.size
        proof = [b64decode(line) for line in lines[1:]]
        if not consistency_holds(old, self.root, checkpoint.size, checkpoint.root, proof):
            return 422, b"the proof does not hold"
        self.size, self.root = checkpoint.size, checkpoint.root
        signature = self._private.sign(cosigned_text(self.seconds, checkpoint.text))
        value = self.seconds.to_bytes(8, "big") + signature
        return 200, NoteSignature(self.key.name, self.key.id, value).line().encode()


@contextmanager
def serving(witness: StandInWitness) -> Iterator[str]:
    """Serve the witness on 127.0.0.1; give its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, data = (404, b"") if self.path != "/prefix/add-checkpoint" else witness.answer(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/prefix"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
