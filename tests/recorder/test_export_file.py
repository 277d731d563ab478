"""Exports as files and on the command line: whole or not there, private, over nobody's file, honest about the end."""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import main
from recorder.cipher import AuditorKey
from recorder.export import export_tape
from recorder.export_file import export_to
from recorder.export_options import ExportError, ExportOptions
from recorder.progress import ProgressLine
from recorder.reader import TapeReader
from tests.recorder.stories import one_of_everything, terminal_session, unsealed
from tests.recorder.tapes import Clock, command, open_tape, recorder


@pytest.fixture
def story(tmp_path: Path) -> Path:
    return one_of_everything(tmp_path / "tapes")


def test_a_file_is_private_and_whole(story: Path, tmp_path: Path) -> None:
    out = tmp_path / "session.cast"
    done = export_to(TapeReader(story), "asciicast-v3", out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert done.size_bytes == out.stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["session.cast"]


def test_no_file_is_replaced_unless_told(story: Path, tmp_path: Path) -> None:
    out = tmp_path / "session.txt"
    out.write_text("mine")
    with pytest.raises(ExportError, match=r"session\.txt exists; --force replaces it"):
        export_to(TapeReader(story), "txt", out)
    assert out.read_text() == "mine"
    export_to(TapeReader(story), "txt", out, force=True)
    assert out.read_text().startswith("REC ")
    link = tmp_path / "dangling"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="exists"):
        export_to(TapeReader(story), "txt", link)


def test_a_file_that_appears_meanwhile_stays(story: Path, tmp_path: Path) -> None:
    out = tmp_path / "session.txt"

    def meanwhile(done: int, total: int) -> None:
        out.write_text("somebody else's")

    with pytest.raises(ExportError, match="exists"):
        export_to(TapeReader(story), "txt", out, progress=meanwhile)
    assert out.read_text() == "somebody else's"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["session.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_export_leaves_nothing(story: Path, tmp_path: Path, error: type[BaseException]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 3:
            raise error

    with pytest.raises(error):
        export_to(TapeReader(story), "jsonl", tmp_path / "session.jsonl", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["tapes"]


def test_what_is_no_file_is_written_to(story: Path, tmp_path: Path) -> None:
    export_to(TapeReader(story), "txt", Path(os.devnull))
    assert not Path(os.devnull).is_file()


def test_media_go_to_files_only(story: Path) -> None:
    with pytest.raises(ExportError, match=r"name it with -o session\.gif"):
        export_to(TapeReader(story), "gif", None)


def export(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> tuple[int, bytes, str]:
    code = main(["export", *arguments])
    out, err = capfdbinary.readouterr()
    return code, out, err.decode()


def test_the_command_writes_to_standard_output(story: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    for form in ("asciicast-v2", "asciicast-v3", "txt", "jsonl", "html", "sql", "raw"):
        code, out, err = export(capfdbinary, str(story), "--format", form)
        assert (code, err) == (0, ""), form
        assert out, form


def test_an_unsealed_tape_is_exported_and_said_to_be(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = unsealed(tmp_path)
    for form in ("asciicast-v2", "asciicast-v3", "txt", "jsonl", "html", "sql"):
        code, out, err = export(capfdbinary, str(path), "--format", form)
        assert code == 0
        assert err == f"gatecast: {path.name[:26]} is not sealed: the end may be missing\n"
        assert b"not sealed: the end may be missing" in out, form
        assert b"SELECT" in out, form
    title = json.loads(export(capfdbinary, str(path), "--format", "asciicast-v3")[1].splitlines()[0])["title"]
    assert title.endswith("(not sealed: the end may be missing)")


def test_a_span_of_a_session(story: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    # The second command begins at 1.0127 s, its approval comes at 42.0127 s.
    for start in ("1s", "0:01", "2026-09-21T14:13:21Z"):
        code, out, _ = export(capfdbinary, str(story), "--format", "txt", "--from", start, "--to", "30s")
        assert code == 0
        assert b"UPDATE orders" in out, start
        assert b"[hold]" in out
        assert b"SELECT id" not in out
        assert b"[approved]" not in out
    _, out, _ = export(capfdbinary, str(story), "--format", "asciicast-v3", "--from", "1s")
    header, *events = [json.loads(line) for line in out.splitlines()]
    assert header["timestamp"] == 1_790_000_001
    assert next(event[2] for event in events if event[1] == "m") == "Q2 UPDATE"
    assert "; 1 command before" in "".join(event[2] for event in events)
    assert sum(event[0] for event in events) == pytest.approx(41.016, abs=0.002)
    _, out, _ = export(capfdbinary, str(story), "--format", "jsonl", "--from", "1s", "--to", "2s")
    first, *records = [json.loads(line) for line in out.splitlines()]
    assert (first["from_ns"], first["to_ns"]) == (1_000_000_000, 2_000_000_000)
    assert [record["kind"] for record in records] == ["COMMAND", "APPROVAL"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--format", "txt", "--from", "5s", "--to", "4s"], "--to is before --from"),
        (["--format", "txt", "--from", "soon"], "'soon' is no time"),
        (["--format", "txt", "--width", "5"], "--width is 20 to"),
        (["--format", "gif"], "name it with -o session.gif"),
    ],
)
def test_wrong_arguments(
    story: Path, capfdbinary: pytest.CaptureFixture[bytes], arguments: list[str], text: str
) -> None:
    code, out, err = export(capfdbinary, str(story), *arguments)
    assert (code, out) == (1, b"")
    assert text in err
    assert err.count("\n") == 1


def test_idle_limit_and_width_reach_the_cast(story: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    _, out, _ = export(capfdbinary, str(story), "--format", "asciicast-v2", "--idle-limit", "2s", "--width", "60")
    header = json.loads(out.splitlines()[0])
    assert header["idle_time_limit"] == 2
    assert header["width"] == 60
    assert "env" not in header


RAW = {
    "user": b"typed password",
    "gate": b"",
    "out": b"\x1b[1mroot#\x1b[0m ls\r\n\xe2\x82\xac \x1b]52;c;evil\x07done\xff\r\n",
    "err": b"oops\r\n",
}


def test_raw_is_what_passed(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = terminal_session(tmp_path)
    for direction, expected in {**RAW, "target": RAW["out"] + RAW["err"]}.items():
        _, out, _ = export(capfdbinary, str(path), "--format", "raw", "--direction", direction)
        assert out == expected, direction
    _, framed, _ = export(capfdbinary, str(path), "--format", "raw")
    frames: list[tuple[int, int, bytes]] = []
    at = 0
    while at < len(framed):
        t_ns, channel, size = struct.unpack_from("<QBI", framed, at)
        frames.append((t_ns, channel, framed[at + 13 : at + 13 + size]))
        at += 13 + size
    assert [(channel, t_ns) for t_ns, channel, _ in frames] == [
        (2, 0),
        (2, 500_000_000),
        (3, 500_000_000),
        (1, 500_000_000),
    ]
    assert b"".join(data for _, channel, data in frames if channel == 2) == RAW["out"]


def test_keys_and_raw_bytes_only_on_request(tmp_path: Path) -> None:
    path = terminal_session(tmp_path)

    def events(**how: Any) -> list[list[Any]]:
        out = io.StringIO()
        export_tape(TapeReader(path), "asciicast-v2", out, ExportOptions(**how))
        return [json.loads(line) for line in out.getvalue().splitlines()[1:]]

    def text(found: list[list[Any]], code: str) -> str:
        return "".join(event[2] for event in found if event[1] == code)

    assert text(events(), "i") == ""
    assert "\x1b]52" not in text(events(), "o")
    assert text(events(keys=True), "i") == "typed password"
    assert "\x1b]52;c;evil\x07done" in text(events(raw=True), "o")
    assert text(events(), "r") == "132x43"  # and not -1x0


def test_a_missing_program_says_what_to_install(
    story: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for form in ("gif", "svg", "mp4"):
        code, _, err = export(capfdbinary, str(story), "--format", form, "-o", str(tmp_path / f"x.{form}"))
        assert code == 1
        assert "pip install 'gatecast[media]'" in err
    assert not list(tmp_path.glob("x.*"))


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_programs_are_given_a_cast_and_checked(story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    program(programs / "agg", f'cp "$2" {tmp_path}/seen.cast; printf GIF89a > "$3"')
    export_to(TapeReader(story), "gif", tmp_path / "session.gif")
    assert (tmp_path / "session.gif").read_bytes() == b"GIF89a"
    assert stat.S_IMODE((tmp_path / "session.gif").stat().st_mode) == 0o600
    seen = [json.loads(line) for line in (tmp_path / "seen.cast").read_text().splitlines()]
    assert seen[0]["version"] == 2
    assert seen[-1][0] == pytest.approx(1.0127 + 3 + 0.0031 + 2, abs=0.001)  # 41 s of waiting are cut to 3
    program(programs / "agg", 'echo "no such font" >&2; exit 1')
    with pytest.raises(ExportError, match="agg made no gif: no such font"):
        export_to(TapeReader(story), "gif", tmp_path / "other.gif")
    program(programs / "agg", 'echo "hello" > "$3"')
    with pytest.raises(ExportError, match="agg made no gif"):
        export_to(TapeReader(story), "gif", tmp_path / "other.gif")
    assert not (tmp_path / "other.gif").exists()


def test_an_encrypted_tape_takes_its_key(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    identity = tmp_path / "auditor.key"
    auditor = AuditorKey.generate(identity)

    async def scenario() -> Path:
        of = recorder(tmp_path / "tapes")
        tape = open_tape(of, recipients=[auditor.recipient])
        command(tape, "SELECT 'the secret plan'")
        await tape.close("closed")
        of.close()
        return tape.path

    path = asyncio.run(scenario())
    for form in ("html", "jsonl", "asciicast-v3", "sql"):
        out = tmp_path / f"session.{form}"
        code, _, err = export(capfdbinary, str(path), "--format", form, "-o", str(out))
        assert code == 1
        assert "--identity" in err
        assert not out.exists()
        code, _, err = export(capfdbinary, str(path), "--format", form, "-o", str(out), "--identity", str(identity))
        assert (code, err) == (0, "")
        assert b"the secret plan" in out.read_bytes()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_terminals_after_a_while() -> None:
    clock = Clock()
    out = Terminal()
    with ProgressLine("export txt", out, lambda: clock.ns / 1e9) as progress:
        progress(1, 100)
        assert out.getvalue() == ""
        clock.pass_ms(2000)
        progress(25, 100)
        assert out.getvalue() == "\r\x1b[Kexport txt [######                  ]  25 %  6 s left"
        progress(26, 100)
        assert "26 %" not in out.getvalue()  # not so often
        clock.pass_ms(300)
        progress(50, 100)
        assert "50 %" in out.getvalue()
    assert out.getvalue().endswith("\r\x1b[K")


def test_progress_is_silent_in_pipes() -> None:
    clock = Clock()
    out = io.StringIO()
    with ProgressLine("x", out, lambda: clock.ns / 1e9) as progress:
        clock.pass_ms(60_000)
        progress(50, 100)
    assert out.getvalue() == ""


def test_progress_reaches_the_end(story: Path) -> None:
    said: list[tuple[int, int]] = []
    tape = TapeReader(story)
    export_tape(tape, "txt", io.StringIO(), progress=lambda done, total: said.append((done, total)))
    assert said[-1] == (tape.next_record, tape.next_record)
    assert [done for done, _ in said] == sorted(done for done, _ in said)
