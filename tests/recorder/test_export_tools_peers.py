"""What others make of exports: psql of the script, asciinema 2.4 of the cast, showreel and ffmpeg of films."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from recorder.export import export_tape
from recorder.export_file import export_to
from recorder.export_media import command as media_command
from recorder.export_options import ExportError, ExportOptions
from recorder.export_sql import statement
from recorder.reader import TapeReader
from tests.peers.postgres import PeerMissing, PostgresServer, need
from tests.recorder.stories import HOSTILE, bad_intentions, one_of_everything
from tests.recorder.tapes import command, open_tape, recorder
from tests.recorder.test_export_sql import DOUBTFUL, PLAIN

pytestmark = [pytest.mark.peer, pytest.mark.timeout(180)]


# -- psql -------------------------------------------------------------------------------------------------


def psql(server: PostgresServer, script: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **server.environment, "LC_ALL": "C.UTF-8"}
    words = [str(server.bin / "psql"), "-X", "-A", "-t", *more, "-f", str(script), "-d", server.conninfo()]
    return subprocess.run(
        words, capture_output=True, text=True, env=environment, timeout=60, check=False, cwd=script.parent
    )


def test_psql_runs_the_script(postgres15: PostgresServer, tmp_path: Path) -> None:
    texts = [
        ("CREATE TEMP TABLE notes (id int, body text)", "CREATE TABLE", []),
        ("INSERT INTO notes VALUES ($1, $2)", "INSERT", ["7", "it's \\ ä \x1b[2J\r\nend"]),
        ("INSERT INTO notes VALUES (8, 'plain'); INSERT INTO notes VALUES (9, '\\! touch evil')", "MULTI", []),
        ("SELECT 1/0", "SELECT", []),
        ("UPDATE notes SET body = upper(body) WHERE id = 8 -- the last", "UPDATE", []),
        (
            "SELECT string_agg(id || '=' || encode(convert_to(body, 'UTF8'), 'hex'), ' ' ORDER BY id) FROM notes",
            "SELECT",
            [],
        ),
    ]

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path))
        for text, verb, values in texts:
            command(tape, text, verb, values=values)
        command(tape, "DROP TABLE notes", "DROP", "deny")
        await tape.close("closed")
        return tape.path

    script = tmp_path / "session.sql"
    export_to(TapeReader(asyncio.run(scenario())), "sql", script)
    ran = psql(postgres15, script)
    expected = {7: "it's \\ ä \x1b[2J\r\nend", 8: "PLAIN", 9: "\\! touch evil"}
    assert " ".join(f"{n}={text.encode().hex()}" for n, text in expected.items()) in ran.stdout
    assert re.findall("ERROR:.*", ran.stderr) == ["ERROR:  division by zero"]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("text", [*PLAIN, *DOUBTFUL, HOSTILE, f"SELECT '{HOSTILE}", "\\q", "\\i /etc/passwd", "\\."])
def test_psql_sends_each_statement_whole_and_goes_on(postgres15: PostgresServer, tmp_path: Path, text: str) -> None:
    """Whatever a statement holds, psql sends it to the server as it is, then comes to the next one."""
    script = tmp_path / "one.sql"
    script.write_text("\\encoding UTF8\n" + statement(text) + "SELECT 'san' || 'e';\n", encoding="utf-8")
    ran = psql(
        postgres15, script, "--echo-hidden", "-v", "ECHO=queries", "-v", "x=INTERPOLATED", "-v", "n=INTERPOLATED"
    )
    assert ran.stdout.endswith("\nsane\n"), (ran.stdout, ran.stderr)
    assert "INTERPOLATED" not in ran.stdout + ran.stderr
    assert "invalid command" not in ran.stderr
    assert "root:" not in ran.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["one.sql"]


def test_psql_survives_bad_intentions(postgres15: PostgresServer, tmp_path: Path) -> None:
    script = tmp_path / "session.sql"
    export_to(TapeReader(bad_intentions(tmp_path / "tapes")), "sql", script)
    with script.open("a") as out:
        out.write("SELECT 'san' || 'e';\n")
    ran = psql(postgres15, script)
    assert ran.stdout.endswith("sane\n")
    assert "invalid command" not in ran.stderr
    assert not Path("/tmp/evil").exists()


# -- asciinema 2.4 ----------------------------------------------------------------------------------------


def asciinema(tmp_path: Path, *arguments: str) -> str:
    """Run it on a terminal of 110x40; return what it wrote there."""
    program = Path(sys.executable).parent / "asciinema"
    if not program.exists():
        need(PeerMissing("asciinema 2.4 is missing: pip install asciinema"))
    leader, follower = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}
    with subprocess.Popen(
        [program, *arguments], stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True
    ) as process:
        os.close(follower)
        seen = b""
        try:
            while select.select([leader], [], [], 60)[0]:
                try:
                    data = os.read(leader, 65536)
                except OSError:  # Linux: the other end of the terminal is closed
                    break
                if not data:
                    break
                seen += data
            assert process.wait(30) == 0, seen
        finally:
            process.kill()
            os.close(leader)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode()).replace("\r", "")


@pytest.mark.parametrize("arguments", [("play", "-i", "0.1", "-s", "4"), ("cat",)])
def test_asciinema_plays_v2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    cast, text = tmp_path / "session.cast", io.StringIO()
    tape = TapeReader(one_of_everything(tmp_path / "tapes"))
    export_to(tape, "asciicast-v2", cast)
    export_tape(tape, "txt", text)
    shown = asciinema(tmp_path, *arguments, str(cast))
    assert text.getvalue() in shown


def test_asciinema_heeds_the_idle_limit_of_the_header(tmp_path: Path) -> None:
    cast = tmp_path / "session.cast"
    export_to(
        TapeReader(one_of_everything(tmp_path / "tapes")), "asciicast-v2", cast, ExportOptions(idle_limit_seconds=0.1)
    )
    assert "-- session closed: user left" in asciinema(
        tmp_path, "play", str(cast)
    )  # 42 s otherwise: over the time limit


# -- pictures and films -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["svg", "gif", "mp4"])
def test_films_are_made(tmp_path: Path, form: str) -> None:
    try:
        media_command(form)
    except ExportError as missing:
        need(PeerMissing(str(missing)))
    out = tmp_path / f"session.{form}"
    done = export_to(
        TapeReader(one_of_everything(tmp_path / "tapes")), form, out, ExportOptions(idle_limit_seconds=0.2)
    )
    data = out.read_bytes()
    assert done.size_bytes == len(data) > 1000
    assert out.stat().st_mode & 0o777 == 0o600
    match form:
        case "svg":
            text = re.sub(r"<[^>]*>", "", data.decode())
            assert "not forwarded" in text
            assert not re.findall(r'(?:href|src)="(?!#|data:)', data.decode())
        case "gif":
            assert data.startswith(b"GIF89a")
            assert data.endswith(b";")
        case _:
            ran = subprocess.run(
                ["ffprobe", "-v", "error", "-show_entries", "format=duration:stream=codec_type", str(out)],
                capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            assert "codec_type=video" in ran.stdout
