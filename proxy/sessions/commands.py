"""What ``gatecast sessions list|search|show|reindex`` do, given the directory of tapes.

The index is brought up to date first, for UPDATE_SECONDS at most; then the answer says what it may lack. Where there is
no index to be had, list walks the tapes themselves: it needs none.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from proxy.core.errors import GatecastError
from proxy.sessions.text import Paper, commands_line, list_text, search_text, show_text
from recorder.cipher import AuditorKey
from recorder.export import wall_time
from recorder.index import Index, IndexDamaged, IndexUnavailable, Progress, Updated
from recorder.index_arguments import NAMES, BadFilter, times_of
from recorder.index_query import NothingToLookFor, Wanted, count_cut, find_commands, find_sessions, is_glob
from recorder.index_vault import VaultView
from recorder.progress import ProgressLine

UPDATE_SECONDS: Final = 20.0  # ours: a person who waits for a list; the bar is there after one
NICENESS: Final = 19  # setpriority(2): the last in line


class SearchError(GatecastError):
    """It cannot be looked for; the text says what to do."""


def sessions_list(options: Namespace, tapes: Path, use_index: bool = True) -> int:
    """gatecast sessions list."""
    wanted = _wanted(options)
    walkable = _walkable(wanted)
    if not tapes.is_dir():
        return _out(options, [], lambda rows: list_text(rows, _paper()))
    if use_index:
        try:
            with _index(tapes, not options.no_update, quiet=walkable) as (index, fresh):
                if fresh or options.no_update or not walkable:
                    rows = find_sessions(index, wanted)
                    return _out(options, rows, lambda rows: list_text(rows, _paper()))
        except IndexUnavailable as error:
            if not walkable:
                raise SearchError(f"{error}; without an index only --target and the like can be asked for") from error
            _say(f"{error}: reading the tapes themselves")
    elif not walkable:
        raise SearchError("recorder.index is off in the configuration: gatecast sessions reindex makes one for this")
    return _out(options, _walk(tapes, wanted), lambda rows: list_text(rows, _paper()))


def sessions_search(options: Namespace, tapes: Path) -> int:
    """gatecast sessions search."""
    wanted = _wanted(options, text=" ".join(options.text), session=options.session)
    if not tapes.is_dir():
        raise SearchError(f"{tapes}: no session is recorded here")
    try:
        with _index(tapes, not options.no_update) as (index, _):
            rows = map(_with_replay, find_commands(index, wanted))
            code = _out(options, rows, lambda found: search_text(found, wanted.limit, _paper()))
            _gaps(index, wanted)
            return code
    except IndexUnavailable as error:
        raise SearchError(str(error)) from error
    except NothingToLookFor as error:
        raise SearchError(f'{wanted.text!r}: {error}; words, "phrases" and beginnings* can be looked for') from error


def sessions_show(options: Namespace, path: Path, keys: Sequence[AuditorKey] = ()) -> int:
    """gatecast sessions show: from the tape itself."""
    from recorder.cli import show

    with ProgressLine("reading", sys.stderr) as bar:
        found = show(path, keys, bar)
    if options.json:
        print(json.dumps(found, indent=2, default=str))
    else:
        sys.stdout.write(show_text(found, _paper()))
    return 0


def sessions_reindex(options: Namespace, tapes: Path) -> int:
    """gatecast sessions reindex."""
    if not tapes.is_dir():
        raise SearchError(f"{tapes}: no session is recorded here")
    if options.nice:
        os.nice(NICENESS)
    began = time.monotonic()
    try:
        with _progress() as progress, VaultView(tapes) as vault:
            if options.update:
                done = Index.update(tapes, progress=progress, elsewhere=vault)
            else:
                done = Index.rebuild(tapes, substring=options.substring, progress=progress, elsewhere=vault)
        with Index(tapes) as index:
            sessions, commands = index.counts()
    except TimeoutError as error:
        raise SearchError("another process updates or uses the index; try again when it is done") from error
    except (IndexUnavailable, FileNotFoundError) as error:
        raise SearchError(str(error)) from error
    result = {
        "tapes_read": done.tapes, "commands_read": done.commands, "sessions_forgotten": done.forgotten,
        "sessions": sessions, "commands": commands, "complete": done.complete, "busy": done.busy,
        "seconds": round(time.monotonic() - began, 3),
    }  # fmt: skip
    if done.repaired:
        _say(f"{done.repaired}; it was put aside as index.db.damaged")
    if options.json:
        print(json.dumps(result, indent=2))
    elif done.busy:
        print("Another process updates the index.")
    else:
        read = f"{_count(done.tapes, 'tape')} read in {result['seconds']:.1f} s"
        print(f"{_count(sessions, 'session')}, {_count(commands, 'command')} in the index; {read}.")
    return 0


# -- the index --------------------------------------------------------------------------------------------


@contextmanager
def _index(tapes: Path, update: bool, quiet: bool = False) -> Iterator[tuple[Index, bool]]:
    """Open the index, up to date if that is wanted and possible; the second value tells whether it is.

    quiet: whoever asks can do without. Raises IndexUnavailable.
    """
    done = _update(tapes) if update else None
    try:
        index = Index(tapes)
    except FileNotFoundError as error:
        raise IndexUnavailable("there is no index yet; gatecast sessions reindex makes one") from error
    except IndexDamaged as error:
        raise IndexUnavailable(f"{error}; gatecast sessions reindex makes a new one") from error
    with index:
        if done is not None and done.busy and not quiet:
            _say("another process updates the index at this moment: the newest may be missing")
        elif not index.complete and not quiet:
            left = f" ({_count(done.left, 'tape')} to go)" if done is not None and done.left else ""
            _say(f"the index is not complete yet{left}: gatecast sessions reindex --update goes on with it")
        if done is None:
            _say(f"the index is as of {wall_time(int(index.updated * 1e9))[:19]}Z")
        yield index, index.complete and done is not None and not done.busy


def _update(tapes: Path) -> Updated:
    with _progress() as progress, VaultView(tapes) as vault:
        done = Index.update(tapes, seconds=UPDATE_SECONDS, progress=progress, elsewhere=vault)
    if done.repaired:
        _say(f"{done.repaired}; it was put aside as index.db.damaged and is built again")
    return done


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    with ProgressLine("indexing", sys.stderr) as line:
        yield lambda progress: line(progress.bytes, progress.bytes_total)


def _gaps(index: Index, wanted: Wanted) -> None:
    """Say what was not looked through."""
    if wanted.text:
        cut = count_cut(index)
        if cut:
            _say(f"{_count(cut, 'long command')} could be looked through only in the first 65,536 characters")
    encrypted = index.connection.execute("SELECT count(*) FROM sessions WHERE encrypted").fetchone()[0]
    if encrypted:
        _say(f"{_count(encrypted, 'session')} encrypted: not indexed beyond who, where and when")


def _walk(tapes: Path, wanted: Wanted) -> list[dict[str, Any]]:
    from recorder.cli import SessionFilter, list_sessions

    since = wall_time(wanted.since_ns) if wanted.since_ns is not None else ""
    until = wall_time(wanted.until_ns - 1000) if wanted.until_ns is not None else ""
    names = ("protocol", "target", "subject", "run", "status", "limit")
    return list_sessions(tapes, SessionFilter(since=since, until=until, **{n: getattr(wanted, n) for n in names}))


def _walkable(wanted: Wanted) -> bool:
    """Whether the tapes' headers and seals can answer it."""
    names = (wanted.protocol, wanted.target, wanted.subject, wanted.run)
    return not (wanted.of_commands or wanted.agent or wanted.intent or any(map(is_glob, names)))


def _wanted(options: Namespace, text: str = "", session: str = "") -> Wanted:
    try:
        since_ns, until_ns = times_of(options)
    except BadFilter as error:
        raise SearchError(str(error)) from error
    given = {name: getattr(options, name) for name in NAMES}
    return Wanted(**given, since_ns=since_ns, until_ns=until_ns, text=text, session=session)


# -- output -----------------------------------------------------------------------------------------------


def _out(options: Namespace, rows: Iterable[dict[str, Any]], text: Callable[[list[dict[str, Any]]], str]) -> int:
    if options.jsonl:
        for row in rows:
            print(json.dumps(_bare(row), default=str))
    elif options.json:
        print(json.dumps([_bare(row) for row in rows], indent=2, default=str))
    else:
        sys.stdout.write(text(list(rows)))
    return 0


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "parts"}


def _with_replay(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "replay": commands_line(row)}


def _paper() -> Paper:
    return Paper.of(sys.stdout)


def _say(text: str) -> None:
    from proxy.core.text import harmless

    print(f"gatecast: {harmless(text)}", file=sys.stderr)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
