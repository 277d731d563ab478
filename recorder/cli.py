"""What the command line does with tapes, as functions with results that are JSON: proxy/cli.py prints them.

Strings in the results come from tapes: print them through recorder.escape.visible.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from recorder.cipher import AuditorKey
from recorder.disk import is_live
from recorder.errors import FormatError
from recorder.escape import visible
from recorder.export import export_tape, plain, wall_time
from recorder.folders import day_directory
from recorder.format import SUFFIX
from recorder.reader import TapeReader, name_of
from recorder.replay import ReplayOptions, replay
from recorder.seal import load_public_keys
from recorder.session_view import view
from recorder.ulid import SID_CHARACTERS, ulid_bytes
from recorder.verify import verify
from recorder.verify_arguments import Outside

# Commands that show() lists; the rest is counted. A person reads no more, and export has all.
SHOW_COMMANDS_LIMIT: Final = 10_000
_FIRST: Final = f".000{SUFFIX}"
ULID_TIME_CHARACTERS: Final = 10  # the ULID specification: 48 bits of milliseconds, then chance


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions to list; "" stands for any. since and until are beginnings of ISO 8601 in UTC ("2026-11-21T10").

    status: live, unsealed, closed, failed or crashed.
    """

    protocol: str = ""
    target: str = ""
    subject: str = ""
    run: str = ""
    status: str = ""
    since: str = ""
    until: str = ""
    limit: int = 100


def replay_main(path: Path, options: ReplayOptions, keys: Sequence[AuditorKey] = ()) -> int:
    """Play the tape on this process's terminal; returns the exit code. Raises OSError, FormatError.

    keys, here and below: auditors' keys that may be tried on encrypted tapes.
    """
    replay(TapeReader(path, keys), options)
    return 0


def export(path: Path, form: str, out: TextIO) -> dict[str, Any]:
    """Write the tape in a format of recorder.export.FORMATS that is text. Raises OSError, FormatError, ValueError."""
    tape = TapeReader(path)
    return {"sid": tape.header.sid, "format": form, "lines": export_tape(tape, form, out)}


def export_main(path: Path, options: Namespace, keys: Sequence[AuditorKey] = ()) -> int:
    """Export by the arguments of export_options.py; returns the exit code. Raises OSError, FormatError, ValueError."""
    from recorder.export_file import export_to
    from recorder.export_options import from_arguments
    from recorder.progress import ProgressLine

    tape = TapeReader(path, keys)
    destination = None if options.output is None else Path(options.output)
    with ProgressLine(f"export {options.format}", sys.stderr) as progress:
        done = export_to(
            tape,
            options.format,
            destination,
            from_arguments(options, tape.header.wall0_ns),
            force=options.force,
            progress=progress,
        )
    if done.remark:
        print(f"gatecast: {visible(done.sid)} is {done.remark}", file=sys.stderr)
    return 0


def verify_path(
    path: Path,
    key_file: Path,
    keys: Sequence[AuditorKey] = (),
    outside: Outside | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Verify a tape or a directory with the public keys of a file. Raises OSError, KeyFileError.

    The result has status, exit_code (0 verified, 1 altered, 2 genuine but incomplete, 3 cannot say), statement (what
    was proved) and, for each tape and log, what verify_report.TapeReport and verify_log.LogReport hold. outside: what
    was given beside the key (verify_arguments.py); progress is told how many of how many bytes were checked.
    """
    report = verify(path, load_public_keys(key_file), keys, progress=progress, **(outside or {}))
    return {
        "status": report.status,
        "exit_code": report.exit_code,
        "statement": report.statement(),
        "tapes": [asdict(tape) for tape in report.tapes],
        "logs": [asdict(log) for log in report.logs],
        "notes": report.notes,
    }


def list_sessions(directory: Path, filters: SessionFilter | None = None) -> list[dict[str, Any]]:
    """Return a row for each session, the newest first; live ones too. A file that is no tape has a row with "error"."""
    wanted = filters or SessionFilter()
    rows: list[dict[str, Any]] = []
    for path in _newest_first(directory):
        if len(rows) >= wanted.limit:
            break
        try:
            row = _row(TapeReader(path))
        except (OSError, FormatError) as error:
            name = name_of(path)
            row = {"sid": name[0] if name else path.name, "path": str(path), "error": str(error)}
        if _matches(row, wanted):
            rows.append(row)
    return rows


def show(
    path: Path, keys: Sequence[AuditorKey] = (), progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return the session's row with its header, segments, intents and commands. Raises OSError, FormatError.

    "unreadable" says why the commands of an encrypted tape are not there; "" if they are. progress is told how many of
    how many records were read.
    """
    tape = TapeReader(path, keys)
    return {
        **_row(tape),
        "encrypted": tape.encrypted,
        "header": plain(tape.header.map_),
        "segments": [str(segment) for segment in tape.segments],
        **view(tape, SHOW_COMMANDS_LIMIT, progress),
    }


def find_tape(directory: Path, name: str) -> Path:
    """Return the first segment of a session, by path, by session id or by its unique beginning.

    Raises FileNotFoundError, ValueError if several sessions begin so.
    """
    if Path(name).is_file():
        return Path(name)
    if not name or not set(name.upper()) <= SID_CHARACTERS:
        raise FileNotFoundError(f"no session {name}")
    found = _beginning_with(directory, name.upper())
    if not found:
        raise FileNotFoundError(f"no session {name}")
    if len(found) > 1:
        raise ValueError(f"{len(found)} sessions begin with {name}")
    return found[0]


def _beginning_with(directory: Path, name: str) -> list[Path]:
    """The first segments of the sessions whose ids begin so; from ten characters on the id tells the day."""
    days = "*/*/*"
    if len(name) >= ULID_TIME_CHARACTERS:
        with suppress(ValueError, OverflowError, OSError):  # a time that no calendar has
            made_ns = int.from_bytes(ulid_bytes(name[:26].ljust(26, "0"))[:6], "big") * 1_000_000
            days = str(day_directory(Path(), made_ns))
    found = directory.glob(f"{days}/{name}*{_FIRST}")
    return sorted(path for path in found if ".original." not in path.name)


def _newest_first(directory: Path) -> Iterator[Path]:
    """Walk the days backwards; session ids sort by time, too."""
    for year in _descending(directory):
        for month in _descending(year):
            for day in _descending(month):
                names = (path for path in day.glob(f"*{_FIRST}") if ".original." not in path.name)
                yield from sorted(names, key=lambda path: path.name, reverse=True)


def _descending(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted((entry for entry in directory.iterdir() if entry.is_dir() and entry.name.isdigit()), reverse=True)


def _row(tape: TapeReader) -> dict[str, Any]:
    said: Mapping[str, Any] = tape.header.map_
    identity = said.get("identity")
    identity = identity if isinstance(identity, dict) else {}
    agents = identity.get("agents")
    seals = [tape.segment(i).seal for i in range(len(tape.segments))]
    status = tape.status or ("live" if is_live(tape.segments[-1]) else "unsealed")
    counts = [seal.body.get("commands") if seal is not None else None for seal in seals]
    return {
        "sid": tape.header.sid,
        "path": str(tape.segments[0]),
        "started": wall_time(tape.header.wall0_ns),
        "seconds": round(tape.duration_ns / 1e9, 6),
        "status": status,
        "protocol": str(said.get("protocol", "")),
        "target": str(said.get("target", "")),
        "subject": str(identity.get("subject", "")),
        "agents": [str(agent) for agent in agents] if isinstance(agents, list) else [],
        "run": str(said.get("run", "")),
        "node": str(said.get("node", "")),
        "records": tape.next_record,
        # While it is not sealed, counting takes a walk through the tape; show() does it.
        "commands_count": None if None in counts else sum(counts),
        "size_bytes": sum(path.stat().st_size for path in tape.segments),
    }


def _matches(row: Mapping[str, Any], wanted: SessionFilter) -> bool:
    if "error" in row:
        return not any((wanted.protocol, wanted.target, wanted.subject, wanted.run, wanted.status))
    for name in ("protocol", "target", "subject", "run", "status"):
        value = getattr(wanted, name)
        if value and row[name] != value:
            return False
    started = row["started"]
    return started >= wanted.since and (not wanted.until or started[: len(wanted.until)] <= wanted.until)
