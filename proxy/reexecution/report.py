"""The report of a re-execution: a line for each command, what differs below it, and a summary; or all of it as JSON.

Texts come from tapes and servers: none reaches a terminal but through recorder.escape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, TextIO

from proxy.reexecution.compare import Difference, Entry, Row, State
from recorder.escape import clip, visible

TEXT_CELLS: Final = 88
CELL_CELLS: Final = 40
ROW_CELLS: Final = 160

_WORDS: Final[dict[State, str]] = {
    "same": "same", "different": "DIFFERENT", "skipped": "skipped", "not-replayable": "not replayable",
    "would-run": "would run",
}  # fmt: skip
_COLOURS: Final[dict[State, str]] = {
    "same": "32", "different": "1;31", "skipped": "2", "not-replayable": "33", "would-run": "36",
}  # fmt: skip


class Report:
    """Writes entries as they come and keeps what the summary and JSON need."""

    def __init__(self, out: TextIO, *, as_json: bool, colour: bool) -> None:
        self._out = out
        self._json = as_json
        self._colour = colour
        self.states: Counter[State] = Counter()
        self._commands: list[dict[str, Any]] = []

    def begin(self, head: dict[str, Any]) -> None:
        """Say what is run where."""
        if not self._json:
            line = f"{head['session']} ({head['recorded_on']}) on {head['sandbox']}"
            self._write(visible(line) + "\n")
            for note in head.get("notes", ()):
                self._write(f"  note: {visible(note)}\n")

    def entry(self, entry: Entry) -> None:
        """Show one command."""
        self.states[entry.state] += 1
        if self._json:
            self._commands.append(as_data(entry))
            return
        number = f"{entry.command.number:>5}" if entry.command.number else "     "
        word = self._paint(f"{_WORDS[entry.state]:<14}", _COLOURS[entry.state])
        text = clip(" ".join(visible(entry.command.text).split()), TEXT_CELLS)
        self._write(f"{number}  {word}  {text}\n")
        if entry.reason:
            self._write(f"{'':23}{visible(entry.reason)}\n")
        for difference in entry.differences:
            for line in self._difference(difference):
                self._write(f"{'':23}{line}\n")
        if entry.state in ("different", "not-replayable") or entry.notes:
            for note in entry.notes:
                self._write(f"{'':23}{self._paint(visible(note), '2')}\n")

    def end(self, head: dict[str, Any], code: int, error: str = "") -> None:
        """Write the summary, or the whole of the JSON."""
        if self._json:
            import json

            summary: dict[str, Any] = {state: self.states[state] for state in _WORDS}
            data = {**head, "commands": self._commands, "summary": summary, "exit_code": code}
            if error:
                data["error"] = error
            self._write(json.dumps(data, indent=2) + "\n")
            return
        total = sum(self.states.values())
        parts = [f"{self.states[state]} {_WORDS[state].lower()}" for state in _WORDS if self.states[state]]
        self._write(f"{total} {'command' if total == 1 else 'commands'}: {', '.join(parts) or 'nothing to run'}\n")

    def _difference(self, each: Difference) -> list[str]:
        place = f" of result {each.result + 1}" if each.result else ""
        lines = [
            f"{each.what}{place}: {visible(each.recorded)} in the recording, {visible(each.sandbox)} on the sandbox"
        ]
        changed, left, right = pair_rows(each.only_recorded, each.only_sandbox)
        if each.columns and (changed or left or right):
            lines.append("  " + self._paint(clip(" | ".join(visible(name) for name in each.columns), ROW_CELLS), "4"))
        for one, two in changed:
            cells = [
                f"{visible(each.columns[i] if i < len(each.columns) else f'column {i + 1}')}: {_cell(a)} → {_cell(b)}"
                for i, (a, b) in enumerate(zip(one, two, strict=True))
                if a != b
            ]
            lines.append(self._paint(f"~ {_cell(one[0])}: {', '.join(cells)}", "33"))
        lines += [self._paint(f"- {_row(row)}", "31") for row in left]
        lines += [self._paint(f"+ {_row(row)}", "32") for row in right]
        if each.more_recorded or each.more_sandbox:
            lines.append(f"… and {each.more_recorded} more of the recording, {each.more_sandbox} of the sandbox")
        return lines

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def exit_code(states: Counter[State]) -> int:
    """0: all that ran is the same; 1: something differs; 2: something could not be replayed."""
    if states["different"]:
        return 1
    return 2 if states["not-replayable"] else 0


def pair_rows(left: Sequence[Row], right: Sequence[Row]) -> tuple[list[tuple[Row, Row]], list[Row], list[Row]]:
    """Find rows that are the same but for some cells: of equal length, with an equal first cell that none shares."""
    firsts = Counter(row[0] for side in (left, right) for row in side if row)
    others = {row[0]: row for row in right if row and firsts[row[0]] == 2}
    changed = [
        (row, others[row[0]]) for row in left if len(row) > 1 and row[0] in others and len(others[row[0]]) == len(row)
    ]
    gone = {id(row) for pair in changed for row in pair}
    return changed, [row for row in left if id(row) not in gone], [row for row in right if id(row) not in gone]


def as_data(entry: Entry) -> dict[str, Any]:
    """An entry as JSON has it."""
    command = entry.command
    data: dict[str, Any] = {
        "number": command.number,
        "record": command.record,
        "verb": command.verb,
        "text": command.text,
        "state": entry.state,
    }
    if entry.reason:
        data["reason"] = entry.reason
    if entry.notes:
        data["notes"] = entry.notes
    if entry.differences:
        data["differences"] = [_difference_data(each) for each in entry.differences]
    return data


def _difference_data(each: Difference) -> dict[str, Any]:
    data: dict[str, Any] = {
        "what": each.what,
        "result": each.result,
        "recorded": each.recorded,
        "sandbox": each.sandbox,
    }
    if each.columns:
        data["columns"] = each.columns
        data["only_recorded"], data["only_sandbox"] = each.only_recorded, each.only_sandbox
        data["more_recorded"], data["more_sandbox"] = each.more_recorded, each.more_sandbox
    return data


def _cell(cell: str | None) -> str:
    return "NULL" if cell is None else clip(" ".join(visible(cell).split()), CELL_CELLS) or "''"


def _row(row: Row) -> str:
    return clip(" | ".join(_cell(cell) for cell in row), ROW_CELLS)
