"""Verification of one tape: each of its segments (verify_segment.py), then how they fit together and what is missing.

verify.py has the whole, the words and their meaning. The first fault of a tape is reported with its place and ends the
check of that tape. One thing is looked into further: of a tape whose first segments are not here (the vault has them,
or they were removed) the rest is checked all the same, and what is wrong with it comes before what is missing.

What the node's log says of the tape, if there is one, comes as a Said (verify_log.py) and is compared on the way.
Left out: several tapes (verify.py).
Source: recorder note, section 8.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from recorder.cipher import AuditorKey
from recorder.format import Header
from recorder.reader import name_of
from recorder.seal import PublicKeys
from recorder.verify_report import ALTERED, CONTENT, Fault, Said, TapeReport
from recorder.verify_report import INCOMPLETE as INCOMPLETE
from recorder.verify_report import VERIFIED as VERIFIED
from recorder.verify_segment import Bad, Missing, SegmentCheck

_END_STATUS: Final = ("closed", "failed", "crashed")
WORD_LIMIT: Final = 255  # characters: what a node's or a log's name may have (checkpoint.NAME_LIMIT)


def verify_tape(
    files: Sequence[Path],
    keys: PublicKeys,
    decrypt: Sequence[AuditorKey] = (),
    ask: Callable[[Header], Said | None] = lambda header: None,
) -> TapeReport:
    """Check the tape of these segment files; its content, too, where a key of decrypt opens it. Raises OSError.

    ask: what the node's log says of the tape with this header.
    """
    tape = TapeReport(sid_of(files[0]), str(files[0]))
    begin = partial(SegmentCheck, keys=keys, decrypt=decrypt, ask=ask)
    try:
        _check_all(tape, files, begin, 0)
    except Missing as bad:
        _note(tape, files, bad)
        if tape.segments == 1:  # its beginning: what is left may be all that has to be here, if it is genuine
            _check_rest(tape, files, begin, bad)
    except Bad as bad:
        _note(tape, files, bad)
    return tape


def sid_of(path: Path) -> str:
    """What a tape is called by the name of its file, whatever bytes that name has."""
    name = name_of(path)
    return name[0] if name else path.stem.encode(errors="backslashreplace").decode()


def _check_rest(tape: TapeReport, files: Sequence[Path], begin: Callable[..., SegmentCheck], missing: Missing) -> None:
    """Check the segments that are here of a tape whose first ones are not. What is wrong with them comes first."""
    tape.segments = tape.blocks = tape.records = tape.commands = tape.size_bytes = 0
    try:
        _check_all(tape, files, begin, missing.found)
    except Bad as bad:
        if bad.status != INCOMPLETE:
            _note(tape, files, bad)
            return
    tape.gone = True


def _note(tape: TapeReport, files: Sequence[Path], bad: Bad) -> None:
    file = files[min(tape.segments, len(files)) - 1] if tape.segments else files[0]
    tape.status = bad.status
    tape.fault = Fault(bad.status, str(file), bad.offset, bad.block, bad.reason)


def _check_all(tape: TapeReport, files: Sequence[Path], begin: Callable[..., SegmentCheck], start: int) -> None:
    """Check the segments from number start on. Raises Bad, OSError."""
    previous: SegmentCheck | None = None
    crashed = False
    unlogged = -1
    for number, file in enumerate(files, start):
        segment = begin(file, previous=previous)
        try:
            segment.check(number, start)
        finally:
            tape.segments += 1
            tape.blocks += segment.seq
            tape.records += segment.next_record - segment.first_record
            tape.commands += max(segment.commands.count, segment.commands_sealed)
            tape.content = max(tape.content, segment.content, key=CONTENT.index)
            tape.size_bytes += segment.size_bytes
            tape.node = _word(segment.header.map_.get("node", tape.node))
            tape.log = _word(segment.header.map_.get("log", tape.log))
            tape.logged = segment.said is not None
        tape.sid, tape.root = segment.header.sid, segment.root.hex()
        tape.track = _word(segment.header.map_.get("track"))
        tape.ended = sys.intern(segment.status) if segment.status in _END_STATUS else ""
        tape.ended_at = segment.ended_at
        crashed = crashed or segment.crashed
        if segment.key_id not in tape.keys:
            tape.keys.append(sys.intern(segment.key_id))
        if previous is not None and previous.status != "continued":
            raise Bad(ALTERED, 0, None, "a segment after the one that says it is the last")
        if unlogged < 0 and segment.said is not None and segment.said.seal(number) is None:
            unlogged = number
        previous = segment
    if previous is None:
        return
    if previous.said is not None and previous.said.last()[0] >= start + len(files):
        last, entry = previous.said.last()
        reason = f"segment {last}, which the node's log saw (entry {entry}), is missing"
        raise Bad(ALTERED, previous.size_bytes, None, reason)
    if previous.status == "continued":
        raise Bad(INCOMPLETE, previous.size_bytes, None, "more segments should follow: the end is missing")
    if crashed:
        raise Bad(INCOMPLETE, 0, None, "the session ended in a crash; its losses are listed in the seal")
    if unlogged >= 0:
        raise Bad(INCOMPLETE, 0, None, f"the node's log has no seal of segment {unlogged}")


def _word(value: object) -> str:
    """A word of a header, kept for the report: 100,000 tapes, few words, and none that fills the memory."""
    return sys.intern(str(value)[:WORD_LIMIT])
