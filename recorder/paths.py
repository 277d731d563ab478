"""Where a tape's files lie: ``<directory>/YYYY/MM/DD/<sid>.<segment>.gct``, by the UTC day on which the session began.

Pure. The names are those of format.py, "Files"; reader.name_of reads them back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from recorder.errors import FormatError
from recorder.format import SUFFIX, Header

KEYS_SUFFIX: Final = ".keys"


def day_directory(directory: Path, wall0_ns: int) -> Path:
    """Return the directory of the tapes that began on that day. Raises ValueError for an instant beyond year 9999."""
    try:
        day = datetime.fromtimestamp(wall0_ns / 1e9, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError("a time out of range") from error
    return directory / f"{day:%Y}" / f"{day:%m}" / f"{day:%d}"


def stem_of(sid: str, track: str) -> str:
    """How the names of a tape's files begin."""
    return sid if track == "main" else f"{sid}.{track}"


def segment_path(directory: Path, header: Header, number: int | None = None) -> Path:
    """Return where the header's segment lies below the directory, or another one of its tape. Raises FormatError."""
    stem = stem_of(header.sid, str(header.map_.get("track")))
    number = header.segment if number is None else number
    try:
        return day_directory(directory, header.wall0_ns) / f"{stem}.{number:03d}{SUFFIX}"
    except ValueError as error:
        raise FormatError(f"header: {error}") from error


def keys_path(directory: Path, header: Header) -> Path:
    """Return where the .keys file of the header's tape lies below the directory. Raises FormatError."""
    path = segment_path(directory, header)
    return path.with_name(stem_of(header.sid, str(header.map_.get("track"))) + KEYS_SUFFIX)
