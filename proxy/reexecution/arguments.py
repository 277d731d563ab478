"""The arguments of ``gatecast replay SESSION --against TARGET``, beside those of the player.

Apart from the rest because the command line names every command's arguments at each start: nothing but argparse is
imported. --from and --to are the player's own; with --against they are numbers of commands.
"""

from __future__ import annotations

from argparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options to a command."""
    group = parser.add_argument_group(
        "run it again",
        "Execute the recorded commands of a PostgreSQL session, writes included, on a target with sandbox: true, and "
        "show what comes out differently. --from N, --to N: only these commands. Exit code: 0 same, 1 different, 2 "
        "something could not be replayed.",
    )
    add = group.add_argument
    add("--against", metavar="TARGET", help="the sandbox, or sandbox/database")
    add("--timeout", metavar="TIME", default="60s", help="for one statement (default: 60s)")
    add("--stop-at-first", action="store_true", help="stop at the first difference")
    add("--rollback", action="store_true", help="in one transaction that is rolled back at the end")
    add("--dry-run", action="store_true", help="list what would run; nothing is connected to")
    add("--ignore", metavar="COLUMN", action="append", default=[], help="a result column that does not count")
    add("--json", action="store_true", help="print JSON, for scripts")
