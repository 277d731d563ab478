"""Pictures and films of a session, by programs that need not be there: the cast is ours, the rendering theirs.

    gif   agg (github.com/asciinema/agg) if it is in PATH, else showreel, which takes ffmpeg
    svg   showreel       mp4   showreel with ffmpeg          showreel comes with: pip install 'gatecast[media]'

They get an asciicast v2 in a directory that only we can read, which is gone afterwards; pauses are cut in it. What a
program writes is checked for being such a file at all. Left out: sound, themes, fonts; sessions over LENGTH_LIMIT.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from recorder.cast import CastV2
from recorder.escape import visible
from recorder.export_cast import Narrator
from recorder.export_options import ExportError
from recorder.export_source import IDLE_SECONDS, IdleClock, Source

LENGTH_LIMIT: Final = 600.0  # seconds after the pauses are cut: some 100 MB of GIF; nobody watches more
CAST_LIMIT: Final = 5 * 1000 * 1000  # bytes; showreel takes some 10 s a MB (recorder note, section 9)
RENDER_SECONDS_LIMIT: Final = 1800.0
LAST_SECONDS: Final = 2.0  # the last screen stands so long
_MAGIC: Final = {"gif": (0, b"GIF8"), "svg": (0, b"<"), "mp4": (4, b"ftyp")}
_INSTALL: Final = "install it: pip install 'gatecast[media]' (showreel)"


def render(source: Source, form: str, destination: Path) -> None:
    """Make the picture or film. Raises ExportError if a program is missing or fails, or the session is too long."""
    arguments = command(form)
    with TemporaryDirectory(prefix="gatecast-export-") as folder:
        cast, made = Path(folder) / "session.cast", Path(folder) / f"session.{form}"
        _write_cast(source, cast)
        whole = [{"CAST": str(cast), "OUT": str(made)}.get(word, word) for word in arguments]
        try:
            ran = subprocess.run(  # noqa: S603  # a program found by its fixed name, no shell, our own file names
                whole, capture_output=True, timeout=RENDER_SECONDS_LIMIT, stdin=subprocess.DEVNULL, check=False
            )
        except subprocess.TimeoutExpired:
            raise ExportError(f"{Path(whole[0]).name} took over {RENDER_SECONDS_LIMIT:.0f} s; export a part") from None
        at, magic = _MAGIC[form]
        if ran.returncode or not made.is_file() or made.read_bytes()[at : at + len(magic)] != magic:
            lines = ran.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {ran.returncode}"]
            raise ExportError(f"{Path(whole[0]).name} made no {form}: {visible(lines[-1])[:300]}")
        shutil.copyfile(made, destination)


def command(form: str) -> Sequence[str]:
    """Return the program and its arguments, with CAST and OUT to be filled in. Raises ExportError: what to install."""
    agg = shutil.which("agg")
    if form == "gif" and agg is not None:
        return [agg, "--quiet", "CAST", "OUT"]
    showreel = _showreel()
    if showreel is None:
        other = ", or agg from github.com/asciinema/agg" if form == "gif" else ""
        raise ExportError(f"{form} takes a program that is not here; {_INSTALL}{other}")
    if form != "svg" and shutil.which("ffmpeg") is None:
        raise ExportError(f"{form} takes ffmpeg, which is not in PATH; install it (Debian: apt-get install ffmpeg)")
    return [showreel, {"gif": "gif", "svg": "svg", "mp4": "video"}[form], "--quiet", "CAST", "-o", "OUT"]


def _showreel() -> str | None:
    """Find it in PATH, or beside our own interpreter, where pip puts it."""
    beside = Path(sys.executable).parent / "showreel"
    return shutil.which("showreel") or (str(beside) if os.access(beside, os.X_OK) else None)


def _write_cast(source: Source, path: Path) -> None:
    options = source.options
    idle = options.idle_limit_seconds
    clock = IdleClock(options.start_ns, IDLE_SECONDS if idle is None else idle)
    narrator = Narrator(source, clock)
    encoder = CastV2()
    columns, rows = source.size
    size = 0
    with path.open("w", encoding="utf-8") as out:

        def write(line: str) -> None:
            nonlocal size
            size += out.write(line)
            if size > CAST_LIMIT:
                raise ExportError(f"the cast is over {CAST_LIMIT // 1_000_000} MB, {_SHORTER}")

        write(encoder.header(columns, rows, source.wall_ns // 1_000_000_000, source.title))
        last_ns = 0
        pieces = narrator.opening()
        for record in source.records():
            pieces += narrator.feed(record)
            for piece in pieces:
                last_ns = max(last_ns, piece.t_ns)
                if last_ns > LENGTH_LIMIT * 1e9:
                    raise ExportError(f"the session is over {LENGTH_LIMIT / 60:.0f} minutes long, {_SHORTER}")
                if piece.code in ("o", "r", "m"):
                    write(encoder.event(piece))
            pieces = []
        for piece in pieces:
            write(encoder.event(piece))
        # An event at the end, or the last screen would be gone at once.
        write(encoder.event(narrator.pause(last_ns + int(LAST_SECONDS * 1e9))))


_SHORTER: Final = "too long for a film: export a part with --from and --to, or cut pauses with --idle-limit"
