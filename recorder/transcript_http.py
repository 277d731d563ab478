"""The transcript of a session whose flows are exchanges of HTTP (kubernetes, bigquery): what was asked, what came.

    prod/payments$ kubectl get pods -l app=api      GET /api/v1/namespaces/payments/pods?labelSelector=...  200  31.0 ms
    | NAME           | READY | STATUS  |
    | api-7f6d-fghij | 0/1   | Running |
    (1 row, 4.1 KiB)
      ... the same 41 times more, 200, in 3 min 25 s; the answer changed 2 times
    prod/payments$ kubectl logs -f api-7f6d      GET /api/v1/namespaces/payments/pods/api-7f6d/log?follow=true  200
    a line of the log, when it came
    [200 OK, 4 min 2 s, 1.2 MiB]

A command stands behind its prompt; the request, its status and how long it took are added when the answer is there. Of
an answer its table is shown, or its error, or a short view (http_view.py). Logs and watches are shown as they come, in
their time, with a line wherever another exchange speaks. Discovery is one line for all requests in a row. Reading the
same again with the same status is counted, not shown; what differs in anything else, or writes, is shown each time.

messages=True shows the messages of HTTP as they are in the place of all that: the request's lines behind ">", those of
the answer behind "<".

Whoever begins in the middle gives ``find``, which looks up what a flow is. Text of the target passes without control
sequences. Specification: recorder/format.py, "Flows".
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from recorder.cast import Code
from recorder.escape import clip, visible, width
from recorder.flows import Find, Flow, flow_of, whole
from recorder.format import ERR, OUT, USER, Record
from recorder.http_exchange import EXCHANGES_LIMIT, Exchange, Polls, stream_of
from recorder.http_view import EVENT_LIMIT, body_lines, event_lines, object_name, problem
from recorder.transcript import OPEN_COMMANDS_LIMIT, Open, Transcript, value_text
from recorder.warehouse_view import estimate_words
from recorder.wording import DIM, RED, duration, size

# Exchanges that are looked up, of those that began before: measured, 20 ms each where the blocks are of full size.
ADOPTED_LIMIT: Final = 64
MARKER_CELLS: Final = 60  # of a command in its marker
PATH_LEAST: Final = 24  # cells of a path that are worth a place behind the command
_GAP: Final = "      "
_SGR: Final = re.compile("\x1b\\[[0-9;]*m")


class HttpTranscript(Transcript):
    """A Transcript of a tape with exchanges."""

    # Verbs whose commands are shown only where something is to be told of them.
    unseen: ClassVar[frozenset[str]] = frozenset({"discover"})

    def __init__(
        self, header: Mapping[str, Any], *, find: Find = lambda number: None, messages: bool = False, **options: Any
    ) -> None:
        """options: those of Transcript."""
        super().__init__(header, **options)
        self._find = find
        self._messages = messages
        self._adopted = 0
        self._began_late = self.count > 0  # what it is shown may be of exchanges that began before
        self._exchanges: OrderedDict[int, Exchange] = OrderedDict()  # the one that something came of last is the last
        self._commands: OrderedDict[int, Exchange] = OrderedDict()  # by their COMMAND, until their RESULT
        self._held: dict[int, Exchange] = {}  # by their COMMAND: what may be a repetition
        self._polls = Polls()
        self._line_of = -1  # the command whose line waits for its status
        self._line_cells = 0
        self._in_line = False  # the last line is not finished
        self._speaker: tuple[int, bool] = (-1, False)  # whose output came last: flow, and whether it was its request

    # -- messages -------------------------------------------------------------------------------------

    def _wire(self, record: Record) -> None:
        if record.flow is None or record.channel not in (USER, OUT, ERR):
            return
        is_request = record.channel == USER
        exchange = self._exchange(record.flow)
        message = exchange.request if is_request else exchange.response
        if not is_request and exchange.n < 0 and message.t_ns < 0 and self._began_late:
            self._adopt(exchange, record.payload)
        piece = message.feed(record.payload, record.t_ns)
        if self._messages:
            if exchange.n < 0:
                exchange.early += record.payload
            else:
                self._show_message(record.t_ns, exchange, is_request, record.payload)
        elif not is_request:
            if message.begun and not exchange.stream and exchange.n >= 0 and stream_of(exchange):
                self._begin_stream(record.t_ns, exchange)
            if exchange.stream and piece:
                self._streamed(record.t_ns, exchange, piece)

    def _exchange(self, number: int) -> Exchange:
        exchange = self._exchanges.get(number)
        if exchange is None:
            exchange = self._exchanges[number] = Exchange(number)
            if len(self._exchanges) > EXCHANGES_LIMIT:
                _, old = self._exchanges.popitem(last=False)
                self._commands.pop(old.n, None)
                self._held.pop(old.n, None)
        else:
            self._exchanges.move_to_end(number)
        return exchange

    def _adopt(self, exchange: Exchange, piece: bytes) -> None:
        """Take up an exchange that began before what is shown."""
        self._adopted += 1
        flow = self._find(exchange.number) if self._adopted <= ADOPTED_LIMIT else None
        if flow is None or flow.n < 0:
            return
        exchange.opened_by(flow, "")
        exchange.allowed_ns = flow.t_ns
        self._commands[flow.n] = exchange
        if not piece.startswith(b"HTTP/1."):
            exchange.response.broken = True
            exchange.stream = {"watch": "events", "log": "text"}.get(flow.verb, "")  # type: ignore[assignment]

    def _begin_stream(self, t_ns: int, exchange: Exchange) -> None:
        exchange.stream = stream_of(exchange)
        exchange.response.body_limit = 0
        exchange.response.body.clear()
        self._show_held(t_ns, exchange)
        self._status_line(t_ns, exchange, str(exchange.response.status))
        self._speaker = (exchange.number, False)

    def _streamed(self, t_ns: int, exchange: Exchange, piece: bytes) -> None:
        """Show what came of a log or a watch."""
        if exchange.stream == "events":
            self._events(t_ns, exchange, piece)
        elif exchange.stream == "text" and b"\0" in piece:
            exchange.stream = "other"
            self._speak(t_ns, exchange)
            number = exchange.number
            self._line(t_ns, f"-- binary output: export --format bytes --flow {number} writes it", DIM)
        elif exchange.stream == "text":
            text = exchange.filter.feed(exchange.decoder.decode(piece)).replace("\r\n", "\n")
            if text:
                self._speak(t_ns, exchange)
                self._put(t_ns, text)

    def _events(self, t_ns: int, exchange: Exchange, piece: bytes) -> None:
        exchange.rest += piece
        *lines, rest = exchange.rest.split(b"\n")
        if len(rest) > EVENT_LIMIT:
            exchange.passed_over += len(rest)
            rest = bytearray()
        exchange.rest = rest
        resource, anywhere = exchange.watched
        for line in lines:
            if exchange.passed_over:
                found = [(f"(an event of {size(exchange.passed_over + len(line))} is recorded)", False)]
                exchange.passed_over = 0
            elif line.strip():
                found = event_lines(bytes(line), resource, anywhere)
            else:
                continue
            self._speak(t_ns, exchange)
            for text, bad in found:
                self._line(t_ns, text, RED if bad else "")

    def _speak(self, t_ns: int, exchange: Exchange) -> None:
        """Say whose output follows, if it is not that of who spoke last."""
        if self._speaker != (exchange.number, False):
            label = f"{exchange.label} " if exchange.label else ""
            self._line(t_ns, f"-- {label}{_short(exchange.text)}", DIM)
            self._speaker, self._latest = (exchange.number, False), exchange.n

    def _show_message(self, t_ns: int, exchange: Exchange, is_request: bool, data: bytes) -> None:
        """Show a piece of a message as it is."""
        decoder, filter_, binary = exchange.shown_as(is_request)
        if self._speaker != (exchange.number, is_request):
            self._settle(t_ns)
            if self._speaker[0] != exchange.number:
                label = f"{exchange.label} " if exchange.label else ""
                self._line(t_ns, f"-- {label}flow {exchange.number}: {_short(exchange.text)}", DIM)
            self._speaker = (exchange.number, is_request)
        if binary or b"\0" in data:
            if not binary:
                exchange.binary.add(is_request)
                way = " --direction user" if is_request else ""
                text = f"-- binary body: export --format bytes --flow {exchange.number}{way} writes the message"
                self._line(t_ns, text, DIM)
            return
        text = filter_.feed(decoder.decode(data)).replace("\r", "")
        if text:
            mark = "> " if is_request else "< "
            marked = text[:-1].replace("\n", f"\n{mark}") + text[-1]
            self._put(t_ns, marked if self._in_line else mark + marked)

    # -- commands -------------------------------------------------------------------------------------

    def _command(self, record: Record, said: Mapping[str, Any]) -> None:
        number = flow_of(said)
        if number is None:
            self._show_all_held(record.t_ns)
            super()._command(record, said)
            return
        self.count += 1
        exchange = self._exchange(number)
        flow = Flow(number)
        flow.opened_by(record, said)
        exchange.opened_by(flow, f"Q{self.count}")
        exchange.exact = said.get("exact") is not False
        values = said.get("values")
        exchange.values = [value_text(value) for value in values] if isinstance(values, list) else []
        exchange.estimate = estimate_words(said.get("estimate"))
        self._commands[record.n] = exchange
        # As a step of what is on the screen: the same rule is not named again and again.
        self._open[record.n] = Open(exchange.label, record.t_ns, folded=True)
        if len(self._open) > OPEN_COMMANDS_LIMIT:
            self._open.popitem(last=False)
        if not self._messages:
            exchange.held = exchange.verb in self.unseen or self._polls.repeats(exchange, self._latest)
        if not exchange.held:
            self._show(record.t_ns, exchange)
        elif exchange.verb not in self.unseen:
            self._held[record.n] = exchange

    def _show(self, t_ns: int, exchange: Exchange) -> None:
        """Show the command, and before it those that might have been a repetition: something else comes in between."""
        self._held.pop(exchange.n, None)
        self._show_all_held(t_ns)
        self._present(t_ns, exchange)

    def _show_all_held(self, t_ns: int) -> None:
        held, self._held = self._held, {}
        for exchange in held.values():
            self._present(t_ns, exchange)

    def _show_held(self, t_ns: int, exchange: Exchange) -> None:
        if exchange.held:
            self._show(t_ns, exchange)

    def _present(self, t_ns: int, exchange: Exchange) -> None:
        """Put the command behind its prompt; the line waits for its status."""
        exchange.held = False
        name = exchange.objects[0] if exchange.objects else ""
        self._add(t_ns, "m", clip(visible(f"{exchange.label} {exchange.verb} {name}".rstrip()), MARKER_CELLS))
        self._latest = exchange.n
        remark = "" if exchange.exact else "   (as reconstructed)"
        place = visible(exchange.place).replace("\n", " ") if self._protocol == "kubernetes" else ""
        lines = self._statement_lines(visible(exchange.text), self._language(exchange.text), remark, place)
        self._add(t_ns, "o", self._newline.join(lines))
        self._line_of, self._line_cells, self._in_line = exchange.n, width(_SGR.sub("", lines[-1])), True
        self._speaker = (exchange.number, True)
        if exchange.values:
            self._settle(t_ns)
            self._list(t_ns, "  values: ", exchange.values, DIM)
        if exchange.estimate:
            self._line(t_ns, f"  {exchange.estimate}", DIM)
        if self._messages and exchange.early:
            self._settle(t_ns)
            self._show_message(t_ns, exchange, True, bytes(exchange.early))
            exchange.early.clear()

    def _language(self, text: str) -> str:
        """What a command is highlighted as."""
        return self._style.language if self._color else ""

    def _verdict(self, record: Record, said: Mapping[str, Any]) -> None:
        exchange = self._commands.get(whole(said.get("command")))
        if exchange is None:
            super()._verdict(record, said)
            return
        exchange.allowed_ns = record.t_ns
        if exchange.held:
            masks = said.get("masks")
            names = list(dict.fromkeys(map(str, masks))) if isinstance(masks, list) else []
            known = exchange.verb in self.unseen or (str(said.get("rule", "?")), *names) == self._allowed
            if said.get("verdict") == "allow" and known and not said.get("approval"):
                return
            self._show(record.t_ns, exchange)
        super()._verdict(record, said)
        if said.get("verdict") != "allow":
            del self._commands[exchange.n]
            self._polls.forget()

    def _approval(self, record: Record, said: Mapping[str, Any]) -> None:
        exchange = self._commands.get(whole(said.get("command")))
        if exchange is not None:
            self._show_held(record.t_ns, exchange)
        super()._approval(record, said)

    def _result(self, record: Record, said: Mapping[str, Any]) -> None:
        exchange = self._commands.pop(whole(said.get("command")), None)
        number = flow_of(said)
        if exchange is None and number is not None and self._began_late:
            exchange = self._exchange(number)
            if exchange.n < 0:
                self._adopt(exchange, b"HTTP/1.")
            exchange = exchange if exchange.n >= 0 else None
        if exchange is None:
            super()._result(record, said)
            return
        self._exchanges.pop(exchange.number, None)
        self._commands.pop(exchange.n, None)
        status = max(whole(said.get("status")), exchange.response.status)
        if exchange.held and exchange.verb == "discover":
            self._polls.discovered(exchange, status)
            return
        if exchange.held and self._polls.same(exchange, status, said, record.t_ns):
            exchange.held = False
            self._held.pop(exchange.n, None)
            if self._polls.worth_telling:
                self._summaries(record.t_ns)
            return
        self._show_held(record.t_ns, exchange)
        if exchange.stream:
            self._stream_over(record, said, exchange)
        else:
            self._answer(record, said, exchange, status)
        self._polls.shown(exchange, status, said, record.t_ns)

    def _close(self, record: Record, said: Mapping[str, Any]) -> None:
        self._show_all_held(record.t_ns)
        super()._close(record, said)

    # -- answers --------------------------------------------------------------------------------------

    def _answer(self, record: Record, said: Mapping[str, Any], exchange: Exchange, status: int) -> None:
        """Tell what came of a command."""
        t_ns = record.t_ns
        opened, prefix = self._of(said)
        tag = str(said.get("tag", ""))
        self._status_line(t_ns, exchange, str(status) if status else tag)
        if told := self._problem(said, exchange, status):
            super()._result(record, {**said, "error": told})
        elif self._messages:
            pass
        elif isinstance(said.get("columns"), list) and isinstance(said.get("rows"), list):
            if prefix:
                self._line(t_ns, f"{opened.label}:", DIM)
            self._rows(t_ns, said, opened, "")
        else:
            self._views(t_ns, exchange)
        if status and tag and not tag.startswith(str(status)):  # "broken off"
            self._line(t_ns, f"[{tag}]", RED)

    def _problem(self, said: Mapping[str, Any], exchange: Exchange, status: int) -> dict[str, Any]:
        """What went wrong, {} where nothing did: what the RESULT says of it, or else the answer."""
        error = said.get("error")
        if not isinstance(error, dict) and status < 400:
            return {}
        said_by_it = {"message": str(said.get("tag", ""))}
        told = dict(error) if isinstance(error, dict) else problem(exchange.response) or said_by_it
        return {**told, "code": str(told.get("reason") or told.get("code") or "")}

    def _views(self, t_ns: int, exchange: Exchange) -> None:
        """Short views of what was sent, and of what came."""
        name = ""
        if exchange.kind != "read":
            name = object_name(bytes(exchange.response.body)) if exchange.response.size else ""
            self._view(t_ns, body_lines(exchange.request, self._columns - 4), "  > ")
        if name:
            self._line(t_ns, f"  {name}")
        else:
            self._view(t_ns, body_lines(exchange.response, self._columns - 2), "  ")

    def _view(self, t_ns: int, lines: list[str], indent: str) -> None:
        for line in lines:
            note = line.startswith(("... ", "(")) and line is lines[-1]
            self._add(t_ns, "o", self._paint(indent + line, DIM if note else "") + self._newline)

    def _stream_over(self, record: Record, said: Mapping[str, Any], exchange: Exchange) -> None:
        """A log or a watch has ended."""
        if exchange.rest.strip():
            self._events(record.t_ns, exchange, b"\n")
        if not exchange.label:
            self._speak(record.t_ns, exchange)
        _, prefix = self._of(said)
        took = duration(record.t_ns - exchange.allowed_ns)
        told = whole(said.get("bytes"))
        amount = size(told if told >= 0 else exchange.response.size)
        tag = str(said.get("tag", "")) or "ended"
        error = said.get("error")
        if isinstance(error, dict):
            super()._result(record, said)
        # "ended early": the user has seen enough, which is how they mostly end.
        bad = isinstance(error, dict) or not tag.startswith(("2", "ended"))
        self._line(record.t_ns, f"{prefix}[{tag}, {took}, {amount}]", RED if bad else DIM)
        self._speaker = (exchange.number, True)

    def _status_line(self, t_ns: int, exchange: Exchange, status: str) -> None:
        """Add request, status and time to the command's line, or tell them on a line of their own."""
        request = exchange.request
        shown = request.begun and not self._messages
        asked = visible(f"{request.method} {request.target}") if shown else ""
        if not exchange.label:  # its command came before all that is shown
            asked = f"-- {_short(exchange.text)}"
        tail = f"  {visible(status)}  {duration(max(0, t_ns - exchange.allowed_ns))}"
        room = self._columns - self._line_cells - len(_GAP) - width(tail)
        if self._line_of == exchange.n and self._in_line and room >= min(PATH_LEAST, width(asked)):
            self._in_line = False
            text = f"{_GAP}{clip(asked, room)}{tail}"
            super()._add(t_ns, "o", self._paint(text, DIM) + self._newline)
            return
        label = "" if exchange.n == self._latest or not exchange.label else f"{exchange.label} "
        room = self._columns - 2 - len(label) - width(tail)
        self._line(t_ns, f"  {label}{clip(asked, max(1, room))}{tail}" if asked else f"  {label}{tail.strip()}", DIM)
        self._latest = exchange.n

    # -- the pieces -----------------------------------------------------------------------------------

    def _add(self, t_ns: int, code: Code, text: str) -> None:
        if code == "o" and text:
            self._settle(t_ns)
            self._summaries(t_ns)
        super()._add(t_ns, code, text)

    def _put(self, t_ns: int, text: str) -> None:
        """Show text of the target, which may end in the middle of a line."""
        if not self._in_line:
            self._summaries(t_ns)
        super()._add(t_ns, "o", text.replace("\n", self._newline))
        self._line_of = -1
        self._in_line = not text.endswith("\n")

    def _settle(self, t_ns: int) -> None:
        """Begin a new line if the last one is not finished."""
        if self._in_line:
            self._in_line = False
            super()._add(t_ns, "o", self._newline)

    def _summaries(self, t_ns: int) -> None:
        """Tell what was counted, not shown."""
        for text in self._polls.take(t_ns):
            super()._add(t_ns, "o", self._paint(clip(text, self._columns), DIM) + self._newline)


def _short(text: str) -> str:
    return clip(visible(text).replace("\n", " "), MARKER_CELLS)
