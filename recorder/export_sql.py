"""A SQL session as a script: what the user ran, in its order, each statement with who allowed it and by which rule.

For PostgreSQL the script is one for psql (psql -X -f FILE). What was denied, withdrawn or never decided stands in it
commented out; so does what no script can repeat: the data of a COPY from the client, values that the tape has only cut.
Bind values go in by PREPARE and EXECUTE. A statement of the extended protocol appears once, where it was run.

A statement was written by the party that is being watched, and psql acts on more than SQL: a backslash begins a
command of psql's own (even a shell's), ":name" a variable, an open quote swallows all that follows. Only text that
psql provably reads as exactly one statement stands as it is; any other goes as a string through \\gexec, by which psql
sends it to the server unread (so it fails in an aborted transaction, where a plain statement might not). Characters
that a terminal would act on are escaped.

Left out: other databases' scripts than those of PROTOCOLS; results.
Source: PostgreSQL 18 docs, psql ("Meta-Commands", "SQL Interpolation"), 4.1 (lexical structure); psqlscan.l.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from recorder.escape import visible
from recorder.export_options import ExportError
from recorder.export_source import Source, wall_time
from recorder.export_steps import Step, Steps
from recorder.format import Kind
from recorder.warehouse_view import POLL, UPLOAD, is_method

PROTOCOLS: Final = ("postgres", "bigquery")
# Commands that may wait for their verdict before the oldest is written without: a pipeline's worth, and what fits.
WAITING_LIMIT: Final = 1024
WAITING_BYTES_LIMIT: Final = 32 * 1024 * 1024
CUT_TEXT_CHARACTERS: Final = 256 * 1024  # the gate tapes no more of a text (proxy/core/session.py, TEXT_LIMIT)
_BOUND_LIMIT: Final = 1024

_ELLIPSIS: Final = "…"  # ends a value that the tape has only cut
_PREPARABLE: Final = frozenset(("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES", "SELECT INTO"))
_NOT_SQL: Final = frozenset((
    "CONNECT", "REPLICATION", "FUNCTION_CALL", "EMPTY", "IDENTIFY_SYSTEM", "CREATE_REPLICATION_SLOT",
    "DROP_REPLICATION_SLOT", "ALTER_REPLICATION_SLOT", "READ_REPLICATION_SLOT", "START_REPLICATION", "TIMELINE_HISTORY",
    "BASE_BACKUP", "UPLOAD_MANIFEST",
))  # fmt: skip

_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_TOKEN: Final = re.compile(
    # Every character beyond ASCII is a letter to psql, also those that Python takes for spaces or digits.
    r"""(?P<skip>[ \t\n]+|--[^\n]*)|(?P<string>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<comment>/\*)"""
    r"""|(?P<dollar>\$(?P<tag>(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?)\$.*?\$(?P=tag)\$)"""
    r"""|(?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)|(?P<number>\$?[0-9][A-Za-z0-9_.\x80-\U0010ffff]*)"""
    r"""|(?P<colons>::|:=)|(?P<mark>[();])|(?P<other>[!#%&*+,./<=>?@\[\]^`{|}~-])""",
    re.DOTALL,
)
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")
_COPY_IN: Final = re.compile(r"\bcopy\b.*\bstdin\b", re.DOTALL | re.IGNORECASE)


def script(source: Source) -> Iterator[str]:
    """Yield the script, piece by piece. Raises ExportError for a session that spoke no SQL."""
    if source.protocol not in PROTOCOLS:
        named = visible(source.protocol) or "nameless"
        raise ExportError(f"a {named} session is no SQL session; export it as txt, jsonl or asciicast-v3")
    return _script(source)


def _script(source: Source) -> Iterator[str]:
    psql = source.protocol == "postgres"
    yield from _comment(f"session {source.tape.header.sid} on {source.protocol} target {source.target}")
    yield from _comment(f"by {source.who}; begun {wall_time(source.tape.header.wall0_ns)}")
    if source.remark:
        yield from _comment(source.remark)
    if psql:
        yield "\n\\encoding UTF8\n"
    steps = Steps(source.protocol, before=source.commands_before)
    writer = _Writer(source, psql)
    waiting: deque[Step] = deque()
    size = 0
    for record in source.records():
        step = steps.feed(record)
        if step is not None and record.kind == Kind.COMMAND:
            waiting.append(step)
            size += len(step.text)
        # In the order of the commands: an undecided one holds up those behind it, within reason.
        while waiting and (waiting[0].verdict or len(waiting) > WAITING_LIMIT or size > WAITING_BYTES_LIMIT):
            first = waiting.popleft()
            size -= len(first.text)
            yield from writer.write(first)
    for step in waiting:
        yield from writer.write(step)
    yield from ("\n", *_comment("end of the session" if not source.remark else source.remark))


class _Writer:
    """Writes one statement after the other."""

    def __init__(self, source: Source, psql: bool) -> None:
        self._wall0_ns = source.tape.header.wall0_ns
        self._psql = psql
        self._bound: Counter[int] = Counter()  # portals that were bound and not run yet, by their text

    def write(self, step: Step) -> Iterator[str]:
        """Yield the lines for a step whose verdict is known, or will not be."""
        ran = step.verdict == "allow"
        if ran and not self._psql and step.verb in (POLL, UPLOAD, "discover"):
            return
        if ran and step.phase in ("prepare", "bind"):
            if step.phase == "bind" and len(self._bound) < _BOUND_LIMIT:
                self._bound[hash(step.text)] += 1
            return
        yield "\n"
        yield from _comment(f"{step.label} {step.verb}  {wall_time(self._wall0_ns + step.t_ns)}")
        yield from _comment(_said(step))
        why_not = self._obstacle(step) if ran else "not forwarded"
        if step.values and (why_not or not self._psql):
            yield from _comment("values: " + ", ".join(_shown(value) for value in step.values))
        if why_not:
            yield from _comment(f"{why_not}:")
            yield from _comment(step.text)
        elif not self._psql:
            yield step.text.rstrip().rstrip(";") + "\n;\n"
        elif step.values:
            name = f"gatecast_{step.n}"
            values = ", ".join("NULL" if value is None else literal(str(value)) for value in step.values)
            yield statement(f"PREPARE {name} AS\n{step.text.rstrip().rstrip(';')}")
            yield f"EXECUTE {name}({values});\nDEALLOCATE {name};\n"
        else:
            yield statement(step.text)

    def _obstacle(self, step: Step) -> str:
        """Say why a statement that ran cannot be in the script; "" if it can."""
        if step.verb in _NOT_SQL or not step.exact or (not self._psql and is_method(step.text)):
            return "no statement"
        if not step.typed and step.verb == "SET":
            return "came with the login"
        if step.phase == "execute":
            if not self._bound[hash(step.text)]:
                return "goes on reading the rows of the statement before"
            self._bound[hash(step.text)] -= 1
        if len(step.text) >= CUT_TEXT_CHARACTERS:
            return "longer than what the tape has as text"
        if self._psql and _COPY_IN.search(step.text):
            return "its data came from the client"
        if not self._psql and _UNSAFE.search(step.text):
            return "holds characters that a terminal would act on"
        if self._psql and step.values:
            if step.verb not in _PREPARABLE:
                return "has bind values, but cannot be prepared"
            if any(isinstance(value, str) and (_ELLIPSIS in value) for value in step.values):
                return "has bind values that the tape has only cut"
        return ""


def statement(text: str) -> str:
    """Return the lines that make psql send this text to the server, whatever it holds."""
    if reads_as_one(text):
        return text.rstrip().rstrip(";") + "\n;\n"
    return f"SELECT {literal(text)} \\gexec\n"


def literal(text: str) -> str:
    """Return the text as a string constant that reads the same under any setting of the server and of psql."""
    if "\\" not in text and not _UNSAFE.search(text):
        return "'" + text.replace("'", "''") + "'"
    safe = text.replace("\\", "\\\\").replace("'", "''")
    return "E'" + _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", safe) + "'"


def reads_as_one(text: str) -> bool:
    """Tell whether psql certainly reads the text as one whole statement and nothing else; False when in doubt."""
    if "\\" in text or _UNSAFE.search(text):
        return False
    at = depth = 0
    ended = False
    first = ""
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return False  # an open quote, a colon before a name, a lone dollar sign
        at = token.end()
        kind = token.lastgroup if token.lastgroup != "tag" else "dollar"
        if kind == "skip":
            continue
        if kind == "comment":
            at = _comment_end(text, at)
            if at < 0:
                return False
            continue
        if ended:
            return False  # several statements
        word = token[0].lower() if kind == "word" else ""
        first = first or word or token[0]
        if word == "begin" and first == "create":
            return False  # a body in SQL: psql counts its semicolons
        if kind == "mark":
            depth += {"(": 1, ")": -1}.get(token[0], 0)
            ended = token[0] == ";"
            if depth < 0 or (ended and depth):
                return False
    return depth == 0 and first not in ("", ";")


def _comment_end(text: str, at: int) -> int:
    """Return where the comment that was opened before at ends, -1 if it does not; comments nest."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, at)
        if edge is None:
            return -1
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at


def _said(step: Step) -> str:
    by = f" by {step.by}" if step.by else ""
    word = f' "{step.word}"' if step.word else ""
    held = f"{step.state}{by}{word} (approval {step.approval}); " if step.state else ""
    if not step.verdict:
        return f"{held}no verdict is on the tape"
    reason = f": {step.reason}" if step.reason else ""
    return f"{held}{'allowed' if step.verdict == 'allow' else 'DENIED'} by rule {step.rule}{reason}"


def _shown(value: object) -> str:
    return "NULL" if value is None else literal(str(value))


def _comment(text: str) -> Iterator[str]:
    """Yield the text as comment lines; nothing in it can end the comment."""
    for line in visible(text).split("\n"):
        yield f"-- {line}".rstrip() + "\n"
