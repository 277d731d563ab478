"""The flows of a session: what each of its streams is, how much passed on it each way, and how it ended. Pure.

A flow is opened by a COMMAND (exec, shell, subsystem, a forward), may be shown on a terminal (a RESIZE with its number
came), carries WIRE records, and ends with its command's RESULT. ``Flows`` is shown every record and keeps a Flow for
each number. ``FlowFilter`` tells which records belong to one flow, for whoever wants to see no other.

Whoever begins in the middle of a tape has not seen the beginnings: flows_find.py looks them up.
Left out: what is in the streams. Specification: recorder/format.py, "Flows".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from recorder.format import GATE, OUT, USER, Kind, Record, fields

# Flows that are remembered: a connection may open one channel after the other for days. 400 bytes each.
FLOWS_LIMIT: Final = 65_536
# Commands whose verdict or result may still come, of one filter.
COMMANDS_LIMIT: Final = 65_536
# Requests about a stream: none of them is what runs on it. format.py lists them.
BESIDE: Final = frozenset({"pty", "env", "signal", "break", "window", "x11", "auth-agent", "line"})
FORWARDS: Final = frozenset({
    "direct-tcpip", "direct-streamlocal", "forwarded-tcpip", "forwarded-streamlocal", "tun", "connect",
})  # fmt: skip


@dataclass(slots=True)
class Flow:
    """One stream. n: the number of the COMMAND that runs on it, -1 as long as there is none; t_ns: its time.

    terminal: it is shown on one, of columns x rows cells. sent, out, err: bytes of it on the tape; sent_all and
    received_all: what its RESULT says passed, contents of transfers included (-1: it does not say). ended_ns: the time
    of that RESULT, -1 before it.
    """

    number: int
    n: int = -1
    t_ns: int = 0
    verb: str = ""
    kind: str = ""
    text: str = ""
    objects: tuple[str, ...] = ()
    verdict: str = ""
    terminal: bool = False
    columns: int = 0
    rows: int = 0
    sent: int = 0
    out: int = 0
    err: int = 0
    sent_all: int = -1
    received_all: int = -1
    tag: str = ""
    ended_ns: int = -1

    @property
    def up(self) -> int:
        """Bytes from the user, as far as they are known."""
        return max(self.sent, self.sent_all)

    @property
    def down(self) -> int:
        """Bytes to the user, as far as they are known."""
        return max(self.out + self.err, self.received_all)

    @property
    def shows_text(self) -> bool:
        """Whether what it carries is for people's eyes: not that of transfers and forwards."""
        return self.kind != "transfer"

    def opened_by(self, record: Record, said: Mapping[str, Any]) -> None:
        """Take note of the COMMAND that asks to run on it."""
        self.n, self.t_ns = record.n, record.t_ns
        self.verb, self.kind = str(said.get("verb", "")), str(said.get("kind", ""))
        self.text = str(said.get("text") or self.verb)
        objects = said.get("objects")
        self.objects = tuple(map(str, objects)) if isinstance(objects, list) else ()
        self.verdict = ""

    def sized(self, record: Record) -> None:
        """Take note of a RESIZE."""
        self.terminal = True
        size = size_of(record)
        if size is not None:
            self.columns, self.rows = size

    def ended_by(self, record: Record, said: Mapping[str, Any]) -> None:
        """Take note of its command's RESULT."""
        self.ended_ns, self.tag = record.t_ns, str(said.get("tag", ""))
        self.sent_all, self.received_all = whole(said.get("sent")), whole(said.get("bytes"))


# Looks up what a flow is.
Find = Callable[[int], Flow | None]


class Flows:
    """Feeds on the records of a tape, in order, from the beginning on."""

    def __init__(self) -> None:
        self._flows: OrderedDict[int, Flow] = OrderedDict()
        self._opening: dict[int, Flow] = {}  # by the number of their COMMAND, until they end
        self.dropped = 0  # flows that were forgotten, the oldest first

    def feed(self, record: Record) -> Flow | None:
        """Return the flow that the record says something of, if any."""
        match record.kind:
            case Kind.WIRE:
                return self._wire(record)
            case Kind.RESIZE if record.flow is not None:
                flow = self.flow(record.flow)
                flow.sized(record)
                return flow
            case Kind.COMMAND:
                return self._command(record, fields(record.payload))
            case Kind.VERDICT:
                return self._verdict(fields(record.payload))
            case Kind.RESULT:
                return self._result(record, fields(record.payload))
            case _:
                return None

    def all(self) -> list[Flow]:
        """The flows, in the order of their numbers."""
        return sorted(self._flows.values(), key=lambda flow: flow.number)

    def flow(self, number: int) -> Flow:
        """The flow of that number, which may be new."""
        flow = self._flows.get(number)
        if flow is None:
            flow = self._flows[number] = Flow(number)
            if len(self._flows) > FLOWS_LIMIT:
                _, old = self._flows.popitem(last=False)
                self._opening.pop(old.n, None)
                self.dropped += 1
        return flow

    def _wire(self, record: Record) -> Flow | None:
        if record.flow is None:
            return None
        flow = self.flow(record.flow)
        size = len(record.payload)
        if record.channel == USER:
            flow.sent += size
        elif record.channel != GATE:
            if record.channel == OUT:
                flow.out += size
            else:
                flow.err += size
        return flow

    def _command(self, record: Record, said: Mapping[str, Any]) -> Flow | None:
        number = flow_of(said)
        if number is None:
            return None
        flow = self.flow(number)
        if opens(flow, said):
            flow.opened_by(record, said)
            self._opening[record.n] = flow
        return flow

    def _verdict(self, said: Mapping[str, Any]) -> Flow | None:
        flow = self._opening.get(whole(said.get("command")))
        if flow is not None:
            flow.verdict = str(said.get("verdict", ""))
            if flow.verdict != "allow":  # nothing runs on it; another command may
                del self._opening[flow.n]
        return flow

    def _result(self, record: Record, said: Mapping[str, Any]) -> Flow | None:
        if tells_of_file(said):
            return self._opening.get(whole(said.get("command")))
        flow = self._opening.pop(whole(said.get("command")), None)
        if flow is not None:
            flow.ended_by(record, said)
        return flow


class FlowFilter:
    """Tells which records belong to one flow: its own, and what is said of its commands; the tape's end, too."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._commands: OrderedDict[int, None] = OrderedDict()

    def keeps(self, record: Record) -> bool:
        """Whether the record belongs to the flow. Asked in the order of the records."""
        match record.kind:
            case Kind.WIRE | Kind.RESIZE:
                return record.flow == self.number
            case Kind.COMMAND:
                kept = flow_of(fields(record.payload)) == self.number
                if kept:
                    self._commands[record.n] = None
                    if len(self._commands) > COMMANDS_LIMIT:
                        self._commands.popitem(last=False)
                return kept
            case Kind.VERDICT | Kind.APPROVAL | Kind.RESULT | Kind.MASKMAP:
                said = fields(record.payload)
                return flow_of(said) == self.number or whole(said.get("command")) in self._commands
            case Kind.CLOSE:
                return True
            case _:
                return False


def opens(flow: Flow, said: Mapping[str, Any]) -> bool:
    """Whether a COMMAND is what is to run on the flow, as it is known so far."""
    verb = str(said.get("verb", ""))
    return (flow.n < 0 or flow.verdict == "deny") and verb not in BESIDE and not verb.startswith("file-")


def flow_of(said: Mapping[str, Any]) -> int | None:
    """The flow that a record's map names."""
    number = said.get("flow")
    return number if type(number) is int and number >= 0 else None


def tells_of_file(said: Mapping[str, Any]) -> bool:
    """Whether a RESULT is that of a file that a stream carries, not of the stream: kubectl cp has several in one."""
    return "flow" not in said and isinstance(said.get("path"), str) and isinstance(said.get("direction"), str)


def size_of(record: Record) -> tuple[int, int] | None:
    """What a RESIZE says: columns and rows."""
    try:
        match msgpack.unpackb(record.payload):
            case [int(columns), int(rows)]:
                return columns, rows
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
        pass
    return None


def whole(value: object) -> int:
    """A number of a map that may say anything; -1 of what is none."""
    return value if type(value) is int else -1
