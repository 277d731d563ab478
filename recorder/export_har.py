"""An HTTP session as a HAR 1.2 file, for browsers' developer tools and other viewers of HTTP.

What such a tape holds: its flows are exchanges (header more {"http": true}; recorder/format.py, "Flows"), and each is
an entry, in the order in which they ended; its comment says what was asked for in the protocol's own words, and what
the gate said of it. A tape without flows holds each direction as one stream of messages, as on one connection (RFC
9112), so that the first response answers the first request; after an upgrade (101) the bytes are another protocol's,
and the HAR ends with it. What does not parse so is refused.

Bodies are cut at BODY_LIMIT, with their true size beside them. Values of header fields and query parameters that carry
credentials are removed, and cookies are left out altogether: a HAR is made to be passed on.

Left out: timings but waiting and receiving; bodies' content codings (they are shown as base64); trailers; HTTP/2;
streams that an upgrade began (exec, port-forward), which are tapes of their own.
Source: HAR 1.2 (softwareishard.com/blog/har-12-spec); RFC 9112, 6 and 7.
"""

from __future__ import annotations

import base64
import json
import re
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from recorder.escape import visible
from recorder.export_options import ExportError
from recorder.export_source import Source, wall_time
from recorder.flows import flow_of, tells_of_file, whole
from recorder.format import OUT, USER, VERSION, Kind, Record, fields
from recorder.http_messages import BODY_LIMIT as BODY_LIMIT
from recorder.http_messages import FIELD, REQUEST, STATUS, Message, is_http
from recorder.http_messages import HEAD_LIMIT as HEAD_LIMIT

PROTOCOLS: Final = ("kubernetes", "bigquery")
WAITING_LIMIT: Final = 1024  # requests that wait for their response: a pipeline's worth
COMMENT_LIMIT: Final = 400  # characters of a command, or of a rule's name
REMOVED: Final = "[removed]"
_SECRETFIELDS: Final = re.compile(
    r"(?i)authorization|cookie|token|secret|password|api-?key|signature|credential|uploadid"
)
_SECRET_PARAMETERS: Final = re.compile(r"(?i)token|secret|password|^key$|api_?key|sig|credential|^code$|^upload_id$")
# The address of a resumable upload lets whoever has it write there, without a token. Source: Google API docs.
_UPLOAD_ID: Final = re.compile(r"(?i)(\bupload_id=)[^&#\s]*")

# A request, its response if there is one, and what is said of them.
Pair = tuple[Message, Message | None, str]


class Messages:
    """Cuts one direction's bytes into messages."""

    def __init__(self, start: re.Pattern[str]) -> None:
        self._start = start
        self._buffer = bytearray()
        self._message: Message | None = None
        self._left = 0  # bytes of the body, or of the chunk, that are to come; -1: until the end
        self._chunks = ""  # what comes next of a chunked body: "", size, data, end, trailers
        self.done = False  # another protocol follows

    def feed(self, data: bytes, t_ns: int, methods: deque[str]) -> Iterator[Message]:
        """Yield the messages that are whole now. methods: of the requests that responses are awaited for."""
        self._buffer += data
        while self._buffer and not self.done:
            if self._message is None and not self._head(t_ns, methods):
                return
            message = self._message
            if message is None:
                continue
            message.end_ns = t_ns
            if not self._body(message):
                return
            self._message = None
            yield message

    def close(self) -> Iterator[Message]:
        """Yield the message that the end of the session ended."""
        if self._message is not None and not self.done:
            yield self._message
            self._message = None

    def _head(self, t_ns: int, methods: deque[str]) -> bool:
        """Take a message's head from the buffer, if it is all there."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > HEAD_LIMIT:
            if len(self._buffer) > HEAD_LIMIT:
                raise _not_http()
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        start, fields = self._start.fullmatch(lines[0]), [FIELD.fullmatch(line) for line in lines[1:]]
        if start is None or None in fields:
            raise _not_http()
        is_response = self._start is STATUS
        values = [(found[1], found[2]) for found in fields if found]
        message = Message(not is_response, BODY_LIMIT, start, values, end + 4, t_ns, t_ns)
        bodiless = False
        if is_response:
            status = int(start[2])
            if 100 <= status < 200 and status != 101:
                return bool(self._buffer)  # an interim response: the real one follows
            bodiless = status in (101, 204, 304) or (methods[0] if methods else "") == "HEAD"
        self._chunks, self._left = "", 0
        if bodiless:
            pass
        elif message.get("transfer-encoding").lower().endswith("chunked"):
            self._chunks = "size"
        elif length := message.get("content-length"):
            if not re.fullmatch("[0-9]{1,18}", length):
                raise _not_http()
            self._left = int(length)
        elif is_response:
            self._left = -1
        self._message = message
        return True

    def _body(self, message: Message) -> bool:
        """Take what is there of the body; True when the message is whole."""
        while self._chunks:
            if self._chunks == "data":
                if not self._take(message):
                    return False
                self._chunks = "end"
                continue
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > HEAD_LIMIT:
                    raise _not_http()
                return False
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            self._chunk_line(line)
        return self._take(message)

    def _chunk_line(self, line: bytes) -> None:
        """Handle a line between the chunks of a body. Source: RFC 9112, 7.1."""
        match self._chunks:
            case "size":
                size = line.partition(b";")[0].strip()
                if not re.fullmatch(b"[0-9a-fA-F]{1,15}", size):
                    raise _not_http()
                self._left = int(size, 16)
                self._chunks = "data" if self._left else "trailers"
            case "end":
                if line:
                    raise _not_http()
                self._chunks = "size"
            case _:  # trailers end with an empty line
                if not line:
                    self._chunks = ""

    def _take(self, message: Message) -> bool:
        part = len(self._buffer) if self._left < 0 else min(self._left, len(self._buffer))
        message.size += part
        message.body += self._buffer[: min(part, BODY_LIMIT - len(message.body))]
        del self._buffer[:part]
        if self._left < 0:
            return False
        self._left -= part
        return self._left == 0


def har(source: Source) -> Iterator[str]:
    """Yield the HAR, entry by entry. Raises ExportError for a session that did not speak HTTP."""
    if source.protocol not in PROTOCOLS and not is_http(source.said):
        named = visible(source.protocol) or "nameless"
        raise ExportError(f"a {named} session is no HTTP session; export it as jsonl or txt")
    return _har(source)


def _har(source: Source) -> Iterator[str]:
    creator = {"name": "gatecast", "version": str(VERSION)}
    yield '{"log": {"version": "1.2", "creator": ' + json.dumps(creator)
    yield ', "comment": ' + json.dumps(source.title) + ', "entries": ['
    first = True
    for request, response, comment in _exchanges(source) if is_http(source.said) else _pairs(source):
        yield ("\n" if first else ",\n") + json.dumps(_entry(source, request, response, comment))
        first = False
    yield "\n]}}\n"


class _Flow:
    """One exchange that is not over."""

    def __init__(self) -> None:
        self.request = Message(True, BODY_LIMIT)
        self.response = Message(False, BODY_LIMIT)
        self.n = -1
        self.text = ""
        self.verdict = ""

    @property
    def pair(self) -> Pair | None:
        """What is told of it, nothing if it began before the span."""
        if not self.request.begun:
            return None
        return self.request, self.response if self.response.begun else None, ": ".join(self._comment())

    def _comment(self) -> Iterator[str]:
        yield from (text for text in (visible(self.text).replace("\n", " ")[:COMMENT_LIMIT], self.verdict) if text)


def _exchanges(source: Source) -> Iterator[Pair]:
    """Yield the exchanges as they end: with their RESULT, or with the gate's own answer to what was denied."""
    flows: OrderedDict[int, _Flow] = OrderedDict()
    commands: dict[int, _Flow] = {}
    for record in source.records():
        number = _take(record, flows, commands)
        if number is None and len(flows) <= WAITING_LIMIT:
            continue
        # Of what the target failed to answer there is no RESULT: the one that was silent for longest goes.
        flow = flows.pop(number) if number is not None else flows.popitem(last=False)[1]
        commands.pop(flow.n, None)
        if (pair := flow.pair) is not None:
            yield pair
    yield from (pair for flow in flows.values() if (pair := flow.pair) is not None)


def _take(record: Record, flows: OrderedDict[int, _Flow], commands: dict[int, _Flow]) -> int | None:
    """Note what a record says; return the flow that is over with it, if one is."""
    number: int | None
    if record.kind == Kind.WIRE:
        number = record.flow
        if number is None or record.channel not in (USER, OUT):
            return None
        flow = flows.setdefault(number, _Flow())
        flows.move_to_end(number)
        (flow.request if record.channel == USER else flow.response).feed(record.payload, record.t_ns)
        return number if flow.verdict.startswith("denied") and flow.response.whole else None
    if record.kind not in (Kind.COMMAND, Kind.VERDICT, Kind.RESULT):
        return None
    said = fields(record.payload)
    if record.kind == Kind.VERDICT:
        asked = commands.get(whole(said.get("command")))
        if asked is not None:
            word = "allowed" if said.get("verdict") == "allow" else "denied"
            asked.verdict = visible(f"{word} by {said.get('rule', '?')}").replace("\n", " ")[:COMMENT_LIMIT]
        return None
    number = flow_of(said)
    if number is None or tells_of_file(said):
        return None
    if record.kind == Kind.RESULT:
        return number if number in flows else None
    flow = flows.setdefault(number, _Flow())
    flow.n, flow.text = record.n, str(said.get("text") or "")
    commands[record.n] = flow
    return None


def _pairs(source: Source) -> Iterator[Pair]:
    """Yield the messages of a tape without flows, two and two."""
    requests, responses = Messages(REQUEST), Messages(STATUS)
    waiting: deque[Message] = deque()
    methods: deque[str] = deque()
    for record in source.records():
        if record.kind != Kind.WIRE or responses.done:
            continue
        if record.flow is not None:
            raise ExportError("exec, attach and port-forward are no exchanges of HTTP; export it as txt or html")
        if record.channel == USER:
            for message in requests.feed(record.payload, record.t_ns, methods):
                waiting.append(message)
                methods.append(message.method)
                if len(waiting) > WAITING_LIMIT:
                    raise ExportError(f"more than {WAITING_LIMIT} requests wait for a response: no tape of HTTP/1.1")
        elif record.channel == OUT:
            for message in responses.feed(record.payload, record.t_ns, methods):
                if not waiting:
                    raise ExportError("a response to no request: --from a time between two requests")
                methods.popleft()
                responses.done = message.status == 101
                yield waiting.popleft(), message, ""
    for message in responses.close():
        if waiting:
            yield waiting.popleft(), message, ""
    for request in waiting:
        yield request, None, ""


def _entry(source: Source, request: Message, response: Message | None, comment: str) -> dict[str, Any]:
    end_ns = response.end_ns if response is not None else request.end_ns
    wait_ns = max(0, response.t_ns - request.end_ns) if response is not None else 0
    receive_ns = response.end_ns - response.t_ns if response is not None else 0
    return {
        "startedDateTime": wall_time(source.tape.header.wall0_ns + request.t_ns),
        "time": (end_ns - request.t_ns) / 1e6,
        "request": _request(request),
        "response": _response(response),
        "cache": {},
        "timings": {"send": (request.end_ns - request.t_ns) / 1e6, "wait": wait_ns / 1e6, "receive": receive_ns / 1e6},
        **({"comment": comment} if comment else {}),
    }


def _request(message: Message) -> dict[str, Any]:
    path, _, parameters = message.target.partition("?")
    query = [
        (name, REMOVED if _SECRET_PARAMETERS.search(name) else value)
        for name, value in parse_qsl(parameters, keep_blank_values=True)
    ]
    host = message.get("host") or "target"
    made: dict[str, Any] = {
        "method": message.method,
        "url": f"https://{host}{path}" + (f"?{urlencode(query)}" if query else ""),
        "httpVersion": _version(message, 3),
        "cookies": [],
        "headers": _fields(message),
        "queryString": [{"name": name, "value": value} for name, value in query],
        "headersSize": message.head_bytes,
        "bodySize": message.size,
    }
    if message.size:
        content = _content(message)
        made["postData"] = {"mimeType": content["mimeType"], "text": content["text"]}
        if "encoding" in content:
            made["postData"]["comment"] = "base64"
    return made


def _response(message: Message | None) -> dict[str, Any]:
    if message is None:  # HAR has no entry without a response; status 0 is what browsers write
        empty = {"size": 0, "mimeType": "x-unknown"}
        return {
            "status": 0, "statusText": "no response on the tape", "httpVersion": "", "cookies": [], "headers": [],
            "content": empty, "redirectURL": "", "headersSize": -1, "bodySize": -1,
        }  # fmt: skip
    return {
        "status": message.status,
        "statusText": (message.start[3] if message.start is not None else "") or "",
        "httpVersion": _version(message, 1),
        "cookies": [],
        "headers": _fields(message),
        "content": {"size": message.size, **_content(message)},
        "redirectURL": _UPLOAD_ID.sub(rf"\1{REMOVED}", message.get("location")),
        "headersSize": message.head_bytes,
        "bodySize": message.size,
    }


def _version(message: Message, group: int) -> str:
    return message.start[group] if message.start is not None else ""


def _fields(message: Message) -> list[dict[str, str]]:
    return [
        {"name": name, "value": REMOVED if _SECRETFIELDS.search(name) else _UPLOAD_ID.sub(rf"\1{REMOVED}", value)}
        for name, value in message.fields
    ]


def _content(message: Message) -> dict[str, str]:
    """Return a body's type, text and, for what is no text, its encoding."""
    made = {"mimeType": message.get("content-type") or "x-unknown"}
    body = bytes(message.body)
    cut = {"comment": f"cut at {BODY_LIMIT} of {message.size} bytes"} if message.size > len(body) else {}
    if not message.get("content-encoding"):
        try:
            # A character may be cut at the limit.
            return {**made, "text": body.decode("utf-8") if not cut else body.decode("utf-8", "ignore"), **cut}
        except UnicodeDecodeError:
            pass
    return {**made, "text": base64.b64encode(body).decode(), "encoding": "base64", **cut}


def _not_http() -> ExportError:
    return ExportError(
        "the bytes are not HTTP/1.1 messages (a span may begin in the middle of one); export it as jsonl"
    )
