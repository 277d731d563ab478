"""Verification: can a stranger with the files and a public key tell that nothing was changed, cut off or left out?

One strict pass over each segment, front to back, in constant memory but for the command index; then the seals, then
how the segments fit together (verify_tape.py). The first fault of a tape is reported with its place and ends the check
of that tape. A directory that has nodes' logs (log/<node>/, nodelog.py) is checked against them (verify_log.py).

    verified    every byte is covered by a seal of a known key, and the tape has its end               exit code 0
    altered     bytes changed, or something is left out, or a signature does not hold                            1
    incomplete  what is there is in order, but it is not sealed, ended in a crash, or its end is missing         2
    unknown     cannot say: not a tape, a later version, sealed by a key that was not given                      3

An unsealed tape is never verified: its chain shows accidents, but whoever holds the file could have made it anew. Keys,
anchors and witnesses come from outside, never from the files that are judged. Report.statement() says what was proved.

With a log: a session that it saw begin and that is not here is altered (missing, named), unless a tombstone or
elsewhere accounts for it; a tape must have the h0, the chain values, the seals and the segments that the log saw. A
sealed tape of a node whose log does not know it is altered; a live one, or one that was finished less than a minute
ago, is incomplete, as the log may be a second behind. A tape of a node whose log is not here, where others' logs are,
is incomplete, and so is one whose header names a log that is not here, unless no_log says that this is known. Without
any log, anchor and witness the tapes alone are judged, and the statement says so; strict makes that incomplete, too. A
single file is judged without any log. The .keys file of a tape that a log knows is here, or the log has its erasure.
What cannot be read, or is no regular file, is unknown; the rest of the directory is judged all the same.

Left out: what "bytes to the target without an Allow" means, which is the protocol's to say.
Source: recorder note, section 8.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from recorder.checkpoint import NoteKey
from recorder.cipher import AuditorKey
from recorder.disk import is_live
from recorder.logindex import LogIndex
from recorder.seal import PublicKeys
from recorder.verify_files import Found, tapes_below
from recorder.verify_log import CheckedLogs, LogReport
from recorder.verify_report import ALTERED, ERASED, INCOMPLETE, UNKNOWN, VERIFIED, WEIGHTS, Fault, TapeReport
from recorder.verify_tape import sid_of, verify_tape

_EXIT: Final = {VERIFIED: 0, ALTERED: 1, INCOMPLETE: 2, UNKNOWN: 3}
# Tapes in one run, each with a report in memory: a directory of strange files must not fill it. Ours.
TAPES_LIMIT: Final = 1_000_000
CRASHED: Final = "crashed"
FRESH_SECONDS: Final = 60.0  # the log is a second behind what is recorded; a disk that refuses it may make that more

OnProgress = Callable[[int, int], None]  # bytes that were checked, of how many
Elsewhere = Callable[[str], bool]  # whether a session is known to be in another place


@dataclass(slots=True)
class Report:
    """What was found about a file or a directory."""

    status: str = VERIFIED
    tapes: list[TapeReport] = field(default_factory=list)
    logs: list[LogReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return _EXIT[self.status]

    def statement(self) -> str:
        """What was proved, in one short text; of a report that is not verified, how far it got."""
        counts = Counter(tape.status for tape in self.tapes)
        number = sum(tape.commands for tape in self.tapes)
        kinds = ", ".join(f"{counts[status]:,} {status}" for status in WEIGHTS if counts[status])
        kinds = f": {kinds}" if set(counts) - {VERIFIED} else ""
        noun = "tape" if len(self.tapes) == 1 else "tapes"
        tapes = f"{len(self.tapes):,} {noun}, {number:,} {'command' if number == 1 else 'commands'}{kinds}"
        if not self.logs:
            return f"{tapes}; there is no node's log, so a session that is missing altogether would not show"
        return "; ".join([tapes, *(log.statement() for log in self.logs)])

    def take(self, tape: TapeReport) -> None:
        """Take a tape's report in."""
        self.tapes.append(tape)
        self.weigh(tape.status)

    def weigh(self, status: str) -> None:
        """Take note of a status: the heaviest is that of the whole."""
        self.status = max(self.status, status, key=WEIGHTS.index)


def verify(
    path: Path,
    keys: PublicKeys,
    decrypt: Sequence[AuditorKey] = (),
    *,
    anchor: Path | None = None,
    witnesses: Sequence[NoteKey] = (),
    threshold: int = 1,
    elsewhere: Elsewhere = lambda sid: False,
    strict: bool = False,
    no_log: bool = False,
    progress: OnProgress = lambda done, of: None,
    wall: Callable[[], float] = time.time,
) -> Report:
    """Check the tape that a segment file belongs to, or all tapes and logs below a directory. Raises OSError.

    decrypt: auditors' keys; the content of encrypted tapes is checked where one of them opens it. anchor: a directory
    of anchored checkpoints (anchor.py). witnesses: of these, threshold have to have cosigned. elsewhere: tells of a
    session that is not here whether it is known to be in another place. strict: what is only noted is incomplete.
    """
    report = Report()
    whole = path.is_dir()
    with closing(LogIndex()) as index:
        logs = CheckedLogs(path, index)
        if whole:  # before the files are listed: a session that begins now is no missing one
            logs.check(keys, anchor, witnesses, threshold, strict)
        total = sum(found.size_bytes for found in tapes_below(path))
        done = 0
        for found in tapes_below(path):
            if len(report.tapes) == TAPES_LIMIT:  # not silently: what was not looked at is not verified
                reason = f"more than {TAPES_LIMIT} tapes; verify a part of them at a time"
                report.take(_unread(found.files[0], reason))
                break
            tape = _verify_found(found, whole, keys, decrypt, logs)
            if tape.segments:
                root = index.first_file(tape.sid, tape.track, tape.root)
                if root != tape.root and tape.fault is None:
                    _fail(tape, ALTERED, "there is another, different tape of this session")
                _judge_by_log(tape, found.files, whole, logs, Terms(elsewhere, wall, no_log))
            report.take(tape)
            done += found.size_bytes
            progress(done, total)
        if whole:
            logs.finish(elsewhere)
    report.logs, report.notes = logs.reports, logs.notes
    for log in report.logs:
        report.weigh(log.status)
    if not report.tapes and not any(log.size for log in report.logs):
        report.weigh(UNKNOWN)  # nothing is here, and nothing says that there was anything
    return report


@dataclass(frozen=True, slots=True)
class Terms:
    """What verify was told, as far as judging a tape by the logs takes it."""

    elsewhere: Elsewhere
    wall: Callable[[], float]
    no_log: bool


def _verify_found(
    found: Found, whole: bool, keys: PublicKeys, decrypt: Sequence[AuditorKey], logs: CheckedLogs
) -> TapeReport:
    """Check one tape. In a directory, one that cannot be read does not keep the others from being looked at."""
    if found.problem:
        return _unread(found.files[0], found.problem)
    try:
        return verify_tape(found.files, keys, decrypt, logs.of)
    except OSError as error:
        if not whole:
            raise
        return _unread(found.files[0], f"cannot be read: {error.strerror or type(error).__name__}")


def _unread(path: Path, reason: str) -> TapeReport:
    return TapeReport(sid_of(path), str(path), UNKNOWN, Fault(UNKNOWN, str(path), 0, None, reason))


def _judge_by_log(tape: TapeReport, files: Sequence[Path], whole: bool, logs: CheckedLogs, terms: Terms) -> None:
    """Say of a tape what only the logs tell; without them, that they are not here."""
    sid = tape.sid.partition(".")[0]
    if tape.gone and (terms.elsewhere(sid) or logs.removed(sid)):
        where = f"removed by policy ({removed})" if (removed := logs.removed(sid)) else "elsewhere"
        reason = f"{tape.fault.reason if tape.fault else ''}: it was {where}; this is what is left"
        tape.status, tape.fault = INCOMPLETE, Fault(INCOMPLETE, tape.path, 0, None, reason)
    elif whole and tape.log and tape.log not in logs.origins:
        if not terms.no_log:
            _fail(tape, INCOMPLETE, f"the log {tape.log} is not here: what is left out cannot be seen")
    elif logs.logs and not tape.logged:
        _judge_unlogged(tape, files, logs, terms)
    elif tape.content == ERASED and tape.logged and not logs.erased(sid):
        _fail(tape, INCOMPLETE, "its .keys file is gone, and the log has no erasure of it")


def _judge_unlogged(tape: TapeReport, files: Sequence[Path], logs: CheckedLogs, terms: Terms) -> None:
    """Judge a tape that no log knows, where there are logs."""
    if tape.status in (ALTERED, UNKNOWN):
        return
    log = logs.origins.get(tape.log) if tape.log else logs.logs.get(tape.node)
    if log is None:
        if not terms.no_log:
            _fail(tape, INCOMPLETE, f"the log of its node ({tape.node}) is not here")
    elif not log.whole:
        _fail(tape, INCOMPLETE, f"the log of its node ({tape.node}) could not be read to its end")
    elif tape.ended and not _is_fresh(tape, files[-1], terms.wall()):
        _fail(tape, ALTERED, f"the log of its node ({tape.node}) did not see this session")
    else:
        _fail(tape, INCOMPLETE, f"the log of its node ({tape.node}) did not see this session yet")


def _is_fresh(tape: TapeReport, file: Path, now: float) -> bool:
    """Tell whether a tape was finished so lately that the log may not have it yet.

    What the seal says counts, too: a file's time is whatever somebody sets. A crashed tape was finished by recovery,
    whose time is nowhere else; it is incomplete in any case.
    """
    if is_live(file):
        return True
    ended = now if tape.ended == CRASHED else tape.ended_at
    return abs(now - file.stat().st_mtime) <= FRESH_SECONDS and abs(now - ended) <= FRESH_SECONDS


def _fail(tape: TapeReport, status: str, reason: str) -> None:
    if WEIGHTS.index(status) > WEIGHTS.index(tape.status):
        tape.status = status
        tape.fault = Fault(status, tape.path, 0, None, reason)
