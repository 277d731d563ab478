"""What ``objects`` of a rule say of the names of a BigQuery command: "project.dataset.table", with ``*`` in them.

A name may stand for many: ``p.d.events_*`` (a wildcard table), ``p.d.*`` (all of a dataset), ``p.*.t`` (a dataset that
nobody knows), ``*.*.*``. There ``*`` is any text. A rule must not leak either way:

covered   An *allow* needs that all which a name stands for is matched. So ``p.d.?`` does not cover ``p.d.*``, though
          as a text it would match; nor does ``p.d.events_2026`` cover ``p.d.events_*``. Of a glob with ``?`` or
          ``[ab]`` nothing is certain, so it covers plain names only. Case counts, as it does for BigQuery.
touches   A *deny*, *hold* or *mask* speaks as soon as something that a name stands for may be matched: by the same
          characters in another case too (a dataset may be one that does not know case). Views on metadata
          (INFORMATION_SCHEMA, __TABLES__) tell of all tables of their dataset, those of a region of all datasets.

A list of what a project has (``inspect`` of ``p.*.*``: datasets.list, jobs.list) looks into no dataset, so that a deny
of ``p.payroll.*`` leaves it alone; one of ``p.*`` does not. A dry run is no list. Decorators (``t$20260101``) are no
part of a name. Source: BigQuery docs, "Wildcard tables", "Case sensitivity"; fnmatch of the standard library for globs.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from proxy.core.events import Command
from proxy.policy.globs import Globs

PROTOCOL: Final = "bigquery"
# What goes on with something that was decided before: rules.py, 10.
GOES_ON: Final = frozenset({"poll", "cancel", "upload"})
# Globs whose characters are kept apart, a rule file has a few.
_TOKENS_LIMIT: Final = 4_096

_TOKEN: Final = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_METADATA: Final = re.compile(r"(?:information_schema\.|__tables(?:_summary)?__\Z).*", re.DOTALL)
_REGION: Final = "region-"
_Test = Callable[[str], object] | None  # of one character; None is any text


def covered(globs: Globs, name: str) -> bool:
    """Tell whether all that a name stands for is matched by one of the globs."""
    plain = _undecorated(name)
    if "*" not in plain:
        return globs.match(plain)
    # A '*' of a glob takes any characters, those of the name's own '*' too.
    return any(
        text == "*" or (not re.search(r"[?\[]", text) and fnmatch.fnmatchcase(plain, text)) for text in globs.texts
    )


def touches(globs: Globs, command: Command) -> bool:
    """Tell whether something that the command names, or that lies beneath its views, may be matched."""
    if any(map(globs.match, command.objects)):
        return True
    names = (*command.objects, *command.facts.get("beneath", ()))
    return any(_meets(text.lower(), wide) for name in names for wide in _wide(command, name) for text in globs.texts)


def touches_nothing(command: Command) -> bool:
    """Tell whether a part of a text is known to read no table, whatever the other parts do."""
    facts = command.facts
    return (
        command.protocol == PROTOCOL
        and command.verb in ("read_rows", "inspect")
        and command.kind == "read"
        and not command.objects
        and "tables_read" in facts
        and not facts.get("opaque")
    )


def unasked(command: Command) -> tuple[str, ...]:
    """What of the command an allow must ask for by its condition: see protocols/bigquery/requests.py."""
    return tuple(command.facts.get("bq_special", ())) if command.protocol == PROTOCOL else ()


def _wide(command: Command, name: str) -> Iterator[str]:
    """A name in lower case, with ``*`` where it may stand for more than itself; nothing for a list of a project."""
    plain = _undecorated(name).lower()
    if plain.endswith(".*.*") and command.verb == "inspect" and not command.facts.get("bq_asks_dry_run"):
        return
    # A project may be of a domain, whose dots are its own.
    domain, colon, rest = plain.partition(":")
    project, _, below = rest.partition(".") if colon else plain.partition(".")
    dataset, _, table = below.partition(".")
    head = f"{domain}:{project}" if colon else project
    if dataset.startswith(_REGION) or (below and not dataset):  # the latter is one that nobody knows
        yield f"{head}.*"
    elif _METADATA.match(table):
        yield f"{head}.{dataset}.*"
    else:
        yield plain


def _undecorated(name: str) -> str:
    head, dot, table = name.rpartition(".")
    return head + dot + (re.split(r"[$@]", table, maxsplit=1)[0] or table)


@lru_cache(maxsize=_TOKENS_LIMIT)
def _tokens(glob: str) -> tuple[_Test, ...]:
    """The tests of a glob, one a character; None for any text."""
    return tuple(
        None if token.startswith("*") else re.compile(fnmatch.translate(token)).match for token in _TOKEN.findall(glob)
    )


def _meets(glob: str, name: str) -> bool:
    """Tell whether some text is matched by the glob, and is what the name stands for: two wildcards may meet."""
    tests = _tokens(glob)
    states = _closed(tests, {0})
    for character in name:
        if character == "*":
            # Any text: whatever the glob wants next, and next, to its end.
            states = set(range(min(states), len(tests) + 1))
            continue
        moved: set[int] = set()
        for state in states:
            if state < len(tests):
                test = tests[state]
                if test is None:
                    moved.add(state)
                elif test(character):
                    moved.add(state + 1)
        if not moved:
            return False
        states = _closed(tests, moved)
    return len(tests) in states


def _closed(tests: tuple[_Test, ...], states: set[int]) -> set[int]:
    """Any text may be none at all."""
    found = set(states)
    for state in states:
        while state < len(tests) and tests[state] is None:
            state += 1
            found.add(state)
    return found
