"""What ``gatecast export`` can do, as values and as arguments of a command line; light, as --help imports it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import Final, Literal, get_args

from recorder.player_options import place_ns

COLUMNS: Final = 110  # recorder note, section 9: 100 to 120 read well
ROWS: Final = 32
COLUMNS_LIMIT: Final = 1000  # ours: wider is no terminal

TEXT_FORMATS: Final = ("asciicast-v2", "asciicast-v3", "txt", "jsonl", "html", "sql", "har")
MEDIA_FORMATS: Final = ("gif", "svg", "mp4")
FORMATS: Final = (*TEXT_FORMATS, "raw", "bytes", *MEDIA_FORMATS)

Direction = Literal["user", "gate", "out", "err", "target", "all"]
DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)


class ExportError(ValueError):
    """The tape cannot be exported so; the text says what to do instead."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What of a tape to write, and how.

    start_ns, end_ns: nanoseconds since the tape was opened; records within are written, both ends included.
    idle_limit_seconds: longer pauses are to be cut to this by whoever plays the cast; html and media cut them.
    raw: bytes of a terminal session as they were, without the filter that makes them harmless.
    keys: casts hold what the user typed in a terminal session, too: passwords that no screen showed among it.
    direction: which bytes formats raw and bytes write. flow: one stream of the session alone.
    columns, rows: the terminal in which a rendered session is shown. http: messages of HTTP as they are.
    """

    start_ns: int = 0
    end_ns: int | None = None
    idle_limit_seconds: float | None = None
    raw: bool = False
    keys: bool = False
    direction: Direction = "all"
    columns: int = COLUMNS
    rows: int = ROWS
    flow: int | None = None
    http: bool = False


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options to a command."""
    add = parser.add_argument
    place = "90s, 1:30, or 2026-11-21T10:00:03Z"
    add("--format", required=True, choices=FORMATS)
    add("-o", "--output", metavar="FILE", help="a new file, for its owner alone (default: standard output)")
    add("--force", action="store_true", help="replace FILE if it exists")
    add("--from", dest="start", metavar="TIME", help=f"begin here: {place}")
    add("--to", dest="stop", metavar="TIME", help=f"end here: {place}")
    add("--idle-limit", metavar="TIME", help="casts, html, films: cut longer pauses to this: 2s")
    add("--width", type=int, default=COLUMNS, metavar="N", help=f"columns that results are laid out in ({COLUMNS})")
    add(
        "--direction",
        "--stream",
        choices=DIRECTIONS,
        help="raw, bytes: which of them; all (raw's default): each record with time and channel; bytes' default: out",
    )
    add(
        "--flow",
        type=int,
        metavar="N",
        help="one stream of an SSH or Kubernetes session; replay --flows lists them",
    )
    add("--http", action="store_true", help="txt, casts, html: requests to an API as messages of HTTP, nothing folded")
    add("--keys", action="store_true", help="casts: also what was typed in a terminal session, unseen passwords too")
    add("--raw", action="store_true", help="casts, html: a terminal session's bytes unfiltered: not safe to play")


def from_arguments(options: Namespace, wall0_ns: int) -> ExportOptions:
    """Make the value of parsed arguments, for a tape that was opened at wall0_ns. Raises BadOption, ExportError."""
    if not 20 <= options.width <= COLUMNS_LIMIT:
        raise ExportError(f"--width is 20 to {COLUMNS_LIMIT}")
    start = 0 if options.start is None else place_ns(options.start, wall0_ns)
    end = None if options.stop is None else place_ns(options.stop, wall0_ns)
    if end is not None and end < start:
        raise ExportError("--to is before --from")
    if options.flow is not None and options.flow < 0:
        raise ExportError("--flow counts from 0")
    if options.format == "bytes" and options.flow is None:
        raise ExportError("bytes are those of one stream: name it with --flow (replay --flows lists them)")
    return ExportOptions(
        start_ns=start,
        end_ns=end,
        idle_limit_seconds=None if options.idle_limit is None else place_ns(options.idle_limit, 0) / 1e9,
        raw=options.raw,
        keys=options.keys,
        direction=options.direction or ("out" if options.format == "bytes" else "all"),
        flow=options.flow,
        http=options.http,
        columns=options.width,
    )
