"""Made the golden files of tape format 1, once: `python -m tests.recorder.golden.make` in the repository's root.

Each folder is a scenario, its files as the real Recorder and recover() left them, and expected.json: the records as
they were given to the Recorder, at the times that its clock showed, and of each segment what the second reader found.
They are committed and never made anew: a format that cannot read them any more is another version. Running this again
adds only the folders that are missing, with the test keys that lie here (good for nothing but these files).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from recorder.cipher import AuditorKey
from recorder.disk import Disk
from recorder.recover import recover, sweep
from recorder.seal import SealKey
from recorder.tape import ERR, GATE, OUT, USER, Kind, Recorder, Tape
from tests.recorder.second_reader import GAP, Segment, read_segment
from tests.recorder.second_wal_reader import Entry, read_log

HERE: Final = Path(__file__).parent
PAYLOAD_LIMIT: Final = 262_144
WALL_NS: Final = 1_790_000_000_000_000_000
MONO_NS: Final = 5_000_000_000
pack = msgpack.packb
Given = dict[str, Any]


def load(name: str, make: Callable[[], Any]) -> Any:
    """Read a private test key; make it, and its public half beside it, if there is none."""
    path = HERE / f"test-key-{name}.pem"
    if not path.exists():
        key = make()
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        path.with_suffix(".pub").write_bytes(public)
    return load_pem_private_key(path.read_bytes(), None)


class Stage:
    """A Recorder whose clocks stand still until told, and what it was given."""

    def __init__(self, directory: Path, **more: Any) -> None:
        self.directory = directory
        self.now_ns = MONO_NS
        self.key = SealKey(load("seal", Ed25519PrivateKey.generate))
        self.recorder = Recorder(
            directory / "tapes",
            self.key,
            node="golden",
            boot="11111111-2222-3333-4444-555555555555",
            tick_seconds=3600,
            wall_ns=lambda: WALL_NS,
            monotonic_ns=lambda: self.now_ns,
            **more,
        )
        self.given: list[Given] = []
        self.opened_ns = 0

    def open(self, **more: Any) -> Tape:
        self.opened_ns = self.now_ns
        fields: Given = {
            "protocol": "postgres",
            "identity": {"subject": "ana@acme", "groups": ["dev"], "agents": ["claude-code"], "issuer": "https://idp"},
            "target": "shop",
            "mode": "durable",
            "run": "run-1",
            "policy_revision": "p7",
            "more": {"database": "orders"},
            **more,
        }
        return self.recorder.open(**fields)

    def pass_us(self, microseconds: int) -> None:
        self.now_ns += microseconds * 1000

    def wire(self, tape: Tape, channel: int, data: bytes, flow: int | None = None) -> int:
        return self._append(tape, channel, Kind.WIRE, data, data, flow)

    def note(self, tape: Tape, kind: Kind, value: Any, channel: int = GATE, flow: int | None = None) -> int:
        return self._append(tape, channel, kind, pack(value), value, flow)

    def _append(self, tape: Tape, channel: int, kind: Kind, payload: bytes, value: Any, flow: int | None = None) -> int:
        n = tape.append(channel, kind, payload, flow=flow)
        if kind is Kind.WIRE:  # a long one is several records, not one in parts
            for i in range(0, max(1, len(payload)), PAYLOAD_LIMIT):
                self._give(n + i // PAYLOAD_LIMIT, channel, kind, value[i : i + PAYLOAD_LIMIT], flow=flow)
        else:
            self._give(n, channel, kind, value, max(1, -(-len(payload) // PAYLOAD_LIMIT)), flow)
        return n

    def _give(self, n: int, channel: int, kind: Kind, value: Any, parts: int = 1, flow: int | None = None) -> None:
        t_ns = self.now_ns - self.opened_ns
        given = {"n": n, "t_ns": t_ns, "channel": channel, "kind": int(kind), "payload": value, "parts": parts}
        self.given.append(given if flow is None else {**given, "flow": flow})

    def command(self, tape: Tape, text: str, verdict: Given | None = None, verb: str = "SELECT", **more: Any) -> int:
        n = self.note(tape, Kind.COMMAND, {"verb": verb, "kind": "read", "text": text, **more}, USER)
        self.note(tape, Kind.VERDICT, {"command": n, "verdict": "allow", "rule": "r1", **(verdict or {})})
        return n

    async def close(self, tape: Tape, status: Any = "closed", reason: str = "bye") -> None:
        last = self.given[-1] if self.given else {"n": -1, "parts": 1}
        await tape.close(status, reason)
        self._give(last["n"] + last["parts"], GATE, Kind.CLOSE, {"status": status, "reason": reason})

    def image(self) -> Path:
        """What a kill would leave now."""
        return Path(shutil.copytree(self.directory / "tapes", self.directory / "image"))


def keep(path: Path, scenario: Path) -> None:
    """Keep all files of a tape, of both tracks."""
    for one in sorted(path.parent.iterdir()):
        if one.suffix in (".gct", ".keys"):
            shutil.copyfile(one, scenario / one.name)


async def exchange(stage: Stage, tape: Tape, i: int) -> None:
    """A command, and an answer that is only a hash in the log."""
    stage.wire(tape, USER, b"Q%d" % i)
    n = stage.command(tape, f"SELECT {i}")
    await tape.commit()
    stage.pass_us(1500)
    stage.wire(tape, OUT, b"row %d " % i * 50)
    stage.note(tape, Kind.RESULT, {"command": n, "tag": "SELECT 1", "count": 1, "bytes": 300})
    await tape.written()
    stage.pass_us(40_250)


async def plain(stage: Stage, scenario: Path) -> None:
    """Every kind of record, a command in three parts, masks, a hold, a denial, an error, a terminal's size."""
    tape = stage.open(more={"tty": [80, 24]})
    stage.note(tape, Kind.INTENT, {"text": "refund order 812"}, USER)
    stage.note(tape, Kind.RESIZE, [120, 40], USER)
    stage.wire(tape, USER, b"Q\x00\x00\x00\x0cSELECT\x00")
    masks = {"masks": ["pii.email"], "reason": "ro"}
    n = stage.command(tape, "  SELECT id,\n\t email\u00a0\u2003FROM\torders  ", masks, objects=["public.orders"])
    await tape.commit()
    stage.pass_us(12_700)
    stage.wire(tape, GATE, b"P\x00made by the gate")
    stage.wire(tape, OUT, b"D\x00101,#####@##### " * 20)
    stage.wire(tape, ERR, b"N\x00notice")
    stage.note(tape, Kind.MASKMAP, {"command": n, "fields": [["email", 1, "pii.email"]], "scanned": [0]})
    rows = {"columns": ["id", "email"], "rows": [["101", "#####@#####"], ["102", None]]}
    stage.note(tape, Kind.RESULT, {"command": n, "tag": "SELECT 200", **rows, "count": 200, "bytes": 18_842})
    await tape.written()
    stage.pass_us(1_000_000)
    n = stage.note(
        tape, Kind.COMMAND, {"verb": "UPDATE", "kind": "write", "text": "UPDATE o", "values": ["1", None]}, 1
    )
    held = {"state": "pending", "rule": "writes", "approvers": ["group:oncall"]}
    stage.note(tape, Kind.APPROVAL, {"command": n, "id": "A7", **held})
    stage.pass_us(41_000_000)
    stage.note(tape, Kind.APPROVAL, {"command": n, "id": "A7", "state": "approved", "by": "mia", "reason": "ok"})
    stage.note(tape, Kind.VERDICT, {"command": n, "verdict": "allow", "rule": "writes", "approval": "A7"})
    error = {"severity": "ERROR", "code": "22012", "message": "division by zero"}
    stage.note(tape, Kind.RESULT, {"command": n, "tag": "", "count": 0, "bytes": 0, "error": error})
    stage.command(tape, "DROP TABLE o", {"verdict": "deny", "rule": "no-ddl", "reason": "no"}, "DROP", exact=False)
    await tape.commit()
    stage.note(tape, Kind.MARK, {"label": "idle", "text": "nothing for a while"})
    stage.pass_us(77)
    stage.command(tape, "SELECT '" + "long text, " * 55_000 + "'", {"verdict": "deny"})
    await tape.commit()
    stage.note(tape, Kind.COMMAND, {"verb": "SELECT", "kind": "read", "text": "no verdict came"}, USER)
    stage.pass_us(250)
    await stage.close(tape)
    keep(tape.path, scenario)


async def flows(stage: Stage, scenario: Path) -> None:
    """An SSH session: a shell on a terminal, and beside it an exec, a transfer, and messages of no stream."""
    tape = stage.open(protocol="ssh", more={"database": "deploy"})
    stage.wire(tape, USER, b"\x00\x00\x00\x05\x5a\x00\x00\x00\x00")
    stage.command(tape, "xterm 80x24", verb="pty", flow=0)
    stage.note(tape, Kind.RESIZE, [80, 24], flow=0)
    shell = stage.command(tape, "shell", verb="shell", flow=0)
    await tape.commit()
    stage.wire(tape, OUT, b"$ ", 0)
    stage.pass_us(20)
    stage.wire(tape, USER, b"ls\r", 0)
    stage.command(tape, "ls", verb="line", flow=0, exact=False)
    long = stage.command(tape, "cat > /srv/" + "x" * 600_000, verb="exec", flow=1, objects=["cat"])
    stage.wire(tape, OUT, b"ls\r\n\x1b[34mdata\x1b[0m\r\n", 0)
    stage.wire(tape, USER, bytes(range(256)) * 1100, 1)
    stage.wire(tape, ERR, b"cat: no room", 1)
    stage.note(tape, Kind.RESIZE, [100, 30], flow=0)
    more = {"flow": 1, "signal": "PIPE", "sent": 281_600}
    stage.note(tape, Kind.RESULT, {"command": long, "tag": "signal PIPE", "count": 0, "bytes": 12, **more})
    put = stage.command(tape, "put /srv/a", verb="file-write", flow=70_000)
    passed = {"path": "/srv/a", "direction": "upload", "size": 3, "sha256": "ab" * 32, "in_order": True}
    more = {"flow": 70_000, **passed, "complete": True, "how": "app"}
    stage.note(tape, Kind.RESULT, {"command": put, "tag": "ok", "count": 0, "bytes": 0, **more})
    await tape.written()
    stage.pass_us(1_500_000)
    more = {"flow": 0, "exit": 255, "sent": 3}
    stage.note(tape, Kind.RESULT, {"command": shell, "tag": "exit 255", "count": 0, "bytes": 20, **more})
    await stage.close(tape)
    keep(tape.path, scenario)


async def rotated(stage: Stage, scenario: Path) -> None:
    """Three segments."""
    await in_segments(stage, scenario, ())


async def encrypted(stage: Stage, scenario: Path) -> None:
    """Two segments or more, encrypted to two recipients."""
    await in_segments(stage, scenario, ("ana", "mia"))


async def in_segments(stage: Stage, scenario: Path, recipients: tuple[str, ...]) -> None:
    tape = stage.open(recipients=auditors(*recipients))
    first, i = tape.path, 0
    while int(tape.path.name.split(".")[-2]) < 2:
        await exchange(stage, tape, i)
        i += 1
    await stage.close(tape)
    keep(first, scenario)


def auditors(*names: str) -> list[Any]:
    return [AuditorKey(load(f"auditor-{name}", X25519PrivateKey.generate)).recipient for name in names]


async def crashed(stage: Stage, scenario: Path) -> None:
    """Both segments lost their tails: the first is sealed continued, the second crashed, each with GAPs."""
    await power_cut(stage, scenario, ())


async def crashed_encrypted(stage: Stage, scenario: Path) -> None:
    """The same, encrypted, recovered without a key."""
    await power_cut(stage, scenario, ("ana",))


async def power_cut(stage: Stage, scenario: Path, recipients: tuple[str, ...]) -> None:
    """Cut both segments within their second block; commands come back from the log, answers become GAPs."""
    tape = stage.open(recipients=auditors(*recipients))
    first, i = tape.path, 0
    while tape.path == first or i < 7:
        await exchange(stage, tape, i)
        i += 1
    stage.command(tape, "COMMIT")
    await tape.commit()
    image = stage.image()
    for path in (first, tape.path):
        torn = image / path.relative_to(stage.directory / "tapes")
        second = read_segment(torn.read_bytes()).blocks[1]
        torn.write_bytes(torn.read_bytes()[: second.offset + 60])
    recover(image, image / "wal" / "0", stage.key, disk=Disk(), reason="the golden power cut")
    keep(image / first.relative_to(stage.directory / "tapes"), scenario)
    await tape.close("closed")


async def original(stage: Stage, scenario: Path) -> None:
    """An original track, for the auditor mia, beside its main track in the clear. Expected are the main's records."""
    tape = stage.open()
    n = stage.command(tape, "SELECT mail", {"masks": ["pii.email"]})
    await tape.commit()
    second = stage.recorder.open_original(tape, auditors("mia"))
    main, stage.given = stage.given, []
    extra: list[Given] = []
    for i in range(2):
        stage.given = main
        if not i:
            stage.note(tape, Kind.MARK, {"label": "original", "text": "what masks changed is kept"})
        shown = stage.wire(tape, OUT, b"D####@####%d" % i)
        stage.given = extra
        mark = {"label": "original", "text": "", "record": shown, "records": 1, "command": n}
        stage.note(second, Kind.MARK, mark)
        stage.wire(second, OUT, b"Dana@acme%d" % i)
        await tape.written()
        await second.written()
        stage.pass_us(500)
    await stage.close(second, reason="")
    stage.given = main
    await stage.close(tape)
    keep(tape.path, scenario)
    (scenario / "expected-original.json").write_text(dump(extra) + "\n")


async def empty(stage: Stage, scenario: Path) -> None:
    """A session in which nothing happened."""
    tape = stage.open()
    await stage.close(tape, reason="")
    keep(tape.path, scenario)


async def empty_crashed(stage: Stage, scenario: Path) -> None:
    """Killed before anything happened, even before the log knew of it."""
    tape = stage.open()
    image = stage.image()
    sweep(image, stage.key, WALL_NS + 1_000_000_000, disk=Disk(), reason="the golden kill")
    [segment] = image.glob("[0-9]*/*/*/*.gct")
    keep(segment, scenario)
    await tape.close("closed")


async def in_mode(stage: Stage, scenario: Path, mode: str, status: str) -> None:
    tape = stage.open(mode=mode)
    for i in range(3):
        await exchange(stage, tape, i)
    await stage.close(tape, status, f"it {status}")
    keep(tape.path, scenario)


async def strict(stage: Stage, scenario: Path) -> None:
    """Mode strict, and a session that failed."""
    await in_mode(stage, scenario, "strict", "failed")


async def written(stage: Stage, scenario: Path) -> None:
    """Mode written."""
    await in_mode(stage, scenario, "written", "closed")


async def live(stage: Stage, scenario: Path) -> None:
    """A session that goes on; its last block is only half there."""
    tape = stage.open()
    for i in range(3):
        await exchange(stage, tape, i)
    whole = len(stage.given)
    stage.wire(tape, OUT, b"half there " * 9)
    await tape.written()
    torn = tape.path.read_bytes()[:-70]
    (scenario / tape.path.name).write_bytes(torn)
    del stage.given[whole:]
    given = list(stage.given)
    await stage.close(tape)
    stage.given = given


async def log(stage: Stage, scenario: Path) -> None:
    """Two files: generation 2, whole; and generation 3, torn, in the file that generation 1 was in."""
    tape = stage.open(recipients=auditors("ana"))
    other = stage.open(run="run-2")
    tracks = [tape, other]
    files: dict[int, bytes] = {}
    i = 0
    while len(files.get(3, b"")) < 4000:
        for one in (tape, other):
            await exchange(stage, one, i)
        for n in range(3):  # blocks that become one DIGEST
            stage.wire(other, OUT, b"more %d " % n * 20)
            await other.written()
        if len(files) == 2 and len(tracks) == 2:
            await other.close("closed", "")
            stage.recorder.upkeep.tick()  # which syncs it and says DONE
            other = stage.open(run="run-3")
            tracks += [other, stage.recorder.open_original(tape, auditors("mia"))]
        if len(tracks) == 4:
            stage.note(tracks[3], Kind.MARK, {"label": "original", "text": "", "record": 3, "records": 1})
            await tracks[3].commit()
        i += 1
        for path in (stage.directory / "tapes" / "wal" / "0").glob("*.wal"):
            data = path.read_bytes()
            entries, end = read_log(data)
            if entries and end > len(files.get(entries[0].generation, b"")):
                files[entries[0].generation] = data[:end]
    for one in (tape, *tracks[2:]):
        await one.close("closed")
    kept = len(files[3]) - len(read_log(files[3])[0][-1].blocks[-1][1]) // 2
    (scenario / "0.wal").write_bytes(files[3][:kept] + files[1][kept:])
    (scenario / "1.wal").write_bytes(files[2] + bytes(200))
    (scenario / "2.wal").write_bytes(bytes(300))


Scenario = Callable[[Stage, Path], Awaitable[None]]
SCENARIOS: Final[dict[Scenario, Given]] = {
    plain: {},
    rotated: {"segment_limit": 1400},
    crashed: {"segment_limit": 2600},
    encrypted: {"segment_limit": 1400},
    crashed_encrypted: {"segment_limit": 2600},
    original: {},
    empty: {},
    empty_crashed: {},
    strict: {},
    written: {},
    live: {},
    log: {"wal_bytes": 8000},
    flows: {},
}


def in_json(value: Any) -> Any:
    """Bytes as {"hex": ...}; what is long as {"length": ..., "start": ...}."""
    match value:
        case bytes() if len(value) > 1000:
            return {"length": len(value), "hex": value[:40].hex()}
        case bytes():
            return {"hex": value.hex()}
        case str() if len(value) > 1000:
            return {"length": len(value), "start": value[:40]}
        case dict():
            return {str(key): in_json(one) for key, one in value.items()}
        case list() | tuple():
            return [in_json(one) for one in value]
        case _:
            return value


def dump(value: Any) -> str:
    return json.dumps(in_json(value), indent=1, ensure_ascii=False, sort_keys=True)


def facts(segment: Segment) -> Given:
    """What is to be read of a segment, apart from its records."""
    blocks = [[b.type, b.flags, b.seq, b.first_record, b.t0_ns, b.n_records, b.leaf, b.chain] for b in segment.blocks]
    return {"header": segment.head, "h0": segment.h0, "blocks": blocks, "seal": segment.seal, "torn": segment.torn}


def entry_facts(entry: Entry) -> Given:
    seqs = [int.from_bytes(header[8:16], "little") for header, _ in entry.blocks]
    keys = None if entry.keys is None else len(entry.keys)
    return {
        **{name: getattr(entry, name) for name in ("kind", "sid", "track", "segment", "generation", "header")},
        "keys": keys,
        "seqs": seqs,
    }


async def make(scenario: Scenario, folder: Path, directory: Path, **more: Any) -> None:
    stage = Stage(directory, **more)
    await scenario(stage, folder)
    stage.recorder.close()
    files = sorted(folder.glob("*.gct"))
    segments = {path.name: facts(read_segment(path.read_bytes())) for path in files}
    logs: Given = {}
    for path in sorted(folder.glob("*.wal")):
        entries, end = read_log(path.read_bytes())
        logs[path.name] = {"end": end, "entries": [entry_facts(entry) for entry in entries]}
    gaps = [block for one in segments.values() for block in one["blocks"] if block[0] == GAP]
    lost = [n for block in gaps for n in range(block[3], block[3] + block[5])]
    records = [record for record in stage.given if record["n"] not in lost]
    given = {"segments": segments, "records": records, "lost": lost} if segments else {"logs": logs}
    (folder / "expected.json").write_text(dump(given) + "\n")


def main() -> None:
    for scenario, more in SCENARIOS.items():
        name = scenario.__name__
        folder = HERE / name
        if not folder.exists():
            with tempfile.TemporaryDirectory() as directory:
                made = Path(directory) / name
                made.mkdir()
                asyncio.run(make(scenario, made, Path(directory), **more))
                shutil.copytree(made, folder)
            sys.stdout.write(f"made {name}\n")


if __name__ == "__main__":
    main()
