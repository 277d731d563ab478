"""Exports of a tape, format by format; what writes files is in export_file.py.

    asciicast-v2, asciicast-v3   the transcript as a cast for asciinema and its player (export_cast.py)
    txt                          the transcript as text: what replay prints without timing
    jsonl                        every record, nothing lost (below)
    html                         one file with the player inside, for any browser (export_html.py)
    sql                          the statements as a script for psql (export_sql.py)
    raw                          the bytes on the wire, one direction or all (export_raw.py)
    bytes                        the bytes of one flow, as a program printed or read them (export_raw.py)
    har                          HTTP sessions only (export_har.py)
    gif, svg, mp4                by other programs, out of a cast (export_media.py)

Memory is constant: one record at a time; html holds its list of commands, too.

jsonl, one JSON object a line, ASCII only. Keys stay what they are; new ones may come. Maps are JSON objects; bytes in
them are {"base64": ...}, and where a map's key is no string, its text stands for it. The first line:

    header    the tape's header map (recorder/format.py)
    status    "closed" | "failed" | "crashed": by the seal, unchecked; "live" | "unsealed": there is none
    remark    what a reader must know about the end; "" of a whole tape
    from_ns, to_ns  the span that was asked for, in ns since the tape was opened; to_ns null: to the end
    flow      the one that was asked for, null: all of the session

and every other line is a record:

    n, t_ns   its number; nanoseconds since the tape was opened
    time      wall time, ISO 8601 in UTC with microseconds
    channel   "gate" | "user" | "out" | "err"
    kind      "WIRE", "COMMAND", ... by format.py; a number if this version does not know it
    payload   the map (or array) of every kind but WIRE
    base64    the bytes of a WIRE record, or a payload that is not msgpack
    text      beside base64 where the bytes are UTF-8
    flow      of a WIRE or RESIZE record that has one
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, TextIO

import msgpack

from recorder.export_cast import cast_lines
from recorder.export_options import COLUMNS as COLUMNS
from recorder.export_options import FORMATS as FORMATS
from recorder.export_options import ROWS as ROWS
from recorder.export_options import TEXT_FORMATS, ExportError, ExportOptions
from recorder.export_source import Progress, Source
from recorder.export_source import wall_time as wall_time
from recorder.format import Kind, Record
from recorder.reader import TapeReader
from recorder.transcript_flows import transcript_of

_CHANNELS: Final = ("gate", "user", "out", "err")


def export_tape(
    tape: TapeReader,
    form: str,
    out: TextIO,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the tape in one of TEXT_FORMATS; return the number of lines, or pieces. Raises ExportError, FormatError."""
    count = 0
    for line in export_lines(Source(tape, options, progress), form):
        out.write(line)
        count += 1
    return count


def export_lines(source: Source, form: str) -> Iterator[str]:
    """Yield the export in a text format, piece by piece. Raises ExportError."""
    match form:
        case "asciicast-v2":
            return cast_lines(source, 2)
        case "asciicast-v3":
            return cast_lines(source, 3)
        case "txt":
            return _text(source)
        case "jsonl":
            return _json_lines(source)
        case "html":
            from recorder.export_html import page

            return page(source)
        case "sql":
            from recorder.export_sql import script

            return script(source)
        case "har":
            from recorder.export_har import har

            return har(source)
        case _:
            raise ExportError(f"no export format {form!r} as text; there are {', '.join(TEXT_FORMATS)}")


def _text(source: Source) -> Iterator[str]:
    transcript = transcript_of(
        source.said,
        screen=False,
        find=source.find_flow,
        messages=source.options.http,
        columns=source.options.columns,
        color=False,
        newline="\n",
        done=source.commands_before,
    )
    yield from (piece.text for piece in transcript.banner())
    if source.remark:
        yield f"-- {source.remark}\n"
    for record in source.records():
        transcript.count = source.commands_before_record(record)
        yield from (piece.text for piece in transcript.feed(record) if piece.code == "o")


def _json_lines(source: Source) -> Iterator[str]:
    options = source.options
    yield _json(
        {
            "header": plain(source.said),
            "status": source.status,
            "remark": source.remark,
            "from_ns": options.start_ns,
            "to_ns": options.end_ns,
            "flow": options.flow,
        }
    )
    wall0_ns = source.tape.header.wall0_ns
    for record in source.records():
        yield _json(_entry(record, wall0_ns))


def _entry(record: Record, wall0_ns: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "n": record.n,
        "t_ns": record.t_ns,
        "time": wall_time(wall0_ns + record.t_ns),
        "channel": _CHANNELS[record.channel],
        "kind": Kind(record.kind).name if record.kind in Kind._value2member_map_ else record.kind,
    }
    if record.flow is not None:
        entry["flow"] = record.flow
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
