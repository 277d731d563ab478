"""The arguments of ``gatecast replay``; player_options.py makes a value of them.

Apart from it because the command line names every command's arguments at each start, and must start quickly: nothing
but argparse is imported. Left out: which tape to play, and the keys that decrypt it, which all commands share.
"""

from __future__ import annotations

from argparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options to a command."""
    add = parser.add_argument
    add("--speed", type=float, default=1.0, metavar="N", help="so many times as fast: 0.5, 4 (at most 64)")
    add("--idle-limit", metavar="TIME", help="cut longer pauses to this: 2s")
    place = "90s, 1:30, or 2026-11-21T10:00:03Z"
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--from", dest="start", metavar="TIME", help=f"begin here: {place}")
    start.add_argument("--command", dest="nth", type=int, metavar="N", help="begin with command N, counted from 1")
    add("--to", dest="stop", metavar="TIME", help=f"end here: {place}")
    add("--follow", action="store_true", help="show a live session as it goes on, from its end (--from 0: all of it)")
    add("--plain", action="store_true", help="print all at once, without timing and keys")
    streams = parser.add_argument_group(
        "sessions of several streams (ssh, kubernetes)",
        "A terminal has the screen to itself until it ends; then what happened on the connection meanwhile is told.",
    )
    streams.add_argument("--flow", type=int, metavar="N", help="play one of them alone, from its beginning to its end")
    streams.add_argument(
        "--flows", action="store_true", help="list them (--json, too): what ran, how much passed, how it ended"
    )
    streams.add_argument("--interleave", action="store_true", help="all as text, in the order of time, terminals too")
    add("--http", action="store_true", help="requests to an API as messages of HTTP: heads and bodies, nothing folded")
    add("--markers", action="store_true", help="list holds, approvals, denials and errors with their times")
    add("--pause-on-markers", action="store_true", help="pause at each of them")
    add("--no-colour", "--no-color", dest="no_colour", action="store_true", help="no colours; NO_COLOR does the same")
    add("--raw", action="store_true", help="let through all that a terminal session did to its terminal: not safe")
