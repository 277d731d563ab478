"""What the transcript of an HTTP tape keeps: one Exchange for each flow, and the count of what is folded. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from recorder.escape import TerminalFilter
from recorder.flows import Flow
from recorder.http_messages import Message
from recorder.http_view import is_json, is_text
from recorder.wording import duration, size

# Exchanges that something is remembered of: more at the same time no client has. Of each a body of VIEW_BYTES at most
# is kept each way, so 64 MiB of a hostile tape.
EXCHANGES_LIMIT: Final = 1024
VIEW_BYTES: Final = 32 * 1024  # of a body; what is longer is shown by its beginning

Stream = Literal["", "text", "events", "other"]


def _message(is_request: bool) -> Message:
    return Message(is_request, VIEW_BYTES)


@dataclass(slots=True)
class Exchange:
    """One request and its answer. n: the number of its COMMAND, -1 before it.

    held: nothing of it is shown yet, as it may be folded. stream: how its answer is shown as it comes. rest: the
    beginning of an event; passed_over: bytes of one that is too long. early: of the request, from before its COMMAND.
    """

    number: int
    n: int = -1
    label: str = ""
    verb: str = ""
    kind: str = ""
    text: str = ""
    objects: tuple[str, ...] = ()
    exact: bool = True
    values: list[str] = field(default_factory=list)  # bind values, as SQL has them
    estimate: str = ""  # what it was expected to cost, in words
    allowed_ns: int = 0
    held: bool = False
    stream: Stream = ""
    request: Message = field(default_factory=lambda: _message(True))
    response: Message = field(default_factory=lambda: _message(False))
    filter: TerminalFilter = field(default_factory=lambda: TerminalFilter(sequences=False))
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: _decoder())
    asked: tuple[codecs.IncrementalDecoder, TerminalFilter] | None = None
    rest: bytearray = field(default_factory=bytearray)
    passed_over: int = 0
    early: bytearray = field(default_factory=bytearray)
    binary: set[bool] = field(default_factory=set)

    def opened_by(self, flow: Flow, label: str) -> None:
        """Take note of its COMMAND, as a Flow has it."""
        self.n, self.label, self.allowed_ns = flow.n, label, flow.t_ns
        self.verb, self.kind, self.text, self.objects = flow.verb, flow.kind, flow.text, flow.objects

    @property
    def place(self) -> str:
        """The namespace that it is about, "" where it is about none, or all."""
        return place_of(self.objects)

    @property
    def watched(self) -> tuple[str, bool]:
        """The resource without its group, and whether it is that of all namespaces."""
        parts = self.objects[0].split("/") if self.objects else []
        return (parts[1].partition(".")[0], parts[0] == "*") if len(parts) > 1 else ("", False)

    def shown_as(self, is_request: bool) -> tuple[codecs.IncrementalDecoder, TerminalFilter, bool]:
        """What decodes and filters one of its messages, and whether that turned out to be no text."""
        if not is_request:
            return self.decoder, self.filter, False in self.binary
        if self.asked is None:
            self.asked = _decoder(), TerminalFilter(sequences=False)
        return *self.asked, True in self.binary


class Polls:
    """Counts what is not shown: discovery, and the same read again with the same outcome."""

    def __init__(self) -> None:
        self._last: tuple[int, str, tuple[str, ...], int] | None = None  # COMMAND, text, objects, status
        self._answer = 0  # a hash of the last answer
        self._told_ns = 0
        self._now_ns = 0
        self._same = 0
        self._all = 0  # of this row, told or not
        self._changes = 0
        self._requests = 0
        self._bytes = 0
        self._failed = 0

    def repeats(self, exchange: Exchange, latest: int) -> bool:
        """Whether a command may be the last one again. latest: the COMMAND that was shown last."""
        last = self._last
        return last is not None and last[0] == latest and last[1:3] == (exchange.text, exchange.objects)

    def same(self, exchange: Exchange, status: int, said: Mapping[str, Any], t_ns: int) -> bool:
        """Count an answer if it has the status of the one that was shown."""
        if self._last is None or self._last[3] != status:
            return False
        self._same += 1
        self._all += 1
        answer = _answer(said)
        self._changes += answer != self._answer
        self._answer, self._now_ns = answer, t_ns
        return True

    @property
    def worth_telling(self) -> bool:
        """Whether so many were counted that whoever watches should hear of it: 10, 100, 1000, ..."""
        digits = str(self._all)
        return len(digits) > 1 and digits.rstrip("0") == "1"

    def shown(self, exchange: Exchange, status: int, said: Mapping[str, Any], t_ns: int) -> None:
        """An exchange was shown to its end: of reads the next one may be the same."""
        self._all = 0
        self._told_ns = t_ns
        self._answer = _answer(said)
        again = exchange.kind == "read" and not exchange.stream
        self._last = (exchange.n, exchange.text, exchange.objects, status) if again else None

    def forget(self) -> None:
        """What comes next is no repetition."""
        self._last = None

    def discovered(self, exchange: Exchange, status: int) -> None:
        """Count a request of discovery."""
        self._requests += 1
        self._bytes += exchange.response.size
        self._failed += status >= 400

    def take(self, t_ns: int) -> list[str]:
        """The lines about what was counted; the count begins anew."""
        lines = []
        if self._same:
            times = "once" if self._same == 1 else f"{self._same} times"
            status = self._last[3] if self._last is not None else 0
            text = f"  ... the same {times} more, {status}, in {duration(self._now_ns - self._told_ns)}"
            if self._changes:
                changed = "once" if self._changes == 1 else f"{self._changes} times"
                text += f"; the answer changed {changed}"
            lines.append(text)
            self._told_ns, self._same, self._changes = self._now_ns, 0, 0
        if self._requests:
            noun = "request" if self._requests == 1 else "requests"
            failed = f", {self._failed} failed" if self._failed else ""
            lines.append(f"-- discovery: {self._requests} {noun}, {size(self._bytes)}{failed}")
            self._requests = self._bytes = self._failed = 0
        return lines


def stream_of(exchange: Exchange) -> Stream:
    """How the answer of an exchange is shown as it comes; "" of one that is shown when it is whole."""
    answer = exchange.response
    if exchange.verb not in ("watch", "log") or answer.status != 200:
        return ""
    if answer.get("content-encoding") not in ("", "identity"):
        return "other"
    kind = answer.content_type
    if exchange.verb == "watch":
        return "events" if is_json(kind) else "other"
    return "text" if not kind or is_text(kind) else "other"


def place_of(objects: tuple[str, ...]) -> str:
    """The namespace that the first object of a Kubernetes command is in."""
    namespace, slash, _ = objects[0].partition("/") if objects else ("", "", "")
    return namespace if slash and namespace not in ("-", "*") else ""


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


def _answer(said: Mapping[str, Any]) -> int:
    """What tells one answer from another: rows and size, as the tape has them."""
    return hash((str(said.get("rows")), str(said.get("bytes")), str(said.get("error"))))
