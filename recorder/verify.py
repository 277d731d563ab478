"""Verification: can a stranger with the file and a public key tell that nothing was changed, cut off or left out?

One strict pass over each segment, front to back, in constant memory but for the command index; then the seals, then
how the segments fit together. The first fault of a tape is reported with its place and ends the check of that tape.

    verified    every byte is covered by a seal of a known key, and the tape has its end               exit code 0
    altered     bytes changed, or something is left out, or a signature does not hold                            1
    incomplete  what is there is in order, but it is not sealed, ended in a crash, or its end is missing         2
    unknown     cannot say: not a tape, a later version, sealed by a key that was not given                      3

An unsealed tape is never verified: its chain shows accidents, but whoever holds the file could have made it anew. Keys
come from outside, never from the file.

Left out: the node's log and its witnesses (the only way to notice a tape that is missing altogether, or a forger with
the key). What "bytes to the target without an Allow" means is the protocol's
to say; here only the order COMMAND before its VERDICT is checked.
Source: recorder note, section 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from recorder.cipher import AuditorKey
from recorder.format import SUFFIX
from recorder.reader import name_of, segments_of
from recorder.seal import PublicKeys
from recorder.verify_tape import ALTERED, INCOMPLETE, UNKNOWN, VERIFIED, Fault, TapeReport, verify_tape

_EXIT: Final = {VERIFIED: 0, INCOMPLETE: 2, UNKNOWN: 3, ALTERED: 1}  # in the order of their weight
# Tapes in one run, each with a report in memory: a directory of strange files must not fill it. Ours.
TAPES_LIMIT: Final = 1_000_000


@dataclass(slots=True)
class Report:
    """What was found about a file or a directory."""

    status: str = VERIFIED
    tapes: list[TapeReport] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return _EXIT[self.status]


def verify(path: Path, keys: PublicKeys, decrypt: Sequence[AuditorKey] = ()) -> Report:
    """Check the tape that a segment file belongs to, or all tapes below a directory. Raises OSError.

    decrypt: auditors' keys; the content of encrypted tapes is checked where one of them opens it.
    """
    report = Report()
    seen: dict[tuple[str, str], str] = {}
    for first in _tapes(path):
        if len(report.tapes) < TAPES_LIMIT:
            tape = verify_tape(first, keys, decrypt)
        else:  # not silently: what was not looked at is not verified
            fault = Fault(
                UNKNOWN, str(first), 0, None, f"more than {TAPES_LIMIT} tapes; verify a part of them at a time"
            )
            tape = TapeReport(first.name, str(first), UNKNOWN, fault)
        root = seen.setdefault((tape.sid, tape.track), tape.root)
        if root != tape.root and tape.fault is None:
            tape.fault = Fault(ALTERED, tape.path, 0, None, "there is another, different tape of this session")
            tape.status = ALTERED
        report.tapes.append(tape)
        if list(_EXIT).index(tape.status) > list(_EXIT).index(report.status):
            report.status = tape.status
        if len(report.tapes) > TAPES_LIMIT:
            break
    if not report.tapes:
        report.status = UNKNOWN
    return report


def _tapes(path: Path) -> Iterator[Path]:
    """Yield one file of each tape."""
    if not path.is_dir():
        yield segments_of(path)[0]
        return
    done: set[tuple[Path, str]] = set()
    for file in sorted(path.rglob(f"*{SUFFIX}")):
        name = name_of(file)
        key = (file.parent, name[0] if name else file.name)
        if key not in done:
            done.add(key)
            yield file
