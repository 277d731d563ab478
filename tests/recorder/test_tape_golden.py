"""Golden files of format 1, read by our reader and by a second one that was written from the docstrings alone.

Both must find what expected.json says, byte for byte of every record; so the format cannot drift unnoticed, neither
what is written nor what is read, and the docstring cannot drift from both. golden/make.py made the files; they are
never made anew under the same version.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from recorder.cipher import AuditorKey
from recorder.disk import Disk
from recorder.errors import FormatError
from recorder.format import Kind, decode_commands
from recorder.reader import TapeReader
from recorder.seal import SealKey, load_public_keys
from recorder.segment import CommandIndex
from recorder.ulid import ulid_text
from recorder.verify import verify
from recorder.walformat import decode_open, read_entries
from recorder.walread import Log
from tests.recorder.golden.make import SCENARIOS, entry_facts, facts, in_json, make
from tests.recorder.second_reader import Record, Refusal, Segment, entries_of, read_tape
from tests.recorder.second_wal_reader import read_log
from tests.recorder.second_writer import HEAD, SID, Odd, pack, write_segment

GOLDEN = Path(__file__).parent / "golden"
SEAL_PUBLIC = GOLDEN / "test-key-seal.pub"
NAMES = [scenario.__name__ for scenario in SCENARIOS]
TAPES = [(name, "") for name in NAMES if name != "log"] + [("original", ".original")]
ENCRYPTED = {("encrypted", ""), ("crashed_encrypted", ""), ("original", ".original")}
STATUS = {
    "crashed": "incomplete",
    "crashed_encrypted": "incomplete",
    "empty_crashed": "incomplete",
    "live": "incomplete",
}


def expected(name: str, track: str = "") -> Any:
    """(facts of the track's segments, its records)"""
    said = json.loads((GOLDEN / name / "expected.json").read_text())
    segments = {file: one for file, one in said["segments"].items() if (".original." in file) == bool(track)}
    records = json.loads((GOLDEN / name / "expected-original.json").read_text()) if track else said["records"]
    return segments, records


def files(name: str, track: str = "", where: Path = GOLDEN) -> list[Path]:
    found = sorted((where / name).glob("*.gct"))
    return [path for path in found if (".original." in path.name) == bool(track)]


def seal_key() -> Ed25519PublicKey:
    key = load_pem_public_key(SEAL_PUBLIC.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    return key


def auditor(name: str) -> X25519PrivateKey:
    if name == "eve":
        return X25519PrivateKey.generate()
    key = load_pem_private_key((GOLDEN / f"test-key-auditor-{name}.pem").read_bytes(), None)
    assert isinstance(key, X25519PrivateKey)
    return key


def who_reads(name: str, track: str) -> list[str]:
    return {"": ["ana", "mia"] if name == "encrypted" else ["ana"], ".original": ["mia"]}[track]


def by_the_book(
    name: str, track: str, who: str | None, where: Path = GOLDEN
) -> tuple[list[Segment], list[Record] | None]:
    paths = files(name, track, where)
    keys = paths[0].with_name(paths[0].name[: -len(".000.gct")] + ".keys")
    there = keys.read_bytes() if who and keys.exists() else None
    return read_tape([path.read_bytes() for path in paths], [seal_key()], there, auditor(who) if who else None)


def bare(record: dict[str, Any]) -> dict[str, Any]:
    """A record without a flow where it has none: so they were written down before there were any."""
    return {key: value for key, value in record.items() if key != "flow" or value is not None}


def unpacked(kind: int, payload: bytes) -> Any:
    return payload if kind == Kind.WIRE else msgpack.unpackb(payload, strict_map_key=False)


@pytest.mark.parametrize(("name", "track"), TAPES)
def test_a_stranger_reads_it(name: str, track: str) -> None:
    segments, records = expected(name, track)
    for who in who_reads(name, track):
        found, read = by_the_book(name, track, who)
        assert read is not None
        assert [in_json(bare(asdict(record))) for record in read] == records
        assert [in_json(facts(one)) for one in found] == list(segments.values())
    if (name, track) in ENCRYPTED:
        assert by_the_book(name, track, None)[1] is None
        with pytest.raises(Refusal, match=r"not for this recipient"):
            by_the_book(name, track, "eve")


@pytest.mark.parametrize(("name", "track"), TAPES)
def test_our_own_reader_reads_the_same(name: str, track: str) -> None:
    segments, records = expected(name, track)
    for who in who_reads(name, track):
        reader = TapeReader(files(name, track)[0], [AuditorKey(auditor(who))])
        found = [
            in_json(
                bare(
                    {"n": r.n, "t_ns": r.t_ns, "channel": r.channel, "kind": r.kind, "flow": r.flow}
                    | {"payload": unpacked(r.kind, r.payload)}
                )
            )
            for r in reader.records()
        ]
        lost = (
            [record for record in found if record["payload"].get("label") == "gap"] if segments_gaps(segments) else []
        )
        assert [record for record in found if record not in lost] == [
            {key: value for key, value in record.items() if key != "parts"} for record in records
        ]
        places = [
            [int(place.type), place.first_record, place.t0_ns, place.n_records]
            for i in range(len(reader.segments))
            for place in reader.segment(i).data
        ]
        assert places == [[b[0], *b[3:6]] for one in segments.values() for b in one["blocks"] if b[0] in (1, 2)]
        for i, one in enumerate(segments.values()):
            assert in_json(reader.segment(i).header.map_) == one["header"]
            seal = reader.segment(i).seal
            assert (None if seal is None else in_json(seal.body)) == one["seal"]


def segments_gaps(segments: dict[str, Any]) -> int:
    return sum(block[0] == 2 for one in segments.values() for block in one["blocks"])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "log"])
def test_our_own_verification_agrees(name: str) -> None:
    keys = [AuditorKey(auditor(who)) for who in ("ana", "mia")]
    report = verify(GOLDEN / name, load_public_keys(SEAL_PUBLIC), keys)
    assert {tape.status for tape in report.tapes} == {STATUS.get(name, "verified")}
    assert {tape.content for tape in report.tapes} == {"checked"}
    said = json.loads((GOLDEN / name / "expected.json").read_text())
    assert sum(tape.segments for tape in report.tapes) == len(said["segments"])
    assert sum(tape.blocks for tape in report.tapes) == sum(len(one["blocks"]) for one in said["segments"].values())


@pytest.mark.parametrize("name", NAMES)
def test_the_scenario_shows_what_it_is_for(name: str) -> None:
    """The files are what their names say: else the tests above would prove less than they seem to."""
    said = json.loads((GOLDEN / name / "expected.json").read_text())
    if name == "log":
        kinds = {entry["kind"] for one in said["logs"].values() for entry in one["entries"]}
        assert kinds == {"OPEN", "FULL", "DIGEST", "DONE"}
        return
    segments = [one for file, one in said["segments"].items() if ".original." not in file]
    ends = [one["seal"]["status"] if one["seal"] else None for one in segments]
    kinds = {record["kind"] for record in said["records"]}
    types = [[block[0] for block in one["blocks"]] for one in segments]
    match name:
        case "plain":
            assert kinds == set(range(1, 11))
            assert {record["parts"] for record in said["records"]} == {1, 3}
            assert {record["channel"] for record in said["records"]} == {0, 1, 2, 3}
            assert any(block[1] & 1 for block in segments[0]["blocks"])
        case "flows":
            assert {record.get("flow") for record in said["records"]} == {None, 0, 1}
            assert {record["parts"] for record in said["records"]} == {1, 3}
            of_flow = [(record["channel"], record["kind"]) for record in said["records"] if "flow" in record]
            assert {(1, 1), (2, 1), (3, 1), (0, 7)} == set(of_flow)
        case "rotated" | "encrypted":
            assert ends == ["continued", "continued", "closed"]
        case "crashed" | "crashed_encrypted":
            assert ends == ["continued", "crashed"]
            assert all(2 in one and 3 not in one and one[-1] == 6 for one in types)
            assert all(one["seal"]["gaps"] for one in segments)
        case "original":
            assert ends == ["closed"]
            assert len(said["segments"]) == 2
        case "empty":
            assert kinds == {Kind.CLOSE}
        case "empty_crashed":
            assert types == [[4, 6]]
        case "strict" | "written":
            assert segments[0]["header"]["mode"] == name
            assert ends == ["failed" if name == "strict" else "closed"]
        case _:
            assert name == "live"
            assert ends == [None]
            assert segments[0]["torn"] > 0
    assert {one["header"]["mode"] for one in segments} == {name if name in ("strict", "written") else "durable"}
    assert all(("enc" in one["header"]) == ((name, "") in ENCRYPTED) for one in segments)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "log"])
def test_what_is_written_today_reads_the_same(tmp_path: Path, name: str) -> None:
    """The scenario, played again: the stranger reads it, too, and it says what the golden one says."""
    [(scenario, more)] = [(one, more) for one, more in SCENARIOS.items() if one.__name__ == name]
    folder = tmp_path / name
    folder.mkdir()
    asyncio.run(make(scenario, folder, tmp_path, **more))

    def alike(where: Path) -> Any:
        """All but the hashes, for the session id is random."""
        said = json.loads((where / "expected.json").read_text())
        segments = []
        for one in said["segments"].values():
            header = {key: value for key, value in one["header"].items() if key not in ("sid", "prev", "enc")}
            seal = {
                key: value for key, value in (one["seal"] or {}).items() if key not in ("sid", "h0", "root", "head")
            }
            seal["gaps"] = [seq for seq, _ in seal.get("gaps", ())]
            segments.append([header, seal, [block[:6] for block in one["blocks"]], one["torn"]])
        return segments, said["records"], said["lost"]

    assert alike(folder) == alike(GOLDEN / name)
    for track in {track for one, track in TAPES if one == name}:
        found, read = by_the_book(name, track, who_reads(name, track)[0], tmp_path)
        assert read is not None
        assert [in_json(bare(asdict(record))) for record in read] == expected(name, track)[1]
        assert found[0].head["sid"] != files(name)[0].name[:26]


def test_the_first_golden_tape_still_reads() -> None:
    """Written before there was a second reader; what follows was said by hand."""
    path = GOLDEN.parent / "golden.tape"
    public = load_pem_public_key(path.with_suffix(".pub").read_bytes())
    assert isinstance(public, Ed25519PublicKey)
    [segment], records = read_tape([path.read_bytes()], [public])
    assert records is not None
    said = "1/6 1/1 1/2 0/3 2/1 0/9 0/5 1/2 0/4 0/4 0/3 1/2 0/3 0/7 0/8 0/10"
    assert [f"{record.channel}/{record.kind}" for record in records] == said.split()
    assert segment.head["identity"] == {"subject": "ana@acme", "agents": ["claude-code"], "groups": ["dba", "dev"]}
    assert records[4].payload == bytes(range(256)) * 20
    assert records[7].payload["text"] == "SELECT '" + "x" * 300_000 + "'"
    assert records[7].parts == 2
    assert verify(path, load_public_keys(path.with_suffix(".pub"))).exit_code == 0
    ours = [(r.n, r.t_ns, r.channel, r.kind, unpacked(r.kind, r.payload)) for r in TapeReader(path).records()]
    assert ours == [(r.n, r.t_ns, r.channel, r.kind, r.payload) for r in records]


def test_a_stranger_reads_the_log() -> None:
    said = json.loads((GOLDEN / "log" / "expected.json").read_text())["logs"]
    for name, one in said.items():
        entries, end = read_log((GOLDEN / "log" / name).read_bytes())
        assert in_json([entry_facts(entry) for entry in entries]) == one["entries"]
        assert end == one["end"]
    # The torn one ends within what was written, and valid entries of an older use follow.
    data = (GOLDEN / "log" / "0.wal").read_bytes()
    tail = data[said["0.wal"]["end"] :]
    assert any(read_log(tail[at:])[0] for at in range(1, len(tail)) if tail.startswith(b"GCTW", at))


def test_entries_of_another_generation_end_a_file() -> None:
    """Also where they follow at once, without a torn one or a zero between."""
    said = json.loads((GOLDEN / "log" / "expected.json").read_text())["logs"]
    first, second = ((GOLDEN / "log" / name).read_bytes()[: said[name]["end"]] for name in ("0.wal", "1.wal"))
    for data, own, end in ((first + second, 3, len(first)), (second + first, 2, len(second))):
        assert read_log(data)[1] == end
        assert {entry.generation for entry in read_log(data)[0]} == {own}
        assert {entry.generation for entry in read_entries(data)} == {own}
    assert len(list(read_entries(second + second))) == 2 * len(said["1.wal"]["entries"])


def test_our_own_log_reader_agrees(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "log", tmp_path / "log")
    stranger = []
    for path in sorted(folder.glob("*.wal")):
        theirs = read_log(path.read_bytes())[0]
        ours = list(read_entries(path.read_bytes()))
        stranger += theirs
        assert [
            (e.kind.name, ulid_text(e.sid), ("main", "original")[e.track], e.segment, e.generation) for e in ours
        ] == [(e.kind, e.sid, e.track, e.segment, e.generation) for e in theirs]
        for own, other in zip(ours, theirs, strict=True):
            if other.kind == "OPEN":
                assert decode_open(own.body) == (other.header, other.keys)
            else:
                assert own.body == b"".join(head + rest for head, rest in other.blocks)
    log = Log(Disk(), folder)
    stranger.sort(key=lambda entry: entry.generation)  # stable: within a file the order stays
    try:
        for key, named in log.named.items():
            blocks = [
                (entry.kind == "FULL", head, rest)
                for entry in stranger
                if (entry.sid, entry.track, entry.segment) == (ulid_text(key[0]), ("main", "original")[key[1]], key[2])
                for head, rest in entry.blocks
            ]
            assert list(log.entries(named)) == blocks
            seqs = [int.from_bytes(head[8:16], "little") for _, head, _ in blocks]
            start = min(seqs, default=0)
            assert seqs == list(range(start, start + len(seqs)))
        done = {(entry.sid, entry.segment) for entry in stranger if entry.kind == "DONE"}
        assert {(ulid_text(sid), segment) for sid, _, segment in log.done} == done
    finally:
        log.close()


@pytest.mark.parametrize(
    "tail", [b"", bytes(500), b"GCTB" + bytes(range(256)), b"GCTT"], ids=["cut", "zeros", "block", "end"]
)
def test_whatever_is_behind_the_last_whole_block_both_stop_there(tmp_path: Path, tail: bytes) -> None:
    [path] = files("live")
    end = expected("live")[0][path.name]["torn"]
    torn = tmp_path / path.name
    torn.write_bytes(path.read_bytes()[:-end] + tail)
    _, records = read_tape([torn.read_bytes()])
    ours = [(r.n, r.t_ns, r.channel, r.kind, unpacked(r.kind, r.payload)) for r in TapeReader(torn).records()]
    assert records is not None
    assert [in_json(bare(asdict(record))) for record in records] == expected("live")[1]
    assert ours == [(r.n, r.t_ns, r.channel, r.kind, r.payload) for r in records]


@pytest.mark.parametrize(("between", "word"), [(4095, "held-deny"), (4096, "")])
def test_a_verdict_that_comes_too_late_is_not_in_the_index(between: int, word: str) -> None:
    command = {"verb": "SELECT", "kind": "read", "text": " a \u2003\x1f b "}
    verdicts = [{"command": 0, "verdict": "deny", "approval": "A"}, {"command": 0, "verdict": "allow"}]
    said = [(Kind.COMMAND, command)] * (between + 1) + [(Kind.VERDICT, verdict) for verdict in verdicts]
    index = CommandIndex()
    for n, (kind, fields) in enumerate(said):
        index.note(n, n, kind, pack(fields))
    ours = [[e.n, e.t_ns, e.verb, e.kind, e.verdict, e.text] for raw in index.finish() for e in decode_commands(raw)]
    theirs = entries_of([Record(n, n, 1, int(kind), fields) for n, (kind, fields) in enumerate(said)])
    assert ours == theirs
    assert ours[0] == [0, 0, "SELECT", "read", word, "a b"]


# -- what a later version may bring --------------------------------------------------------------------

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
COMMAND = pack({"verb": "SELECT", "kind": "read", "text": "SELECT 1", "later": [1, {2: b"3"}]})
BLOCKS = [
    [[0, 1, 2, COMMAND], [0, 0, 3, pack({"command": 0, "verdict": "allow", "rule": "r"})]],
    [[0, 2, 1, b"row", {"later": {"a": 1}}], [5, 0, 200, b"\xc1 no msgpack"], [5, 0, 201, b"", {"part": 0, "more": 0}]],
    [[0, 0, 10, pack({"status": "closed", "reason": "", "later": 1})]],
]


def both(directory: Path, data: bytes) -> tuple[list[tuple[int, int, bytes | Any]], list[tuple[int, int, Any]], str]:
    """(what the stranger reads, what our reader reads, what our verification says); kinds that are known only."""
    path = directory / f"{SID}.000.gct"
    path.write_bytes(data)
    report = verify(path, SealKey(KEY).public_keys())
    try:
        ours = [(r.n, r.kind, r.payload) for r in TapeReader(path).records() if r.kind <= Kind.CLOSE]
    except FormatError:
        ours = []
    try:
        _, read = read_tape([data], [KEY.public_key()])
    except Refusal:
        read = []
    assert read is not None
    return (
        [(r.n, r.kind, r.payload) for r in read],
        [(n, k, unpacked(k, p)) for n, k, p in ours],
        report.tapes[0].status,
    )


def test_what_a_later_version_adds_is_skipped(tmp_path: Path) -> None:
    head = {**HEAD, "later": {"nested": [1, b"2"]}}
    theirs, ours, status = both(tmp_path, write_segment(KEY, BLOCKS, head, body_more={"later": 1}))
    assert [kind for _, kind, _ in theirs] == [2, 3, 1, 10]
    assert theirs == ours
    assert status == "verified"


LONG = pack({"text": "x" * 90})
CLOSED = pack({"status": "closed", "reason": ""})


@pytest.mark.parametrize(
    "parts",
    [
        [[1, 6, LONG[:50], {"part": 0, "more": 1}], [2, 6, LONG[50:], {"part": 1, "more": 0}]],
        [[1, 6, LONG[:50], {"part": 0, "more": 1}], [1, 8, LONG[50:], {"part": 1, "more": 0}]],
        [[1, 6, LONG[:50], {"part": 0, "more": 1}], [1, 6, LONG[50:], {"part": 2, "more": 0}]],
        [[1, 6, LONG[:50], {"part": 0, "more": 2}], [1, 6, LONG[50:], {"part": 1, "more": 0}]],
        [[1, 6, LONG[:50], {"part": 0, "more": 1}], [1, 6, LONG[:50], {"part": 0, "more": 1}]],
        [[1, 6, LONG[:50], {"part": 0, "more": 1}], [1, 1, b"between"], [1, 6, LONG[50:], {"part": 1, "more": 0}]],
    ],
    ids=["channel", "kind", "part", "more", "again", "between"],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, parts: list[list[Any]]) -> None:
    good = [[0, 1, 6, LONG[:50], {"part": 0, "more": 1}], [0, 1, 6, LONG[50:], {"part": 1, "more": 0}]]
    close = [[0, 0, 10, CLOSED]]
    assert [len(read) for read in both(tmp_path, write_segment(KEY, [good, close]))[:2]] == [2, 2]
    theirs, ours, status = both(tmp_path, write_segment(KEY, [[[0, *part] for part in parts], close]))
    assert (theirs, ours, status) == ([], [], "altered")


@pytest.mark.parametrize(
    ("odd", "status"),
    [
        (Odd(version=2), "unknown"),
        (Odd(version=0), "unknown"),
        (Odd(seq=1, type=7), "altered"),
        (Odd(seq=1, type=0), "altered"),
        (Odd(seq=1, flags=8), "altered"),
        (Odd(seq=1, flags=2), "altered"),
        (Odd(seq=1, zero=1), "altered"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "-".join(map(str, asdict(value).values())),
)
def test_what_is_unknown_is_refused(tmp_path: Path, odd: Odd, status: str) -> None:
    if odd.version != 1:
        odd.seq = -1
    theirs, ours, said = both(tmp_path, write_segment(KEY, BLOCKS, odd=odd))
    assert theirs == []
    assert [n for n, _, _ in ours if n >= 2] == []
    assert said == status
