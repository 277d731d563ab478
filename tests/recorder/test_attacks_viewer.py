"""Attacks on the auditor: what a user or a target says must not act on terminal, browser, player or index."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import main
from recorder.cli import SessionFilter, find_tape, list_sessions
from recorder.export import export_tape
from recorder.format import SUFFIX, BlockType
from recorder.index import Index
from recorder.reader import TapeReader
from recorder.tape import ERR, GATE, OUT, USER, Kind
from tests.recorder.tapes import open_tape, pack, recorder
from tests.recorder.test_attacks_files import SID, Forger

EVIL = (
    '\x1b]52;c;cm0gLXJmIC8=\x07\x1b]0;owned\x07\x1bP$q"p\x1b\\\x1b[6n\x1b[c\x1b[21t\x1b[?1000h\x9b5n\x1b_x\x1b\\'
    "\u202e\u2066\r\nverified  all\x00\x7f</script><script>alert(1)</script><!--'\"`${x}"
)
# Queries, clipboard, titles, device control strings, mouse: whatever makes a terminal do or answer something.
HARM = re.compile("\x1b[\\]P_^Xk]|\x1b\\[[0-9;?>=]*[cntq]|\x1b\\[\\?100[0-6]h|[\x80-\x9f\x05\x07]|\u202e|\u2066")


def hostile(tapes: Path, tty: Any = None) -> Path:
    """A tape on which every text is an attack."""

    async def scenario() -> Path:
        of = recorder(tapes)
        more: dict[str, Any] = {"more": {"tty": tty}} if tty is not None else {"more": {"remark": EVIL}}
        tape = open_tape(
            of, identity={"subject": EVIL, "agents": [EVIL], "groups": [EVIL]}, target=EVIL, protocol=EVIL, run=EVIL,
            policy_revision=EVIL, **more
        )  # fmt: skip
        tape.append(GATE, Kind.INTENT, pack({"text": EVIL}))
        n = tape.append(
            USER, Kind.COMMAND, pack({"verb": EVIL, "kind": EVIL, "text": EVIL, "objects": [EVIL], "values": [EVIL]})
        )
        tape.append(
            GATE, Kind.APPROVAL, pack({"command": n, "id": EVIL, "state": "pending", "rule": EVIL, "approvers": [EVIL]})
        )
        tape.append(
            GATE, Kind.APPROVAL, pack({"command": n, "id": EVIL, "state": "approved", "by": EVIL, "reason": EVIL})
        )
        tape.append(
            GATE, Kind.VERDICT, pack({"command": n, "verdict": "deny", "rule": EVIL, "reason": EVIL, "masks": [EVIL]})
        )
        error = {"severity": EVIL, "code": EVIL, "message": EVIL, "detail": EVIL, "hint": EVIL}
        result = {"command": n, "tag": EVIL, "columns": [EVIL], "rows": [[EVIL]], "count": 1, "bytes": 1}
        tape.append(GATE, Kind.RESULT, pack({**result, "error": error}))
        tape.append(GATE, Kind.MASKMAP, pack({"command": n, "fields": [[EVIL, 0, EVIL]]}))
        tape.append(GATE, Kind.MARK, pack({"label": EVIL, "text": EVIL}))
        tape.append(OUT, Kind.WIRE, EVIL.encode())
        tape.append(ERR, Kind.WIRE, EVIL.encode("utf-8")[:-3] + b"\xff\xfe")
        for size in ([9999, 9999], [0, 0], [-1, 5], [2**32 - 1, 2**32 - 1], ["80", "24"], [EVIL, EVIL], [1]):
            tape.append(USER, Kind.RESIZE, pack(size))
        await tape.close("failed", EVIL)
        return tape.path

    return asyncio.run(scenario())


@pytest.mark.parametrize("tty", [None, [80, 24]])
@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", "--plain"], ["sessions", "show"], ["export", "--format", "txt"], ["export", "--format", "har"],
        ["export", "--format", "asciicast-v2"], ["export", "--format", "jsonl"], ["sessions", "show", "--json"],
        ["export", "--format", "sql"],
    ],
)  # fmt: skip
def test_nothing_acts_on_the_auditors_terminal(
    tmp_path: Path, tty: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = hostile(tmp_path, tty)
    name, *rest = arguments
    where = [rest[0], str(path), *rest[1:]] if name == "sessions" else [str(path), *rest]
    assert main([name, *where]) in (0, 1)
    said = capsys.readouterr()
    # A terminal's own bytes may hold bidirectional characters: they are shown as they were then.
    found = HARM.search(
        (said.out + said.err).replace("\u202e", "").replace("\u2066", "") if tty else said.out + said.err
    )
    assert found is None, found
    assert "internal error" not in said.err


@pytest.mark.parametrize("tty", [None, [80, 24]])
def test_nothing_acts_in_the_auditors_browser(tmp_path: Path, tty: Any) -> None:
    out = io.StringIO()
    export_tape(TapeReader(hostile(tmp_path, tty)), "html", out)
    page = out.getvalue()
    assert "<script>alert" not in page and "connect-src" not in page and "default-src &#x27;none&#x27;" in page
    assert page.lower().count("<script") == 3


@pytest.mark.parametrize(
    ("tty", "shown"),
    [([9999, 9999], (80, 24)), ([2**32 - 1, 1], (80, 24)), ([0, 0], (80, 24)), ([2000, 500], (2000, 500)),
     ([2001, 500], (80, 24)), (["a", "b"], (80, 24)), ([200, 50], (200, 50))],
)  # fmt: skip
def test_a_terminal_of_any_size(tmp_path: Path, tty: Any, shown: tuple[int, int]) -> None:
    """The user says how large it is; a player that makes room for a hundred million cells shows nothing any more."""
    out = io.StringIO()
    export_tape(TapeReader(hostile(tmp_path, tty)), "asciicast-v2", out)
    header, *events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (header["width"], header["height"]) == shown
    assert [event for event in events if event[1] == "r"] == []


def test_times_at_the_end_of_all_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody waits for a record that is five hundred years away, and no date is beyond what can be written."""
    path = tmp_path / f"{SID}.000{SUFFIX}"
    forger = Forger(path, wall0_ns=2**63 - 1)
    record = [0, 2**63 // 1000, 2, int(Kind.WIRE), b"x"]
    forger.block(BlockType.DATA, pack(record), 1)
    forger.done()
    for arguments in (["replay", str(path), "--plain"], ["sessions", "show", str(path)],
                      ["export", str(path), "--format", "html"],
                      ["export", str(path), "--format", "asciicast-v3"]):  # fmt: skip
        assert main(arguments) in (0, 1)
    assert "internal error" not in capsys.readouterr().err


# -- the index and the list ---------------------------------------------------------------------------------------


def test_hostile_words_in_the_index(tmp_path: Path) -> None:
    path = hostile(tmp_path)
    with_trouble = path.with_name(f"{SID}.000{SUFFIX}")
    Forger(with_trouble, segment=2**63, first_record=2**64 - 1, wall0_ns=2**64 - 1, identity=[1], more=5).done()
    done = Index.update(tmp_path)
    assert not done.busy
    with Index(tmp_path) as index:
        assert index.counts()[1] == 1
        stored = index.connection.execute("SELECT subject, target FROM sessions ORDER BY sid DESC").fetchall()
    assert len(stored) == 2


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder", "stray"])
def test_what_is_no_tape_among_the_tapes(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = hostile(tmp_path)
    other = path.with_name(f"{SID}.000{SUFFIX}")
    match kind:
        case "pipe":
            os.mkfifo(other)
        case "device":
            other.symlink_to("/dev/zero")
        case "loop":
            other.symlink_to(other.name)
        case "folder":
            other.mkdir()
        case _:
            os.mkfifo(path.with_name(f"{'U' * 26}.000{SUFFIX}"))
    rows = list_sessions(tmp_path, SessionFilter())
    assert [row for row in rows if "error" not in row and row["path"] == str(path)]
    Index.update(tmp_path)
    with Index(tmp_path) as index:
        assert index.counts()[1] == 1
    for arguments in (["replay", str(other), "--plain"], ["sessions", "show", str(other)]):
        if kind != "stray":
            assert main(arguments) == 1
    assert "internal error" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../*", "*", "[0-9]", "01JD8Z7Q/../..", "01JD8Z7Q\0", "0" * 5000, "..", "?"])
def test_names_of_sessions_lead_nowhere(tmp_path: Path, name: str) -> None:
    hostile(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError, OSError)):
        find_tape(tmp_path, name)
