"""One session told from its tape: intents, and each command with its verdict, approval and result.

Read from the tape at the moment of asking, never from the index. Memory: as many commands as the limit says; the rest
is counted from the tape's own COMMANDS where it has them. Strings are the tape's: print them through escape.visible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from recorder.errors import Unreadable
from recorder.export import wall_time
from recorder.flows import flow_of, tells_of_file, whole
from recorder.format import GATE, USER, Kind, Record, command_entry, fields, verdict_word
from recorder.reader import TapeReader
from recorder.transcript import value_text
from recorder.warehouse_view import estimate_words

INTENTS_LIMIT: Final = 100  # ours: a session says why once or a few times
LIST_LIMIT: Final = 256  # objects, masks, approvers of a command, ours
# Of a RESULT, beside what every command has: format.py.
DETAILS: Final = (
    "exit", "signal", "sent", "how", "path", "direction", "size", "sha256", "in_order", "complete", "status",
    "content_type", "job", "state", "job_type", "statement", "dry_run", "processed", "billed", "slot_ms", "cache_hit",
    "affected", "destination", "total_rows", "partial", "rpc",
)  # fmt: skip
_OF_FILES: Final = ("path", "direction", "size", "sha256", "complete")
_MARGIN_RECORDS: Final = 100_000  # how far behind the last command its results are looked for


class View:
    """Collects what show() tells of a tape. feed() every record, then result()."""

    def __init__(self, wall0_ns: int, limit: int) -> None:
        self._wall0_ns = wall0_ns
        self._limit = limit
        self._commands: dict[int, dict[str, Any]] = {}
        self._intents: dict[str, None] = {}
        self._why: tuple[int | None, str] = (None, "")  # of the next command: its flow, and the intent
        self._held_ns: dict[int, int] = {}
        self._passed: dict[int | None, list[int]] = {}  # by flow: bytes from the user and to it, on the tape
        self._stated: dict[int, tuple[int, int]] = {}  # the same as their RESULTs say it, contents of files included
        self.count = 0
        self.last_n = 0

    @property
    def full(self) -> bool:
        return self.count > self._limit

    def feed(self, record: Record) -> None:
        match record.kind:
            case Kind.WIRE:
                self._wire(record)
            case Kind.COMMAND:
                self._command(record)
            case Kind.VERDICT:
                self._verdict(fields(record.payload))
            case Kind.APPROVAL:
                self._approval(record, fields(record.payload))
            case Kind.RESULT:
                self._result(fields(record.payload))
            case Kind.MASKMAP:
                self._maskmap(fields(record.payload))
            case Kind.INTENT:
                self._intent(fields(record.payload))
            case _:
                pass

    def result(self) -> dict[str, Any]:
        return {"intents": list(self._intents), "commands": list(self._commands.values())}

    def passed(self) -> tuple[int, int]:
        """How many bytes came from the user and went to it: what is on the tape, or what was said of it if more."""
        sums = [0, 0]
        for flow in self._passed.keys() | self._stated.keys():
            taped = self._passed.get(flow, [0, 0])
            stated = self._stated.get(flow, (0, 0)) if flow is not None else (0, 0)
            for i in (0, 1):
                sums[i] += max(taped[i], stated[i])
        return sums[0], sums[1]

    def _wire(self, record: Record) -> None:
        if record.channel != GATE:
            self._passed.setdefault(record.flow, [0, 0])[record.channel != USER] += len(record.payload)

    def _intent(self, said: Mapping[str, Any]) -> None:
        text = said.get("text")
        if isinstance(text, str):
            self._why = flow_of(said), text
            if len(self._intents) < INTENTS_LIMIT:
                self._intents[text] = None

    def _command(self, record: Record) -> None:
        self.count += 1
        if self.count > self._limit:
            return
        self.last_n = record.n
        said = fields(record.payload)
        (of, why), self._why = self._why, (None, "")
        values = said.get("values")
        n, t_ns, verb, kind, _, short = command_entry(record.n, record.t_ns, said)
        self._commands[n] = {
            "n": n, "t_ns": t_ns, "verb": verb, "kind": kind, "verdict": "", "text": short,
            "time": wall_time(self._wall0_ns + t_ns), "number": self.count, "rule": "", "reason": "", "masks": [],
            "masked": [],
            "objects": _strings(said.get("objects")), "exact": said.get("exact") is not False, "approval": None,
            "tag": "", "rows": None, "size_bytes": None, "error": None, "flow": flow_of(said), "details": {},
            "estimate": estimate_words(said.get("estimate")),
            "intent": why if of is not None and of == flow_of(said) else "",
            "values": [value_text(value) for value in values[:LIST_LIMIT]] if isinstance(values, list) else [],
        }  # fmt: skip

    def _of(self, said: Mapping[str, Any]) -> dict[str, Any] | None:
        n = said.get("command")
        return self._commands.get(n) if isinstance(n, int) else None

    def _verdict(self, said: Mapping[str, Any]) -> None:
        command = self._of(said)
        if command is not None:
            command["verdict"] = verdict_word(said)
            command["rule"], command["reason"] = str(said.get("rule", "")), str(said.get("reason", ""))
            command["masks"] = list(dict.fromkeys(_strings(said.get("masks"))))

    def _maskmap(self, said: Mapping[str, Any]) -> None:
        """Note which columns were masked, by which rules; not those that detectors looked through."""
        command = self._of(said)
        items, scanned = said.get("fields"), said.get("scanned")
        if command is None or not isinstance(items, list):
            return
        for item in items[:LIST_LIMIT]:
            match item:
                case [name, int(column), rule] if not (isinstance(scanned, list) and column in scanned):
                    command["masked"].append({"column": str(name), "rule": str(rule)})
                case _:
                    pass

    def _approval(self, record: Record, said: Mapping[str, Any]) -> None:
        command = self._of(said)
        if command is None:
            return
        state = str(said.get("state", ""))
        if state == "pending":
            self._held_ns[command["n"]] = record.t_ns
            approvers = _strings(said.get("approvers"))
            command["approval"] = {"id": str(said.get("id", "")), "state": state, "approvers": approvers}
            command["verdict"], command["rule"] = "held", str(said.get("rule", ""))
            return
        held_ns = self._held_ns.pop(command["n"], record.t_ns)
        command["approval"] = {
            **(command["approval"] or {"id": str(said.get("id", "")), "approvers": []}),
            "state": state,
            "by": str(said.get("by", "")),
            "reason": str(said.get("reason", "")),
            "seconds": round((record.t_ns - held_ns) / 1e9, 3),
        }

    def _result(self, said: Mapping[str, Any]) -> None:
        flow, sent = flow_of(said), whole(said.get("sent"))
        if flow is not None and sent >= 0:
            self._stated[flow] = sent, max(0, whole(said.get("bytes")))
        command = self._of(said)
        if command is None:
            return
        if tells_of_file(said):
            files = command["details"].setdefault("files", [])
            if len(files) < LIST_LIMIT:
                files.append({name: said[name] for name in _OF_FILES if isinstance(said.get(name), int | str)})
            return
        count, size = said.get("count"), said.get("bytes")
        command["tag"] = str(said.get("tag", "")) or command["tag"]
        command["rows"] = (command["rows"] or 0) + (count if isinstance(count, int) else 0)
        command["size_bytes"] = (command["size_bytes"] or 0) + (size if isinstance(size, int) else 0)
        details = {name: said[name] for name in DETAILS if isinstance(said.get(name), int | str)}
        command["details"] |= details
        error = said.get("error")
        if isinstance(error, dict) and command["error"] is None:
            code = error.get("code") or error.get("sqlstate") or ""
            command["error"] = {"code": str(code), "message": str(error.get("message", ""))}


def view(tape: TapeReader, limit: int, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Return intents, commands (at most limit of them), commands_count, and why there are none if there are none.

    bytes_from_user, bytes_to_user: what passed each way; None where the tape was not read to its end.

    progress is told record numbers. Raises OSError, FormatError.
    """
    seen = View(tape.header.wall0_ns, limit)
    total = tape.next_record
    encrypted = ""
    count: int | None = None
    passed: tuple[int, int] | None = None
    try:
        for record in tape.records():
            seen.feed(record)
            if progress is not None and not record.n & 0x3FF:
                progress(record.n, total)
            if seen.full and record.n > seen.last_n + _MARGIN_RECORDS:
                count = sum(1 for _ in tape.commands())
                break
        else:
            count, passed = seen.count, seen.passed()
    except Unreadable as error:
        encrypted = str(error)
        count = _sealed_count(tape)
    up, down = passed if passed is not None else (None, None)
    return {
        **seen.result(), "commands_count": count, "unreadable": encrypted, "bytes_from_user": up, "bytes_to_user": down
    }  # fmt: skip


def _sealed_count(tape: TapeReader) -> int | None:
    """How many commands the (unchecked) seals tell of; None if one does not."""
    total = 0
    for i in range(len(tape.segments)):
        seal = tape.segment(i).seal
        count = seal.body.get("commands") if seal is not None else None
        if not isinstance(count, int):
            return None
        total += count
    return total


def _strings(value: object) -> list[str]:
    return [str(item) for item in value[:LIST_LIMIT]] if isinstance(value, list) else []
