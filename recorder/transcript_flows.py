"""The transcript of a session that is several streams at once (ssh): terminals as they were, all else as text.

    shop$ uptime                               a command that runs, and what the gate said of it
    [allow] rule=ops
     10:00:03 up 12 days                       what it printed, as it came; its errors in another colour
    [exit 1, 1.20 s, 3.4 KiB]
    put /srv/app.tar.gz  12.4 MiB  sha256 1a2b3c4d5e6f  812.0 ms       a file command is one line, when it is over
    forward db.internal:5432  (12.0 KiB up, 3.1 MiB down, 4 min 2 s)

On a screen, a flow that is shown on a terminal has the screen to itself from its first output to its end, raw but for
the filter of escape.py. Lines typed on it are markers, as what they made is on the screen anyway. What else happened
on the connection meanwhile is told when it ends. Of terminals at the same time the one that has the screen keeps it;
any of them is to be seen with FlowFilter. Where there is no screen (text exports), everything is text in the order of
time, with a line wherever the flow changes.

Whoever begins in the middle gives ``find``, which looks up what a flow is. What programs printed beside the gate's own
lines passes without control sequences: it must not be able to rewrite them. Of transfers and forwards the bytes are
not shown, and of other binary output it is said that there is some.
"""

from __future__ import annotations

import codecs
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from recorder.cast import Code
from recorder.escape import TerminalFilter, clip, visible
from recorder.flows import FORWARDS, Find, Flow, flow_of, opens, size_of, tells_of_file, whole
from recorder.format import ERR, OUT, Record
from recorder.http_exchange import place_of
from recorder.http_messages import is_http
from recorder.table import paint
from recorder.transcript import OPEN_COMMANDS_LIMIT, Open, Transcript
from recorder.transcript_bigquery import WarehouseTranscript
from recorder.transcript_http import HttpTranscript
from recorder.wording import ALARM, DIM, OTHER, RED, duration, size

# Streams that something is remembered of; a view is 2 KB. More at the same time no sshd allows (MaxSessions is 10).
VIEWS_LIMIT: Final = 1024
LATER_LIMIT: Final = 400  # lines kept until a terminal is off the screen: a few screens full; the rest is counted
MARKER_CELLS: Final = 60  # of a command in its marker
SHA256_SHOWN: Final = 12  # digits: enough to compare by eye; sessions show and the exports have all

_Style = Literal["runs", "file", "forward", "line", "quiet", "note"]

_QUIET: Final = frozenset({"pty", "env", "window"})
_FILES: Final = {
    "file-read": "get", "file-write": "put", "file-list": "ls", "file-stat": "stat", "file-readlink": "readlink",
    "file-remove": "rm", "file-rmdir": "rmdir", "file-rename": "rename", "file-mkdir": "mkdir",
    "file-setstat": "setstat", "file-link": "link", "file-copy": "copy", "file-statvfs": "df",
}  # fmt: skip
_RUNS: Final = frozenset({
    "exec", "shell", "subsystem", "CONNECT", "attach", "debug", "copy-in", "copy-out", "portforward",
})  # fmt: skip


@dataclass(slots=True)
class _View:
    """What is kept of a stream while it is shown."""

    flow: Flow
    filter: TerminalFilter
    decoders: dict[int, codecs.IncrementalDecoder] = field(default_factory=dict)
    label: str = ""
    allowed_ns: int = 0
    binary: bool = False
    unseen: bool = False  # a terminal that another one kept off the screen


@dataclass(slots=True)
class _Entry:
    """A command whose story is not over. text: as it is shown; allowed_ns: from then on it was the target's time."""

    style: _Style
    text: str
    label: str
    allowed_ns: int
    view: _View | None = None


class FlowTranscript(Transcript):
    """A Transcript of a tape with flows."""

    def __init__(
        self,
        header: Mapping[str, Any],
        *,
        screen: bool = True,
        find: Find = lambda number: None,
        owner: int | None = None,
        **options: Any,
    ) -> None:
        """screen: one terminal at a time has it all. owner: the flow that has it where this begins.

        options: those of Transcript.
        """
        super().__init__(header, **options)
        self._screen = screen
        self._find = find
        self._owner: int | None = owner  # the flow that has the screen
        self._views: OrderedDict[int, _View] = OrderedDict()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._later: list[tuple[int, str]] = []
        self._too_late = 0  # lines that there was no room for
        self._in_line = False  # a program's output ended in the middle of a line
        self._speaker: int | None = None  # the flow that printed last, or whose command was shown last

    def reset(self) -> str:
        """Return what puts a terminal back in order after all that was shown."""
        view = self._views.get(self._owner) if self._owner is not None else None
        return view.filter.reset() if view is not None else super().reset()

    def has_screen(self, number: int | None) -> bool:
        """Whether that flow is a terminal that has the screen."""
        return number is not None and self._owner == number

    # -- streams --------------------------------------------------------------------------------------

    def _wire(self, record: Record) -> None:
        if record.flow is None or record.channel not in (OUT, ERR):
            return
        view = self._view(record.flow)
        if self._screen and view.flow.terminal:
            self._on_screen(record, view)
        elif view.flow.shows_text or record.channel == ERR:
            self._as_text(record, view)

    def _on_screen(self, record: Record, view: _View) -> None:
        number = view.flow.number
        if self._owner is None:
            if view.unseen:
                self._line(record.t_ns, f"-- flow {number} goes on; --flow {number} shows what it did before", DIM)
            self._settle(record.t_ns)
            self._owner = self._speaker = number
        elif self._owner != number:
            view.unseen = True
            return
        text = self._decoded(record, view)
        harmless = view.filter.feed(text)
        self._put(record.t_ns, text if self._raw else harmless)

    def _as_text(self, record: Record, view: _View) -> None:
        if not view.flow.terminal and (view.binary or b"\0" in record.payload):
            if not view.binary:
                view.binary = True
                number = view.flow.number
                self._speak(record.t_ns, view)
                self._line(record.t_ns, f"-- binary output: export --format bytes --flow {number} writes it", DIM)
            return
        if self._owner is not None:  # only how much it was is told, when it ends
            return
        text = view.filter.feed(self._decoded(record, view)).replace("\r\n", "\n")
        if not text:
            return
        self._speak(record.t_ns, view)
        if record.channel == ERR and self._color:
            text = "\n".join(paint(line, OTHER) if line else line for line in text.split("\n"))
        self._put(record.t_ns, text.replace("\n", self._newline))
        self._in_line = not text.endswith("\n")

    def _decoded(self, record: Record, view: _View) -> str:
        decoder = view.decoders.get(record.channel)
        if decoder is None:
            decoder = view.decoders[record.channel] = codecs.getincrementaldecoder("utf-8")("replace")
        return decoder.decode(record.payload)

    def _speak(self, t_ns: int, view: _View) -> None:
        """Say whose output follows, if it is not that of who spoke last."""
        flow = view.flow
        if self._speaker != flow.number:
            label = f"{view.label} " if view.label else ""
            text = clip(visible(flow.text).replace("\n", " "), MARKER_CELLS)
            self._line(t_ns, f"-- {label}flow {flow.number}: {text}".rstrip(": "), DIM)
            self._speaker, self._latest = flow.number, flow.n

    def _view(self, number: int) -> _View:
        view = self._views.get(number)
        if view is None:
            flow = self._find(number) or Flow(number)
            moves = self._moves and self._screen and flow.terminal
            view = _View(flow, TerminalFilter(sequences=moves, colors=self._color and moves), allowed_ns=flow.t_ns)
            self._views[number] = view
            if len(self._views) > VIEWS_LIMIT:
                oldest = next(key for key in self._views if key != self._owner)
                del self._views[oldest]
        return view

    def _resize(self, record: Record) -> None:
        if record.flow is None:
            super()._resize(record)
            return
        view = self._view(record.flow)
        if not view.flow.terminal:
            moves = self._moves and self._screen
            view.filter = TerminalFilter(sequences=moves, colors=self._color and moves)
        view.flow.sized(record)
        found = size_of(record)
        if self._owner in (None, record.flow) and found is not None:
            self._add(record.t_ns, "r", f"{found[0]}x{found[1]}")

    # -- commands -------------------------------------------------------------------------------------

    def _command(self, record: Record, said: Mapping[str, Any]) -> None:
        number = flow_of(said)
        verb = str(said.get("verb", ""))
        self.count += 1
        label = f"Q{self.count}"
        view = self._view(number) if number is not None else None
        # What was looked up knows its command before it comes.
        if view is not None and (view.flow.n == record.n or opens(view.flow, said)):
            view.flow.opened_by(record, said)
            view.label, view.allowed_ns = label, record.t_ns
        style = _style(verb)
        entry = _Entry(style, _described(style, verb, said), label, record.t_ns, view)
        self._entries[record.n] = entry
        self._open[record.n] = Open(label, record.t_ns)
        for kept in (self._entries, self._open):
            if len(kept) > OPEN_COMMANDS_LIMIT:
                kept.popitem(last=False)
        words = clip(entry.text.replace("\n", " "), MARKER_CELLS)
        named = style != "runs" or words == verb  # by itself: "Q5 put /srv/app"
        self._add(record.t_ns, "m", f"{label} {words}" if named else visible(f"{label} {verb} {words}"))
        if style == "runs":
            self._latest = record.n
            self._speaker = number if number is not None else self._speaker
            remark = "   (as reconstructed)" if said.get("exact") is False else ""
            self._statement(record.t_ns, entry.text, self._language(verb), remark, self._place(said))

    def _language(self, verb: str) -> str:
        shell = verb == "exec" or self._protocol == "kubernetes"
        return self._style.language if self._color and shell else ""

    def _place(self, said: Mapping[str, Any]) -> str:
        """The namespace for the prompt, visible."""
        objects = said.get("objects")
        if self._protocol != "kubernetes" or not isinstance(objects, list):
            return ""
        return visible(place_of(tuple(map(str, objects[:1])))).replace("\n", " ")

    def _verdict(self, record: Record, said: Mapping[str, Any]) -> None:
        entry = self._entry(said)
        if entry is None or entry.style == "runs":
            if entry is not None and entry.view is not None:
                entry.view.flow.verdict = str(said.get("verdict", ""))
                entry.view.allowed_ns = record.t_ns
            self._ran(record, said)
            return
        entry.allowed_ns = record.t_ns
        if said.get("verdict") != "allow":
            text = f"[DENIED] {entry.text}  rule={said.get('rule', '?')}: {said.get('reason', '')} - not forwarded"
            self._say(entry, record.t_ns, text, ALARM)
            self._add(record.t_ns, "m", f"DENY {entry.label}")
        elif entry.style == "forward":
            self._say(entry, record.t_ns, f"{entry.text}  [allow] rule={said.get('rule', '?')}", DIM)
        elif entry.style == "note":
            self._say(entry, record.t_ns, f"-- {entry.text}", DIM)

    def _ran(self, record: Record, said: Mapping[str, Any]) -> None:
        """The gate's word on a command that has a prompt; the same rule is not named again and again."""
        masks = said.get("masks")
        names = list(dict.fromkeys(map(str, masks))) if isinstance(masks, list) else []
        word = (str(said.get("rule")), *names)
        if said.get("verdict") == "allow" and word == self._allowed and not said.get("approval"):
            self._of(said)[0].t_ns = record.t_ns
            return
        super()._verdict(record, said)
        self._allowed = word if said.get("verdict") == "allow" else None

    def _approval(self, record: Record, said: Mapping[str, Any]) -> None:
        entry = self._entry(said)
        if entry is not None and entry.style != "runs" and said.get("state") == "pending":
            self._say(entry, record.t_ns, f"{entry.label} {entry.text}", DIM)
            self._latest = whole(said.get("command"))
        if entry is not None and self._shows_itself(entry):
            self._quietly(super()._approval, record, said)
        else:
            super()._approval(record, said)

    def _result(self, record: Record, said: Mapping[str, Any]) -> None:
        number, command = flow_of(said), whole(said.get("command"))
        if tells_of_file(said) and (of := self._entries.get(command)) is not None and of.style == "runs":
            self._file(record, said, of)
            return
        view = self._view(number) if number is not None else None
        entry = self._entries.pop(command, None)
        if view is not None and view.flow.n == command:
            self._ended(record, said, view)
            return
        error = said.get("error")
        if entry is not None and entry.style == "file" and isinstance(error, dict):
            code = str(error.get("code") or "")
            self._say(entry, record.t_ns, f"{entry.text}  ERROR {code}: {error.get('message', '')}", RED)
            self._add(record.t_ns, "m", visible(" ".join(filter(None, ("ERROR", code, entry.label)))))
            return
        if entry is None or isinstance(error, dict) or entry.style == "runs":
            if entry is not None and self._shows_itself(entry):
                self._quietly(super()._result, record, said)
            elif entry is None or entry.style != "line":
                super()._result(record, said)
            return
        if entry.style == "file":
            took = f"  {duration(record.t_ns - entry.allowed_ns)}"
            self._say(entry, record.t_ns, f"{_transfer(entry.text, said)}{took}", "")
        elif entry.style == "forward":  # one that has no stream of its own: a port that was listened on
            self._say(entry, record.t_ns, f"{entry.text}  {said.get('tag', '')}".rstrip(), DIM)

    def _file(self, record: Record, said: Mapping[str, Any], entry: _Entry) -> None:
        """A file that a stream carried."""
        word = "put" if said["direction"] == "upload" else "get"
        prefix = "" if entry.view is None or self._speaker == entry.view.flow.number else f"{entry.label} "
        kind = str(said.get("tag") or "file")  # of what is in a tar: "directory", "symlink"
        text = visible(f"{word} {said['path']}" + (f"  ({kind})" if kind != "file" else "")).replace("\n", " ")
        self._say(entry, record.t_ns, f"{prefix}{_transfer(text, said)}", "")

    def _ended(self, record: Record, said: Mapping[str, Any], view: _View) -> None:
        """What ran on a stream is over."""
        flow, t_ns = view.flow, record.t_ns
        flow.ended_by(record, said)
        had_screen = self._owner == flow.number
        if had_screen:
            self._give_back(t_ns)
        took = duration(t_ns - view.allowed_ns)
        error = said.get("error")
        if isinstance(error, dict):
            super()._result(record, said)
        elif flow.verb in FORWARDS:
            amounts = f"{size(max(0, flow.up))} up, {size(max(0, flow.down))} down"
            self._line(t_ns, f"{_described('forward', flow.verb, _said(flow))}  ({amounts}, {took})", DIM)
        else:
            prefix = "" if self._speaker == flow.number or had_screen or not view.label else f"{view.label} "
            amounts = size(max(0, flow.down))
            if flow.kind == "transfer":
                amounts = f"{size(max(0, flow.up))} up, {amounts} down"
            bad = whole(said.get("exit")) > 0 or bool(said.get("signal"))
            self._line(t_ns, f"{prefix}[{flow.tag or 'closed'}, {took}, {amounts}]", RED if bad else DIM)
        if had_screen:
            self._tell_later(t_ns)
        self._views.pop(flow.number, None)

    def _close(self, record: Record, said: Mapping[str, Any]) -> None:
        if self._owner is not None:
            self._give_back(record.t_ns)
            self._tell_later(record.t_ns)
        super()._close(record, said)

    # -- the screen -----------------------------------------------------------------------------------

    def _give_back(self, t_ns: int) -> None:
        """The terminal that has the screen is over."""
        reset = self.reset()
        self._owner = None
        self._put(t_ns, reset + self._newline)
        self._in_line = False

    def _tell_later(self, t_ns: int) -> None:
        """Tell what happened on other streams meanwhile."""
        later, self._later = self._later, []
        if later:
            self._line(t_ns, "-- meanwhile on this connection:", DIM)
            super()._add(t_ns, "o", "".join(text for _, text in later))
        if self._too_late:
            self._line(t_ns, f"-- and {self._too_late} more lines", DIM)
        self._too_late = 0

    def _say(self, entry: _Entry, t_ns: int, text: str, sgr: str) -> None:
        if not self._shows_itself(entry):
            self._line(t_ns, text, sgr)

    def _shows_itself(self, entry: _Entry) -> bool:
        """Whether what became of a command is on the terminal that has the screen."""
        return entry.view is not None and self._owner == entry.view.flow.number

    def _quietly(
        self, tell: Callable[[Record, Mapping[str, Any]], None], record: Record, said: Mapping[str, Any]
    ) -> None:
        """Let it be told, but keep nothing of it but the markers."""
        later, too_late = list(self._later), self._too_late
        tell(record, said)
        self._later, self._too_late = later, too_late

    def _add(self, t_ns: int, code: Code, text: str) -> None:
        if code != "o" or not text:
            super()._add(t_ns, code, text)
        elif self._owner is None:
            self._settle(t_ns)
            super()._add(t_ns, code, text)
        elif len(self._later) < LATER_LIMIT:
            self._later.append((t_ns, text))
        else:
            self._too_late += 1

    def _settle(self, t_ns: int) -> None:
        """Begin a new line if the last one is not finished."""
        if self._in_line:
            self._in_line = False
            super()._add(t_ns, "o", self._newline)

    def _put(self, t_ns: int, text: str) -> None:
        """Show what a program printed."""
        super()._add(t_ns, "o", text)

    def _entry(self, said: Mapping[str, Any]) -> _Entry | None:
        return self._entries.get(whole(said.get("command")))


def transcript_of(
    header: Mapping[str, Any],
    *,
    screen: bool = True,
    find: Find = lambda number: None,
    owner: int | None = None,
    messages: bool = False,
    **options: Any,
) -> Transcript:
    """Return the transcript for a tape with this header; the arguments are those of FlowTranscript.

    messages: of a tape of HTTP, show the messages as they are.
    """
    if is_http(header):
        kind = WarehouseTranscript if header.get("protocol") == "bigquery" else HttpTranscript
        return kind(header, find=find, messages=messages, **options)
    if has_flows(header):
        return FlowTranscript(header, screen=screen, find=find, owner=owner, **options)
    return Transcript(header, **options)


def has_flows(header: Mapping[str, Any]) -> bool:
    """Whether the session is several streams: ssh and kubernetes, unless its header says that it is one terminal."""
    more = header.get("more")
    several = header.get("protocol") in ("ssh", "kubernetes") or is_http(header)
    return several and not (isinstance(more, dict) and "tty" in more)


def _style(verb: str) -> _Style:
    if verb in _RUNS:
        return "runs"
    if verb == "line":
        return "line"
    if verb in _FILES:
        return "file"
    if verb in FORWARDS or verb.endswith("-forward"):
        return "forward"
    return "quiet" if verb in _QUIET else "note"


def _described(style: _Style, verb: str, said: Mapping[str, Any]) -> str:
    """What a command is called, visible."""
    objects = said.get("objects")
    names = [str(name) for name in objects] if isinstance(objects, list | tuple) else []
    text = str(said.get("text") or verb)
    if style == "file" and text.startswith(f"{verb} "):  # which says more than the paths: modes, other names
        text = _FILES[verb] + text[len(verb) :]
    elif style == "file" and names:
        text = f"{_FILES[verb]} {' -> '.join(names)}"
    elif style == "forward" and names and verb != "connect":  # whose text has the port, too
        word = "listen" if verb.endswith("-forward") else "forward from" if verb.startswith("forwarded") else "forward"
        text = f"{word} {' '.join(names)}"
    return visible(text)


def _said(flow: Flow) -> Mapping[str, Any]:
    return {"objects": flow.objects, "text": flow.text}


def _transfer(text: str, said: Mapping[str, Any]) -> str:
    """The line of a file command that is over: with how much and what, if content passed."""
    notes = [text]
    if whole(said.get("size")) >= 0 and said.get("direction"):
        notes.append(size(said["size"]))
        if said.get("sha256"):
            notes.append(f"sha256 {str(said['sha256'])[:SHA256_SHOWN]}")
        elif said.get("in_order") is False:
            notes.append("not in order: no sha256")
        if said.get("complete") is False:
            notes.append("not complete")
    return "  ".join(notes)
