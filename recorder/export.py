"""Exports of a tape: asciicast v2 and v3 (the transcript as a cast), txt (the transcript alone), jsonl (every record).

Memory is constant: one record at a time. jsonl loses nothing: WIRE is base64, with its text beside it where it is
UTF-8; maps are JSON, bytes in them base64 under "base64".
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgpack

from recorder.cast import CastV2, CastV3, Encoder
from recorder.format import Kind, Record
from recorder.reader import TapeReader
from recorder.transcript import Transcript

COLUMNS: Final = 110  # recorder note, section 9: 100 to 120 read well
ROWS: Final = 32
FORMATS: Final = ("asciicast-v2", "asciicast-v3", "txt", "jsonl")
_CHANNELS: Final = ("gate", "user", "out", "err")


def export_tape(tape: TapeReader, form: str, out: TextIO) -> int:
    """Write the tape in one of FORMATS; return the number of lines, or pieces (txt). Raises ValueError."""
    match form:
        case "asciicast-v2":
            lines = _cast(tape, CastV2())
        case "asciicast-v3":
            lines = _cast(tape, CastV3())
        case "txt":
            lines = _text(tape)
        case "jsonl":
            lines = _json_lines(tape)
        case _:
            raise ValueError(f"no export format {form!r}; there are {', '.join(FORMATS)}")
    count = 0
    for line in lines:
        out.write(line)
        count += 1
    return count


def _cast(tape: TapeReader, encoder: Encoder) -> Iterator[str]:
    said = tape.header.map_
    more = said.get("more")
    size = more.get("tty") if isinstance(more, dict) else None
    match size:
        case [int(columns), int(rows)] if 0 < columns < 10_000 and 0 < rows < 10_000:
            pass
        case _:
            columns, rows = COLUMNS, ROWS
    title = f"{said.get('protocol', '')} {said.get('target', '')} {said.get('sid', '')}"
    duration = round(tape.duration_ns / 1e9, 3)
    yield encoder.header(columns, rows, tape.header.wall0_ns // 1_000_000_000, title, duration=duration)
    transcript = Transcript(said, columns=columns)
    for piece in transcript.banner():
        yield encoder.event(piece)
    for record in tape.records():
        for piece in transcript.feed(record):
            line = encoder.event(piece)
            if line:
                yield line


def _text(tape: TapeReader) -> Iterator[str]:
    transcript = Transcript(tape.header.map_, columns=COLUMNS, color=False, newline="\n")
    yield from (piece.text for piece in transcript.banner())
    for record in tape.records():
        yield from (piece.text for piece in transcript.feed(record) if piece.code == "o")


def _json_lines(tape: TapeReader) -> Iterator[str]:
    wall0_ns = tape.header.wall0_ns
    yield _json({"header": plain(tape.header.map_)})
    for record in tape.records():
        yield _json(_entry(record, wall0_ns))


def _entry(record: Record, wall0_ns: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "n": record.n,
        "t_ns": record.t_ns,
        "time": wall_time(wall0_ns + record.t_ns),
        "channel": _CHANNELS[record.channel],
        "kind": Kind(record.kind).name if record.kind in Kind._value2member_map_ else record.kind,
    }
    if record.kind == Kind.WIRE:
        entry["base64"] = base64.b64encode(record.payload).decode()
        with suppress(UnicodeDecodeError):
            entry["text"] = record.payload.decode()
        return entry
    try:
        entry["payload"] = plain(msgpack.unpackb(record.payload, raw=False, strict_map_key=False))
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
        entry["base64"] = base64.b64encode(record.payload).decode()
    return entry


def wall_time(ns: int) -> str:
    """ISO 8601 in UTC with microseconds."""
    return (
        datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        + f".{ns // 1000 % 1_000_000:06d}Z"
    )


def plain(value: object) -> Any:
    """Return what msgpack gave us as JSON can say it."""
    match value:
        case dict():
            return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case bytes():
            return {"base64": base64.b64encode(value).decode()}
        case None | bool() | int() | float() | str():
            return value
        case _:  # msgpack's extension types and time stamps
            return str(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True) + "\n"
