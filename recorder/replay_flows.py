"""Lists of a tape's flows: in a line each above a replay, and whole for ``gatecast replay --flows``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any, Final

from recorder.escape import clip, visible, width
from recorder.flows import Flow, Flows
from recorder.flows_find import FlowFinder
from recorder.player_screen import clock_text
from recorder.progress import ProgressLine
from recorder.reader import TapeReader
from recorder.table import paint
from recorder.wording import BOLD, DIM, duration, size

FLOWS_LISTED: Final = 8  # above a replay; more would push the session off the screen
_TEXT_CELLS: Final = 60
_HEAD: Final = ("FLOW", "BEGAN", "LENGTH", "KIND", "UP", "DOWN", "END", "WHAT")
_PROGRESS_RECORDS: Final = 1024


def flow_lines(finder: FlowFinder, newline: str, color: bool) -> str:
    """The lines above a replay: what the session's first flows are. "" if there is one at most."""
    flows, more = finder.openers(FLOWS_LISTED)
    if len(flows) + more < 2:
        return ""
    lines = [f"    flow {flow.number}  {_kind(flow)}  {_what(flow)}" for flow in flows]
    if more:
        lines.append(f"    and {more} more in the beginning alone: --flows lists them")
    return "".join((paint(line, DIM) if color else line) + newline for line in lines)


def tape_flows(tape: TapeReader, progress: ProgressLine | None = None) -> Flows:
    """Read the whole tape for its flows. Raises OSError, FormatError."""
    flows = Flows()
    total = tape.next_record
    for record in tape.records():
        flows.feed(record)
        if progress is not None and not record.n % _PROGRESS_RECORDS:
            progress(record.n, total)
    return flows


def print_flows(tape: TapeReader, *, as_json: bool) -> None:
    """Print all flows of the tape. Raises OSError, FormatError."""
    with ProgressLine("looking for flows", sys.stderr) as progress:
        flows = tape_flows(tape, progress)
    if as_json:
        json.dump([in_json(flow) for flow in flows.all()], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(flows_text(flows, color=sys.stdout.isatty()))
    sys.stdout.flush()


def in_json(flow: Flow) -> dict[str, Any]:
    """A flow as JSON can say it; what is not known is null."""
    said = asdict(flow)
    for name in ("sent_all", "received_all", "ended_ns"):
        if said[name] < 0:
            said[name] = None
    if not flow.terminal:
        said["columns"] = said["rows"] = None
    command = said.pop("n")
    return {**said, "command": command if command >= 0 else None, "up": flow.up, "down": flow.down}


def flows_text(flows: Flows, *, color: bool) -> str:
    """The table of all flows."""
    rows = [_cells(flow) for flow in flows.all()]
    if not rows:
        return "The session has no flows: it is one stream.\n"
    widths = [max(width(row[i]) for row in [_HEAD, *rows]) for i in range(len(_HEAD))]
    lines = []
    for number, row in enumerate([_HEAD, *rows]):
        line = "  ".join(cell + " " * (size - width(cell)) for cell, size in zip(row, widths, strict=True)).rstrip()
        lines.append(paint(line, BOLD) if color and not number else line)
    if flows.dropped:
        lines.append(f"and {flows.dropped} before these")
    return "\n".join([*lines, ""])


def _cells(flow: Flow) -> tuple[str, ...]:
    took = duration(flow.ended_ns - flow.t_ns) if flow.ended_ns >= 0 else ""
    end = clip(visible(flow.tag).replace("\n", " "), 20) if flow.ended_ns >= 0 else flow.verdict == "deny" and "denied"
    return (
        str(flow.number), clock_text(flow.t_ns, hours=True), took, _kind(flow), size(max(0, flow.up)),
        size(max(0, flow.down)), end or "", _what(flow),
    )  # fmt: skip


def _kind(flow: Flow) -> str:
    verb = clip(visible(flow.verb or "?").replace("\n", " "), 20)
    return f"{verb} {flow.columns}x{flow.rows}" if flow.terminal else verb


def _what(flow: Flow) -> str:
    return clip(visible(flow.text).replace("\n", " "), _TEXT_CELLS)
