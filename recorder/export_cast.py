"""A session as a terminal cast: asciicast v2 and v3, to the letter of docs.asciinema.org/manual/asciicast.

The events: o what the transcript shows, i the text of each command (and, with keys, what was typed into a terminal
session), r a new size, m a marker for each command, hold, approval, denial and error ("Q1 SELECT", "HOLD Q2", "APPROVED
mia@acme Q2", "DENY Q4", "ERROR 42501 Q3"), x the end of the session (v3 has it, v2 does not). Times count from the
beginning of the span. The header names neither environment nor host.

A session that is no terminal's holds no control sequences but our own colours. That of a terminal passes the filter of
escape.py; raw leaves it as it was.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from recorder.cast import CastV2, CastV3, Encoder, Piece
from recorder.escape import visible
from recorder.export_source import Source, is_sensible, wall_time
from recorder.format import ERR, OUT, USER, Kind, Record, fields
from recorder.transcript_flows import FlowTranscript, transcript_of

_SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_NOTICE_SGR: Final = "\x1b[33m"


class Narrator:
    """Turns records into the timed pieces of a cast, times counting from the beginning of the span."""

    def __init__(self, source: Source, clock: Callable[[int], int] | None = None) -> None:
        """clock gives a record's time in the cast for its time on the tape, in the order of the records."""
        self._source = source
        start = source.options.start_ns
        self._clock: Callable[[int], int] = clock or (lambda t_ns: max(0, t_ns - start))
        self._before = source.commands_before
        self._transcript = transcript_of(
            source.said,
            find=source.find_flow,
            messages=source.options.http,
            columns=source.size[0],
            done=self._before,
            raw=source.options.raw,
        )
        self._flows = isinstance(self._transcript, FlowTranscript)
        self._tty = source.tty is not None and not self._flows
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {channel: decoder("replace") for channel in (USER, OUT, ERR)}

    def opening(self) -> list[Piece]:
        """What stands above the first record."""
        pieces = [piece._replace(t_ns=0) for piece in self._transcript.banner()]
        source = self._source
        if source.remark:
            pieces.append(Piece(0, "o", f"{_NOTICE_SGR}-- {source.remark}\x1b[0m\r\n"))
        if source.options.start_ns:
            noun = "command" if self._before == 1 else "commands"
            text = f"from {wall_time(source.wall_ns)} on; {self._before} {noun} before"
            pieces.append(Piece(0, "o", f"{_NOTICE_SGR}-- {text}\x1b[0m\r\n"))
        return pieces

    def feed(self, record: Record) -> list[Piece]:
        """What the record adds."""
        t_ns = self._clock(record.t_ns)
        pieces: list[Piece] = []
        self._transcript.count = self._source.commands_before_record(record)
        if record.kind == Kind.WIRE and self._flows:
            if self._source.options.keys and record.channel == USER and self._is_typed(record):
                return self._typed(record, t_ns)
        elif record.kind == Kind.WIRE and self._tty:
            special = self._terminal(record, t_ns)
            if special is not None:
                return special
        elif record.kind == Kind.COMMAND and not self._tty:
            said = fields(record.payload)
            text = visible(str(said.get("text") or said.get("verb") or ""))
            if text and not self._is_there_already(str(said.get("verb", ""))):
                pieces.append(Piece(t_ns, "i", text.replace("\n", "\r\n") + "\r\n"))
        for piece in self._transcript.feed(record):
            if piece.code != "r" or _sensible(piece.text):
                pieces.append(piece._replace(t_ns=t_ns))
        return pieces

    @staticmethod
    def pause(t_ns: int) -> Piece:
        """A piece that shows nothing, for the time that it takes."""
        return Piece(t_ns, "o", "\x1b[0m")

    def _terminal(self, record: Record, t_ns: int) -> list[Piece] | None:
        """What is not the transcript's to show: keys, and output without the filter."""
        options = self._source.options
        wanted = options.keys if record.channel == USER else options.raw and record.channel in (OUT, ERR)
        if not wanted:
            return None
        if record.channel == USER:
            return self._typed(record, t_ns)
        text = self._decoders[record.channel].decode(record.payload)
        return [Piece(t_ns, "o", text)] if text else []

    def _is_there_already(self, verb: str) -> bool:
        """Whether a command is no text of its own: a line is there key by key, what a terminal asks for is untyped."""
        return self._flows and (verb in ("pty", "env", "window") or (verb == "line" and self._source.options.keys))

    def _is_typed(self, record: Record) -> bool:
        """Whether the record is what somebody typed on the terminal that is shown."""
        return isinstance(self._transcript, FlowTranscript) and self._transcript.has_screen(record.flow)

    def _typed(self, record: Record, t_ns: int) -> list[Piece]:
        text = self._decoders[USER].decode(record.payload)
        return [Piece(t_ns, "i", text)] if text else []


def narrate(source: Source) -> Iterator[Piece]:
    """Yield the whole cast, piece by piece."""
    narrator = Narrator(source)
    yield from narrator.opening()
    for record in source.records():
        yield from narrator.feed(record)


def cast_lines(source: Source, version: int) -> Iterator[str]:
    """Yield the lines of a cast, asciicast version 2 or 3."""
    encoder: Encoder = CastV2() if version == 2 else CastV3()
    columns, rows = source.size
    more: dict[str, Any] = {"duration": round(source.duration_ns / 1e9, 6)} if version == 2 else {}
    if source.options.idle_limit_seconds is not None:
        more["idle_time_limit"] = source.options.idle_limit_seconds
    yield encoder.header(columns, rows, source.wall_ns // 1_000_000_000, source.title, **more)
    for piece in narrate(source):
        line = encoder.event(piece)
        if line:
            yield line


def _sensible(size: str) -> bool:
    match = _SIZE.fullmatch(size)
    return match is not None and is_sensible(int(match[1]), int(match[2]))
