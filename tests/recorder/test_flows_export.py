"""Exports of a session of several streams: casts of its terminal, one stream's exact bytes, text, records, a page."""

from __future__ import annotations

import hashlib
import io
import json
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recorder.export import export_tape
from recorder.export_file import export_to
from recorder.export_options import ExportError, ExportOptions, add_arguments, from_arguments
from recorder.format import ERR, OUT, USER
from recorder.reader import TapeReader
from tests.recorder import ssh_tapes
from tests.recorder.ssh_tapes import Story, write


def exported(path: Path, form: str, **options: Any) -> str:
    out = io.StringIO()
    export_tape(TapeReader(path), form, out, ExportOptions(**options))
    return out.getvalue()


def events(path: Path, form: str = "asciicast-v2", **options: Any) -> tuple[dict[str, Any], list[list[Any]]]:
    head, *lines = exported(path, form, **options).splitlines()
    return json.loads(head), [json.loads(line) for line in lines]


def tape(tmp_path: Path, tell: Callable[[Story], None]) -> Path:
    return write(tmp_path, tell)[0]


# -- bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stream", "channel"), [("out", OUT), ("err", ERR), ("user", USER)])
def test_a_streams_bytes_are_exact(tmp_path: Path, stream: str, channel: int) -> None:
    printed = bytes(range(256)) * 2000  # more than a record holds

    def tell(story: Story) -> None:
        for number in (0, 1):
            story.command("exec", f"run {number}", flow=number)
        for at in range(0, len(printed), 100_000):
            story.wire(1, channel, printed[at : at + 100_000])
            story.wire(0, channel, b"of another")
        story.message()
        story.wire(1, channel, printed)

    path, story = write(tmp_path, tell)
    parser = ArgumentParser()
    add_arguments(parser)
    said = parser.parse_args(["--format", "bytes", "--flow", "1", "--stream", stream])
    done = export_to(TapeReader(path), "bytes", tmp_path / "bytes", from_arguments(said, 0))
    found = (tmp_path / "bytes").read_bytes()
    assert hashlib.sha256(found).digest() == hashlib.sha256(story.out[1, channel]).digest()
    assert done.size_bytes == len(story.out[1, channel]) == 2 * len(printed)


def test_bytes_are_of_one_stream_and_of_what_it_printed_unless_told(tmp_path: Path) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ExportError, match="--flow"):
        from_arguments(parser.parse_args(["--format", "bytes"]), 0)
    with pytest.raises(ExportError, match="from 0"):
        from_arguments(parser.parse_args(["--format", "bytes", "--flow", "-1"]), 0)
    assert from_arguments(parser.parse_args(["--format", "bytes", "--flow", "0"]), 0).direction == "out"
    assert from_arguments(parser.parse_args(["--format", "raw"]), 0).direction == "all"
    path = tape(tmp_path, ssh_tapes.execs)
    with pytest.raises(ExportError, match="there is no flow 7"):
        export_to(TapeReader(path), "bytes", tmp_path / "bytes", ExportOptions(flow=7))


# -- casts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["asciicast-v2", "asciicast-v3"])
def test_a_cast_is_the_terminal(tmp_path: Path, form: str) -> None:
    path, story = write(tmp_path, ssh_tapes.a_shell)
    head, found = events(path, form)
    assert (head.get("width"), head.get("height")) == (80, 24) or head["term"] == {"cols": 80, "rows": 24}
    shown = "".join(text for _, code, text in found if code == "o")
    assert story.out[0, OUT].decode() in shown.replace("\x1b[2m[exit", "")
    assert [text for _, code, text in found if code == "r"] == ["80x24", "100x30"]
    markers = [text for _, code, text in found if code == "m"]
    assert "Q4 ls /srv" in markers and "DENY Q5" in markers
    assert [text for _, code, text in found if code == "i"][2:] == ["ls /srv\r\n", "rm -rf /\r\n", "exit\r\n"]


def test_with_keys_a_cast_has_them_one_by_one(tmp_path: Path) -> None:
    path, story = write(tmp_path, ssh_tapes.a_shell)
    _, found = events(path, keys=True)
    typed = [text for _, code, text in found if code == "i"]
    assert "".join(typed[2:]) == story.out[0, USER].decode()


def test_a_cast_of_one_stream_has_that_alone(tmp_path: Path) -> None:
    path = tape(tmp_path, ssh_tapes.two_terminals)
    _, found = events(path, flow=1)
    shown = "".join(text for _, code, text in found if code == "o")
    assert "echo one" in shown and "echo more" in shown and "zero" not in shown
    assert [text for _, code, text in found if code == "m"][1] == "Q5 shell", "numbered as in the whole session"


# -- text, records, a page --------------------------------------------------------------------------------


def test_text_has_all_streams_by_turns(tmp_path: Path) -> None:
    path = tape(tmp_path, ssh_tapes.two_terminals)
    text = exported(path, "txt")
    assert "\x1b" not in text
    assert text.index("echo zero") < text.index("-- Q5 flow 1: shell") < text.index("echo one")
    alone = exported(path, "txt", flow=0)
    assert "echo zero" in alone and "echo one" not in alone


def test_text_from_the_middle_knows_what_the_streams_are(tmp_path: Path) -> None:
    def tell(story: Story) -> None:
        story.shell(0)
        n = story.command("exec", "git-upload-pack 'app'", "transfer", flow=1)
        story.clock.pass_ms(10_000)
        story.wire(0, OUT, b"\x1b[31mred\x1b[0m\r\n")
        story.wire(1, OUT, b"PACK of what is no text")
        story.result(n, "exit 0", flow=1, exit=0, sent=100, bytes=2048)

    path = tape(tmp_path, tell)
    text = exported(path, "txt", start_ns=5_000_000_000)
    assert "red" in text and "\x1b" not in text and "PACK" not in text
    assert "[exit 0, 10.00 s, 100 B up, 2.0 KiB down]" in text
    _, found = events(path, start_ns=5_000_000_000)
    assert any("\x1b[31mred" in text for _, code, text in found if code == "o"), "a terminal, as it was"


def test_records_say_their_flow(tmp_path: Path) -> None:
    path = tape(tmp_path, ssh_tapes.execs)
    lines = [json.loads(line) for line in exported(path, "jsonl").splitlines()]
    assert lines[0]["flow"] is None
    wire = [line for line in lines[1:] if line["kind"] == "WIRE"]
    assert [line["flow"] for line in wire] == [0, 1, 1, 2, 0, 1, 2]
    only = [json.loads(line) for line in exported(path, "jsonl", flow=2).splitlines()]
    assert only[0]["flow"] == 2
    assert [line["kind"] for line in only[1:]] == ["COMMAND", "VERDICT", "WIRE", "WIRE", "RESULT", "CLOSE"]
    results = [line["payload"] for line in lines if line.get("kind") == "RESULT"]
    assert results[-1]["signal"] == "TERM"


def test_the_page_lists_transfers_with_their_hashes(tmp_path: Path) -> None:
    page = exported(tape(tmp_path, ssh_tapes.sftp), "html")
    assert f"upload 12.4 MiB, sha256 {ssh_tapes.SHA256}" in page
    assert "download 4.0 KiB, not in order, not complete" in page
    assert 'data-outcome="deny"' in page


@pytest.mark.parametrize("form", ["sql", "har"])
def test_what_makes_no_sense_is_refused(tmp_path: Path, form: str) -> None:
    with pytest.raises(ExportError):
        exported(tape(tmp_path, ssh_tapes.execs), form)
