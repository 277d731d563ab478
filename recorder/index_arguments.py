"""The arguments of ``gatecast sessions list`` and ``search``, and the question to the index that they make."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from typing import Final

# Spelled out here: the parser of all commands must not load SQLite. A test compares them with index_query.py.
VERDICTS: Final = ("allow", "deny", "held", "held-allow", "held-deny")
STATUSES: Final = ("live", "unsealed", "closed", "failed", "crashed", "damaged")
LIMIT_LIMIT: Final = 1_000_000  # rows of one answer, ours
_TIME: Final = "2026-11-21, 2026-11-21T10:30 (UTC), 2h, 3d, today, yesterday"


class BadFilter(ValueError):
    """An argument says nothing that can be looked for; the text is one line for a person."""


def add_filters(command: ArgumentParser) -> None:
    """Add what list and search have in common. Names may have the wildcards * and ?."""
    who = command.add_argument_group("who and where (names may have * and ?)")
    who.add_argument("--user", "--subject", dest="subject", default="", metavar="NAME", help="for whom it was done")
    who.add_argument("--agent", default="", metavar="NAME", help="by which agent")
    who.add_argument("--target", default="", metavar="NAME")
    who.add_argument("--protocol", default="", metavar="NAME")
    who.add_argument("--run", default="", metavar="ID", help="the run that ties an agent's sessions together")
    who.add_argument("--status", default="", choices=("", *STATUSES), metavar="STATUS", help=", ".join(STATUSES))
    who.add_argument("--intent", default="", metavar="TEXT", help="what the user said it was for has this in it")
    when = command.add_argument_group("when")
    when.add_argument("--since", default="", metavar="TIME", help=_TIME)
    when.add_argument("--until", default="", metavar="TIME", help="up to the end of this time")
    what = command.add_argument_group("what (a session is listed if one of its commands is such)")
    what.add_argument("--verdict", default="", choices=("", *VERDICTS), metavar="VERDICT", help=", ".join(VERDICTS))
    what.add_argument("--rule", default="", metavar="NAME", help="the rule that decided")
    what.add_argument("--approver", default="", metavar="NAME", help="who decided on a held command")
    what.add_argument("--table", "--object", dest="object", default="", metavar="NAME", help="orders, public.or*, ...")
    what.add_argument("--verb", default="", metavar="VERB", help="DELETE, exec, ...")
    what.add_argument("--kind", default="", metavar="KIND", help="read, write, define, delete, execute, ...")
    what.add_argument("--error", default="", metavar="TEXT", help="its error has this in it; '*': any error")
    what.add_argument("--sqlstate", dest="code", default="", metavar="CODE", help="42P01, 42*, ...")
    command.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many (default: 100)")
    command.add_argument("--no-update", action="store_true", help="take the index as it is")
    command.add_argument("--jsonl", action="store_true", help="print one JSON value a line, as they are found")


def add_reindex_arguments(command: ArgumentParser) -> None:
    """Add what reindex has."""
    command.add_argument("--update", action="store_true", help="only read what is new, as list and search do")
    command.add_argument(
        "--substring", action="store_true", help="find any three characters, not whole words: twice the size"
    )
    command.add_argument("--nice", action="store_true", help="let everything else go first")


NAMES: Final = (
    "subject", "agent", "target", "protocol", "run", "status", "intent", "verdict", "rule", "approver", "object",
    "verb", "kind", "error", "code", "limit",
)  # fmt: skip


def times_of(options: Namespace) -> tuple[int | None, int | None]:
    """Return since and until in nanoseconds, the latter being behind what it names. Raises BadFilter."""
    from recorder.when import span_of

    now_ns = time.time_ns()
    found: list[int | None] = []
    for name, end in (("since", 0), ("until", 1)):
        text = getattr(options, name)
        try:
            found.append(span_of(text, now_ns)[end] if text else None)
        except ValueError as error:
            raise BadFilter(f"--{name} {text}: {error}") from error
    if not 0 < options.limit <= LIMIT_LIMIT:
        raise BadFilter(f"--limit is from 1 to {LIMIT_LIMIT}")
    return found[0], found[1]
