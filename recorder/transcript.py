"""A pure renderer: records of a session in, timed pieces of terminal text out, as a person would have seen the session.

A command is shown behind the prompt of its protocol, highlighted; below it the gate's word on it (allowed, held and by
whom approved, denied), the first rows of its result as a table, or its error, and the time it took. Masked cells
are inverse and name their rule. The steps in which PostgreSQL's extended protocol takes one command (phases.py) are a
line each where the text is the same as that of the step before, and the same verdict is not said again. Where the
header says that the session is a terminal's ("tty"), what the user saw is shown as it was, through the filter of
escape.py. Other bytes on the wire are not shown: export jsonl has them.

Everything that comes from the tape is made harmless before it is laid out. Sixteen colours, in plain text none.
Left out: HTML; the screens of full-screen programs beyond replaying their bytes.
"""

from __future__ import annotations

import codecs
import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from recorder.cast import Code, Piece
from recorder.escape import TerminalFilter, clip, visible, width
from recorder.format import ERR, OUT, Kind, Record, fields
from recorder.phases import Phase, Phases
from recorder.table import CELL_LIMIT, paint, table, wrapped
from recorder.wording import ALARM, BOLD, CYAN, DIM, GREEN, RED, YELLOW, duration, moment, size

if TYPE_CHECKING:
    from pygments.lexer import Lexer

# Commands whose result may still come: a pipeline's worth.
OPEN_COMMANDS_LIMIT: Final = 1024
# Of one statement, in characters: 200 lines of a terminal's 80; pygments takes 1.4 us for each (recorder note, section
# 9). The tape, and every export that is not a picture of a terminal, has it whole.
TEXT_LIMIT: Final = 16 * 1024
TEXT_LINES_LIMIT: Final = 400
VALUE_LIMIT: Final = 400  # cells of one bind value: a few lines
HIDDEN_LIMIT: Final = 8  # columns that are named of those for which there was no room


class _Style(NamedTuple):
    """How a protocol's commands look: the prompts of their first and further lines, and their language."""

    prompt: str
    more: str
    language: str = ""


# A protocol has a line here, or looks like a shell.
_STYLES: Final = {
    "postgres": _Style("{}=> ", "{}-> ", "postgresql"),
    "bigquery": _Style("bq {}> ", "  > ", "googlesql"),
    "ssh": _Style("{}$ ", "> ", "bash"),
    "kubernetes": _Style("{}$ ", "> ", "bash"),
}
_STYLE: Final = _Style("{}$ ", "> ")
_OUTCOMES: Final = {"approved": GREEN, "denied": RED, "expired": RED, "withdrawn": YELLOW}


@dataclass(slots=True)
class Open:
    """A command whose story is not over."""

    label: str
    t_ns: int
    held_ns: int = 0
    masks: dict[int, str] = field(default_factory=dict)
    masked_names: dict[int, str] = field(default_factory=dict)
    folded: bool = False  # shown as a step of a command that is on the screen


class Transcript:
    """Renders one session. feed() every record in order; the pieces come out in the order of time."""

    def __init__(
        self,
        header: Mapping[str, Any],
        *,
        columns: int = 110,
        color: bool = True,
        newline: str = "\r\n",
        done: int = 0,
        terminal: bool | None = None,
        raw: bool = False,
    ) -> None:
        """header: the tape's. newline: "\\r\\n" for terminals and casts. done: commands before the first record.

        terminal: whether a recorded terminal's cursor movements make sense where this goes; None: if there are colours.
        raw: let everything through that a recorded terminal was sent. Not safe.
        """
        self._header = header
        self._columns = columns
        self._color = color
        self._newline = newline
        self.count = done  # commands so far
        self._latest = -1
        self._open: OrderedDict[int, Open] = OrderedDict()
        self._pieces: list[Piece] = []
        self._protocol = str(header.get("protocol", ""))
        self._style = _STYLES.get(self._protocol, _STYLE)
        self._phases = Phases(self._protocol)
        self._text = ""  # of the command shown last, what was bound to it, and what was said of it
        self._values: list[str] = []
        self._allowed: tuple[str, ...] | None = None
        self._intent_shown = ""
        more = header.get("more")
        self._tty = isinstance(more, dict) and "tty" in more
        self._decoders = {channel: codecs.getincrementaldecoder("utf-8")("replace") for channel in (OUT, ERR)}
        self._raw = raw
        self._moves = color if terminal is None else terminal
        self._filter = TerminalFilter(sequences=self._moves, colors=color)

    def banner(self) -> list[Piece]:
        """Return the line that says whose session on what this is."""
        said = self._header
        identity = said.get("identity")
        identity = identity if isinstance(identity, dict) else {}
        agents = identity.get("agents")
        who = str(identity.get("subject", "?"))
        if isinstance(agents, list | tuple) and agents:
            who = f"{'/'.join(map(str, agents))} for {who}"
        more = said.get("more")
        database = more.get("database") if isinstance(more, dict) else None
        where = f"{said.get('target', '?')}/{database}" if database else said.get("target", "?")
        self._line(0, f"REC {said.get('sid', '?')}  {self._protocol}  {who} -> {where}", BOLD)
        run = f"  run {said['run']}" if said.get("run") else ""
        began = moment(said.get("wall0_ns"))
        if began or run:
            self._line(0, f"    {began}{run}", DIM)
        return [Piece(0, "o", "".join(piece.text for piece in self._take()))]

    def feed(self, record: Record) -> list[Piece]:
        """Return what the record adds."""
        if record.kind == Kind.WIRE:
            self._phases.wire(record)
            self._wire(record)
        elif record.kind == Kind.RESIZE:
            self._resize(record)
        else:
            said = fields(record.payload)
            match record.kind:
                case Kind.COMMAND:
                    self._command(record, said)
                case Kind.VERDICT:
                    self._verdict(record, said)
                case Kind.APPROVAL:
                    self._approval(record, said)
                case Kind.MASKMAP:
                    self._maskmap(said)
                case Kind.RESULT:
                    self._result(record, said)
                case Kind.INTENT:
                    self._intent(record.t_ns, str(said.get("text", "")), "flow" in said)
                case Kind.MARK:
                    self._line(record.t_ns, f"-- {said.get('label', '')}: {said.get('text', '')}", DIM)
                    self._add(record.t_ns, "m", visible(str(said.get("label", ""))))
                case Kind.CLOSE:
                    self._close(record, said)
                case _:
                    pass  # a kind of a later version: it is on the tape, and in export jsonl
        return self._take()

    def reset(self) -> str:
        """Return what puts a terminal back in order after all that was shown."""
        return self._filter.reset()

    # -- the records ----------------------------------------------------------------------------------

    def _wire(self, record: Record) -> None:
        if self._tty and record.channel in self._decoders:
            text = self._decoders[record.channel].decode(record.payload)
            harmless = self._filter.feed(text)
            text = text if self._raw else harmless
            self._add(record.t_ns, "o", text if self._moves else text.replace("\r\n", self._newline))

    def _command(self, record: Record, said: Mapping[str, Any]) -> None:
        self.count += 1
        self._latest = record.n
        opened = Open(f"Q{self.count}", record.t_ns)
        self._open[record.n] = opened
        if len(self._open) > OPEN_COMMANDS_LIMIT:
            self._open.popitem(last=False)
        verb = str(said.get("verb", ""))
        text = visible(str(said.get("text") or verb))
        items = said.get("values")
        values = [value_text(value) for value in items] if isinstance(items, list) else []
        phase, _ = self._phases.command()
        if phase in ("bind", "execute") and text == self._text:
            self._step(record.t_ns, opened, phase, values)
            return
        self._text, self._values, self._allowed = text, values, None
        self._add(record.t_ns, "m", visible(f"{opened.label} {verb}"))
        remarks = ["as reconstructed"] if said.get("exact") is False else []
        remarks += [phase] if phase in ("prepare", "bind") else []
        # What the gate says of a log-in is no statement.
        language = self._style.language if self._color and verb != "CONNECT" else ""
        self._statement(record.t_ns, text, language, "".join(f"   ({remark})" for remark in remarks))
        if values:
            self._list(record.t_ns, "  values: ", values, DIM)

    def _intent(self, t_ns: int, text: str, of_command: bool) -> None:
        """Show why; where commands repeat it, once in a row."""
        if not (of_command and text == self._intent_shown):
            self._line(t_ns, f"-- intent: {text}", CYAN)
        self._intent_shown = text

    def _step(self, t_ns: int, opened: Open, phase: Phase, values: list[str]) -> None:
        """A further step of the command that was shown last."""
        opened.folded = True
        head = f"  {opened.label} {'run' if phase == 'execute' else phase}"
        if values and values != self._values:
            self._list(t_ns, f"{head}: ", values, DIM)
        else:
            self._line(t_ns, head, DIM)
        self._values = values

    def _statement(self, t_ns: int, text: str, language: str, remark: str, place: str = "") -> None:
        """Show a command behind the prompt. place: where at the target it is, for the prompt."""
        self._add(t_ns, "o", self._newline.join([*self._statement_lines(text, language, remark, place), ""]))

    def _statement_lines(self, text: str, language: str, remark: str, place: str) -> list[str]:
        style = self._style
        first, other = style.prompt, style.more
        target = visible(str(self._header.get("target", ""))) + (f"/{place}" if place else "")
        cut = len(text) - TEXT_LIMIT
        lines = _highlight(text[:TEXT_LIMIT], language).split("\n")
        hidden = len(lines) - TEXT_LINES_LIMIT
        if hidden > 0:
            hidden += text.count("\n", TEXT_LIMIT)
            lines = [*lines[:TEXT_LINES_LIMIT], f"... {hidden} more {'line' if hidden == 1 else 'lines'} recorded"]
        elif cut > 0:
            lines.append(f"... {cut} more {'character' if cut == 1 else 'characters'} recorded")
        if remark:
            lines[-1] += self._paint(remark, DIM)
        prompts = [first.format(target)] + [other.format(target)] * (len(lines) - 1)
        return [self._paint(prompt, BOLD) + line for prompt, line in zip(prompts, lines, strict=True)]

    def _verdict(self, record: Record, said: Mapping[str, Any]) -> None:
        opened, prefix = self._of(said)
        rule = said.get("rule", "?")
        if said.get("verdict") == "allow":
            masks = said.get("masks")
            names = list(dict.fromkeys(map(str, masks))) if isinstance(masks, list) else []  # a rule has several
            mask = f" mask=[{', '.join(names)}]" if names else ""
            said_before, self._allowed = self._allowed, (str(rule), *names)
            if not (opened.folded and said_before == self._allowed and not said.get("approval")):
                self._line(record.t_ns, f"{prefix}[allow] rule={rule}{mask}", GREEN)
        else:
            self._allowed = None
            self._line(record.t_ns, f"{prefix}[DENIED] rule={rule}: {said.get('reason', '')} - not forwarded", ALARM)
            self._add(record.t_ns, "m", f"DENY {opened.label}")
        opened.t_ns = record.t_ns  # from here on it is the target's time

    def _approval(self, record: Record, said: Mapping[str, Any]) -> None:
        opened, prefix = self._of(said)
        state = str(said.get("state", ""))
        if state == "pending":
            opened.held_ns = record.t_ns
            approvers = said.get("approvers")
            needs = ", ".join(map(str, approvers)) if isinstance(approvers, list) else "?"
            text = f"{prefix}[hold] rule={said.get('rule', '?')} needs one of: {needs}  approval {said.get('id', '?')}"
            self._line(record.t_ns, text, YELLOW)
            self._add(record.t_ns, "m", f"HOLD {opened.label}")
            return
        by = f" by {said['by']}" if said.get("by") else ""
        reason = f' "{said["reason"]}"' if said.get("reason") else ""
        after = f" after {duration(record.t_ns - opened.held_ns)}" if opened.held_ns else ""
        self._line(record.t_ns, f"{prefix}[{state}]{by}{after}{reason}", _OUTCOMES.get(state, YELLOW))
        self._add(
            record.t_ns, "m", visible(" ".join(filter(None, (state.upper(), str(said.get("by") or ""), opened.label))))
        )

    def _maskmap(self, said: Mapping[str, Any]) -> None:
        opened, _ = self._of(said)
        items, scanned = said.get("fields"), said.get("scanned")
        # What a detector left alone would be called masked; what it found shows by itself (****4242).
        unmarked = scanned if isinstance(scanned, list) else []
        for item in items if isinstance(items, list) else []:
            match item:
                case [name, int(column), rule] if column not in unmarked:
                    opened.masks[column] = str(rule)
                    opened.masked_names[column] = str(name)
                case _:
                    pass

    def _result(self, record: Record, said: Mapping[str, Any]) -> None:
        opened, prefix = self._of(said)
        t = record.t_ns
        took = f"  Time: {duration(t - opened.t_ns)}"
        error = said.get("error")
        if isinstance(error, dict):
            code = error.get("code") or error.get("sqlstate") or ""
            code = f"{code}: " if code else ""
            self._line(t, f"{prefix}{error.get('severity', 'ERROR')}:  {code}{error.get('message', '')}", RED)
            for name in ("detail", "hint", "where"):
                if error.get(name):
                    self._line(t, f"{name.upper()}:  {error[name]}", RED)
            self._add(t, "m", visible(" ".join(filter(None, ("ERROR", code.rstrip(": "), opened.label)))))
            return
        columns, rows = said.get("columns"), said.get("rows")
        tag = prefix + str(said.get("tag", ""))
        if not isinstance(columns, list) or not isinstance(rows, list):
            # A COPY is shown by its size alone, so what was masked in it has to be said.
            masked = [f"{name} masked:{opened.masks[i]}" for i, name in sorted(opened.masked_names.items())]
            notes = [size(said.get("bytes"))] if "COPY" in tag and said.get("bytes") else []
            notes += [_few(masked)] if masked else []
            noted = f"  ({'; '.join(notes)})" if notes else ""
            self._line(t, tag + noted + ("" if tag.endswith("SKIPPED") else took))  # which took no time at all
            return
        if prefix:
            self._line(t, f"{opened.label}:", DIM)
        self._rows(t, said, opened, took)

    def _rows(self, t: int, said: Mapping[str, Any], opened: Open, took: str) -> None:
        """The first rows of a RESULT that has them, as a table, and how many there are."""
        columns, rows = said["columns"], said["rows"]
        count = said.get("count") if isinstance(said.get("count"), int) else 0
        lines, shown = table(columns, rows, opened.masks, self._columns, self._color)
        self._add(t, "o", self._newline.join([*lines, ""]))
        more = max(0, int(count or 0) - len(rows))
        noun = "row" if count == 1 else "rows"
        least = "at least " if said.get("partial") is True else ""
        noted = size(said.get("bytes"))
        if shown < len(columns):
            rest = [
                f"{columns[i]}" + (f" masked:{opened.masks[i]}" if i in opened.masks else "")
                for i in range(shown, len(columns))
            ]
            noted += f"; no room for {_few(rest)}"
        if more:
            self._line(t, f"  ... {least}{more} more rows recorded ({least}{count} {noun}, {noted}){took}", DIM)
        else:
            self._line(t, f"({least}{count} {noun}, {noted}){took}", DIM)

    def _resize(self, record: Record) -> None:
        try:
            match msgpack.unpackb(record.payload):
                case [int(columns), int(rows)]:
                    self._add(record.t_ns, "r", f"{columns}x{rows}")
        except (ValueError, msgpack.exceptions.UnpackException):
            pass

    def _close(self, record: Record, said: Mapping[str, Any]) -> None:
        status, reason = said.get("status", "?"), said.get("reason", "")
        text = f"-- session {status}" + (f": {reason}" if reason else "")
        self._line(record.t_ns, text, DIM if status == "closed" else RED)
        self._add(record.t_ns, "m", "CLOSE")
        self._add(record.t_ns, "x", "0" if status == "closed" else "1")

    # -- the pieces -----------------------------------------------------------------------------------

    def _of(self, said: Mapping[str, Any]) -> tuple[Open, str]:
        """Return the command that a record speaks of, and its label if it is not the one shown last."""
        number = said.get("command")
        opened = self._open.get(number) if isinstance(number, int) else None
        if opened is None:
            return Open("Q?", 0), ""
        return opened, "" if number == self._latest else f"{opened.label} "

    def _line(self, t_ns: int, text: str, sgr: str = "") -> None:
        shown = visible(text).replace("\n", self._newline + "    ")
        self._add(t_ns, "o", self._paint(shown, sgr) + self._newline)

    def _list(self, t_ns: int, head: str, items: list[str], sgr: str) -> None:
        """Lines of items, none wider than the terminal if that can be, further lines indented below the first item."""
        for line in wrapped(head, [visible(item).replace("\n", "\\n") for item in items], self._columns):
            self._add(t_ns, "o", self._paint(line, sgr) + self._newline)

    def _paint(self, text: str, sgr: str) -> str:
        return paint(text, sgr) if self._color and sgr else text

    def _add(self, t_ns: int, code: Code, text: str) -> None:
        if text:
            self._pieces.append(Piece(t_ns, code, text))

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces


def _highlight(text: str, language: str) -> str:
    """Colour a (visible) statement of a language that _lexer knows, "" for none."""
    if not language:
        return text
    from pygments.token import Comment, Keyword, Name, Number, String  # 10 ms that only a replay needs

    colours = ((Keyword, "94"), (String, "33"), (Number, "36"), (Comment, "2"), (Name.Builtin, "35"))
    out: list[str] = []
    for kind, value in _lexer(language).get_tokens(text):
        sgr = next((sgr for of, sgr in colours if kind in of), "")  # type: ignore[comparison-overlap]  # pygments' own meaning
        # Line by line: a colour must not run on behind the next prompt.
        out.append("\n".join(paint(line, sgr) if sgr and line else line for line in value.split("\n")))
    return "".join(out)


@lru_cache(maxsize=4)
def _lexer(language: str) -> Lexer:
    if language == "bash":
        from pygments.lexers.shell import BashLexer

        return BashLexer(stripnl=False, ensurenl=False)
    if language == "googlesql":
        with contextlib.suppress(ImportError):  # pygments has it from 2.19 on
            from pygments.lexers.sql import GoogleSqlLexer

            return GoogleSqlLexer(stripnl=False, ensurenl=False)
    from pygments.lexers.sql import PostgresLexer, SqlLexer

    return (PostgresLexer if language == "postgresql" else SqlLexer)(stripnl=False, ensurenl=False)


def value_text(value: object) -> str:
    """A bind value as SQL has it; a long one as its beginning, and how long it is."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = str(value)
    shown = clip(visible(text[: 2 * VALUE_LIMIT]), VALUE_LIMIT)
    cut = f" ({len(text)} characters)" if len(text) > 2 * VALUE_LIMIT or width(visible(text)) > VALUE_LIMIT else ""
    quoted = "'" + shown.replace("'", "''") + "'" if isinstance(value, str) else shown
    return quoted + cut


def _few(items: list[str]) -> str:
    rest = len(items) - HIDDEN_LIMIT
    text = ", ".join(clip(visible(item).replace("\n", " "), CELL_LIMIT) for item in items[:HIDDEN_LIMIT])
    return f"{text} and {rest} more" if rest > 0 else text
