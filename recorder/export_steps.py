"""Puts the records of a session together again: one Step for each command, with its verdict, approval and result.

Pure. Steps are numbered as the transcript numbers them. A command of PostgreSQL's extended protocol is on the tape up
to three times (phases.py). What is written once should read the last and leave out the others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recorder.flows import tells_of_file
from recorder.format import Kind, Record, fields
from recorder.phases import Phase, Phases
from recorder.transcript import OPEN_COMMANDS_LIMIT
from recorder.warehouse_view import cost_words, job_words
from recorder.wording import size


@dataclass(slots=True)
class Step:
    """One command and what became of it so far. Times are those of the tape; -1: it did not happen (yet).

    typed: the user sent it as a message of its own; False for what came with the login.
    """

    n: int
    t_ns: int
    label: str
    verb: str
    kind: str
    text: str
    exact: bool = True
    phase: Phase = "run"
    typed: bool = True
    values: tuple[object, ...] = ()
    verdict: str = ""
    verdict_ns: int = -1
    rule: str = ""
    reason: str = ""
    masks: tuple[str, ...] = ()
    approval: str = ""
    approvers: tuple[str, ...] = ()
    state: str = ""
    held_ns: int = -1
    decided_ns: int = -1
    by: str = ""
    word: str = ""
    tag: str = ""
    count: int = 0
    done_ns: int = -1
    passed: str = ""  # of a transfer: how much, and the SHA-256 of it; of several files those of the first
    files: int = 0  # that a stream carried
    error: Mapping[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """One word for it: deny, error, held (waits, or was approved), allow; "" while nobody has decided."""
        if self.verdict == "deny":
            return "deny"
        if self.error:
            return "error"
        return "held" if self.state else self.verdict

    @property
    def code(self) -> str:
        """The error's own code (SQLSTATE), if there is one."""
        return self.error.get("code") or self.error.get("sqlstate") or ""


class Steps:
    """Feeds on records, gives steps; a step goes on changing as later records speak of it."""

    def __init__(self, protocol: str, *, before: int = 0, text_limit: int | None = None) -> None:
        """before: commands before the first record. text_limit: characters of a text that are kept."""
        self._phases = Phases(protocol)
        self._count = before
        self._text_limit = text_limit
        self._open: OrderedDict[int, Step] = OrderedDict()

    def feed(self, record: Record, before: int | None = None) -> Step | None:
        """Return the step that the record begins or speaks of, if any. before: commands before it, if not the last."""
        if before is not None:
            self._count = before
        if record.kind == Kind.WIRE:
            self._phases.wire(record)
            return None
        if record.kind not in (Kind.COMMAND, Kind.VERDICT, Kind.APPROVAL, Kind.RESULT):
            return None
        said = fields(record.payload)
        if record.kind == Kind.COMMAND:
            return self._command(record, said)
        number = said.get("command")
        step = self._open.get(number) if isinstance(number, int) else None
        if step is None:
            return None
        match record.kind:
            case Kind.VERDICT:
                step.verdict, step.verdict_ns = str(said.get("verdict", "")), record.t_ns
                step.rule, step.reason = str(said.get("rule", "")), str(said.get("reason", ""))
                step.masks = tuple(dict.fromkeys(_strings(said.get("masks"))))
            case Kind.APPROVAL:
                self._approval(step, record, said)
            case _:
                self._result(step, record, said)
        return step

    def _command(self, record: Record, said: Mapping[str, Any]) -> Step:
        self._count += 1
        text = str(said.get("text") or said.get("verb") or "")
        if self._text_limit is not None and len(text) > self._text_limit:
            text = text[: self._text_limit - 1] + "…"
        values = said.get("values")
        phase, typed = self._phases.command()
        step = Step(
            record.n,
            record.t_ns,
            f"Q{self._count}",
            str(said.get("verb", "")),
            str(said.get("kind", "")),
            text,
            said.get("exact") is not False,
            phase,
            typed,
            tuple(values) if isinstance(values, list) else (),
        )
        self._open[record.n] = step
        if len(self._open) > OPEN_COMMANDS_LIMIT:
            self._open.popitem(last=False)
        return step

    @staticmethod
    def _approval(step: Step, record: Record, said: Mapping[str, Any]) -> None:
        step.state, step.approval = str(said.get("state", "")), str(said.get("id", ""))
        if step.state == "pending":
            step.held_ns = record.t_ns
            step.rule = str(said.get("rule", ""))
            step.approvers = tuple(_strings(said.get("approvers")))
        else:
            step.decided_ns = record.t_ns
            step.by, step.word = str(said.get("by", "")), str(said.get("reason", ""))

    @staticmethod
    def _result(step: Step, record: Record, said: Mapping[str, Any]) -> None:
        count, error = said.get("count"), said.get("error")
        step.tag, step.done_ns = str(said.get("tag", "")), record.t_ns
        step.count = count if isinstance(count, int) else 0
        if tells_of_file(said):
            step.files += 1
            if step.files == 1:
                step.passed = f"{said['path']} {passed_text(said)}"
        elif not step.files:
            step.passed = ", ".join(filter(None, (passed_text(said), job_text(said))))
        if isinstance(error, dict):
            step.error = {str(key): str(value) for key, value in error.items()} or {"message": ""}


def job_text(said: Mapping[str, Any]) -> str:
    """What a RESULT of BigQuery says of its job and its cost; "" of what has none."""
    words = job_words(said) if said.get("job") else str(said.get("rpc") or "")
    return ", ".join(filter(None, (words.replace("  ", " "), cost_words(said)))) if words else ""


def passed_text(said: Mapping[str, Any]) -> str:
    """What a RESULT says of the content that passed: its size and hash; "" of what was no transfer."""
    amount = said.get("size")
    if not isinstance(amount, int) or not said.get("direction"):
        return ""
    notes = [f"{said['direction']} {size(amount)}"]
    if said.get("sha256"):
        notes.append(f"sha256 {said['sha256']}")
    notes += ["not in order"] if said.get("in_order") is False else []
    notes += ["not complete"] if said.get("complete") is False else []
    return ", ".join(notes)


def _strings(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []
