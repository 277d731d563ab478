"""Where the files of one tape lie: ``<directory>/YYYY/MM/DD/<sid>.<segment>.gct``, and ``.keys`` beside them.

Pure. The names are those of format.py, "Files"; reader.name_of reads them back. The day is folders.py's.
"""

from __future__ import annotations

from pathlib import Path

from recorder.errors import FormatError
from recorder.folders import day_directory
from recorder.format import KEYS_SUFFIX, SUFFIX, Header
from recorder.reader import stem_of


def segment_path(directory: Path, header: Header, number: int | None = None) -> Path:
    """Return where the header's segment lies below the directory, or another one of its tape. Raises FormatError."""
    number = header.segment if number is None else number
    try:
        day = day_directory(directory, header.wall0_ns)
    except (ValueError, OverflowError, OSError) as error:
        raise FormatError("header: a time out of range") from error
    return day / f"{stem_of(header)}.{number:03d}{SUFFIX}"


def keys_path(directory: Path, header: Header) -> Path:
    """Return where the .keys file of the header's tape lies below the directory. Raises FormatError."""
    return segment_path(directory, header).with_name(stem_of(header) + KEYS_SUFFIX)
