"""Writing an export where it belongs: a file that is whole or not there, or a stream.

A file is made beside its place under another name, with mode 0600 (a session is nobody else's business), synced, and
put in its place in one step; an existing one stays unless force. What is no ordinary file (/dev/stdout, a pipe) is
written to as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, Final

from recorder.export import export_lines
from recorder.export_options import MEDIA_FORMATS, ExportError, ExportOptions
from recorder.export_source import Progress, Source
from recorder.reader import TapeReader

MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. remark: what must be said about the tape's end, "" of one that is sealed and whole."""

    sid: str
    format: str
    path: str
    size_bytes: int
    remark: str


def export_to(
    tape: TapeReader,
    form: str,
    destination: Path | None,
    options: ExportOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write the export to a file, or to standard output (None). Raises ExportError, FormatError, OSError."""
    source = Source(tape, options, progress)
    if form in MEDIA_FORMATS:
        from recorder.export_media import render

        if destination is None:
            raise ExportError(f"{form} goes to a file: name it with -o session.{form}")
        with _placed(destination, force) as (partial, out):
            out.close()
            render(source, form, partial)
            size = partial.stat().st_size
    elif destination is None:
        size = _write(source, form, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    elif destination.exists() and not destination.is_file():
        with destination.open("wb") as device:
            size = _write(source, form, device)
    else:
        with _placed(destination, force) as (_, out):
            size = _write(source, form, out)
    return Exported(tape.header.sid, form, "" if destination is None else str(destination), size, source.remark)


def _write(source: Source, form: str, out: BinaryIO) -> int:
    size = 0
    for piece in _pieces(source, form):
        size += len(piece)
        out.write(piece)
    return size


def _pieces(source: Source, form: str) -> Iterator[bytes]:
    if form in ("raw", "bytes"):
        from recorder.export_raw import raw_pieces

        return raw_pieces(source)
    return (line.encode("utf-8", "backslashreplace") for line in export_lines(source, form))


@contextmanager
def _placed(destination: Path, force: bool) -> Iterator[tuple[Path, BinaryIO]]:
    """Give a new file beside the destination; put it there if all went well, remove it if not."""
    if not force and os.path.lexists(destination):
        raise ExportError(f"{destination} exists; --force replaces it")
    partial = destination.with_name(f".{destination.name}.{token_hex(4)}.part")
    out = os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE), "wb", 1 << 20)
    try:
        yield partial, out
        out.close()
        _sync(partial)
        if force:
            partial.replace(destination)
        else:
            try:
                os.link(partial, destination)  # fails if somebody was quicker, where a rename would replace
            except FileExistsError:
                raise ExportError(f"{destination} exists; --force replaces it") from None
            except OSError:  # a file system without links
                partial.replace(destination)
    finally:
        with suppress(OSError):
            out.close()
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, MODE)  # a program that made the file may have thought otherwise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
