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
is incomplete. Without any log, anchor and witness the tapes alone are judged, and the statement says so; strict makes
that incomplete, too.

Left out: what "bytes to the target without an Allow" means, which is the protocol's to say.
Source: recorder note, section 8.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from recorder.checkpoint import NoteKey
from recorder.cipher import AuditorKey
from recorder.disk import is_live
from recorder.format import SUFFIX
from recorder.logindex import LogIndex
from recorder.reader import name_of, segments_of
from recorder.seal import PublicKeys
from recorder.verify_log import CheckedLogs, LogReport
from recorder.verify_report import ALTERED, INCOMPLETE, UNKNOWN, VERIFIED, WEIGHTS, Fault, TapeReport
from recorder.verify_tape import verify_tape

_EXIT: Final = {VERIFIED: 0, ALTERED: 1, INCOMPLETE: 2, UNKNOWN: 3}
# Tapes in one run, each with a report in memory: a directory of strange files must not fill it. Ours.
TAPES_LIMIT: Final = 1_000_000
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

    def _weigh(self, status: str) -> None:
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
        total = sum(size for _, size in _tapes(path))
        done = 0
        for files, size in _tapes(path):
            if len(report.tapes) == TAPES_LIMIT:  # not silently: what was not looked at is not verified
                reason = f"more than {TAPES_LIMIT} tapes; verify a part of them at a time"
                fault = Fault(UNKNOWN, str(files[0]), 0, None, reason)
                report.tapes.append(TapeReport(files[0].name, str(files[0]), UNKNOWN, fault))
                report._weigh(UNKNOWN)
                break
            tape = verify_tape(files, keys, decrypt, logs.of)
            root = index.first_file(tape.sid, tape.track, tape.root)
            if root != tape.root and tape.fault is None:
                _fail(tape, ALTERED, "there is another, different tape of this session")
            sid = tape.sid.partition(".")[0]
            if tape.gone and (elsewhere(sid) or logs.removed(sid)):
                where = f"removed by policy ({removed})" if (removed := logs.removed(sid)) else "elsewhere"
                reason = f"{tape.fault.reason if tape.fault else ''}: it was {where}; this is what is left"
                tape.status, tape.fault = INCOMPLETE, Fault(INCOMPLETE, tape.path, 0, None, reason)
            elif logs.logs and not tape.logged:
                _judge_unlogged(tape, files, logs, wall)
            report.tapes.append(tape)
            report._weigh(tape.status)
            done += size
            progress(done, total)
        if whole:
            logs.finish(elsewhere)
    report.logs, report.notes = logs.reports, logs.notes
    for log in report.logs:
        report._weigh(log.status)
    if not report.tapes and not report.logs:
        report.status = UNKNOWN
    return report


def _judge_unlogged(tape: TapeReport, files: Sequence[Path], logs: CheckedLogs, wall: Callable[[], float]) -> None:
    """Judge a tape that no log knows, where there are logs."""
    if tape.status in (ALTERED, UNKNOWN):
        return
    log = logs.logs.get(tape.node)
    if log is None:
        _fail(tape, INCOMPLETE, f"the log of its node ({tape.node}) is not here")
    elif not log.whole:
        _fail(tape, INCOMPLETE, f"the log of its node ({tape.node}) could not be read to its end")
    elif tape.ended and not is_live(files[-1]) and wall() - files[-1].stat().st_mtime > FRESH_SECONDS:
        _fail(tape, ALTERED, f"the log of its node ({tape.node}) did not see this session")
    else:
        _fail(tape, INCOMPLETE, f"the log of its node ({tape.node}) did not see this session yet")


def _fail(tape: TapeReport, status: str, reason: str) -> None:
    if WEIGHTS.index(status) > WEIGHTS.index(tape.status):
        tape.status = status
        tape.fault = Fault(status, tape.path, 0, None, reason)


def _tapes(path: Path) -> Iterator[tuple[list[Path], int]]:
    """Yield the segment files of each tape, in order, and their size in bytes; one folder's names at a time."""
    if not path.is_dir():
        files = segments_of(path)
        yield files, sum(file.stat().st_size for file in files)
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        tapes: dict[str, list[tuple[int, str]]] = {}
        for name in names:
            if name.endswith(SUFFIX):
                said = name_of(Path(name))
                tapes.setdefault(said[0] if said else name, []).append((said[1] if said else 0, name))
        for _, found in sorted(tapes.items()):
            files = [Path(folder, name) for _, name in sorted(found)]
            yield files, sum(file.stat().st_size for file in files)
