"""Sessions and commands laid out for a terminal. Everything that comes from a tape is made visible first.

Colours are the sixteen of every terminal, and none where the output is none or NO_COLOR is set (no-color.org).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

from proxy.core.text import fields, labelled, table
from recorder.escape import clip, visible, width
from recorder.table import paint
from recorder.warehouse_view import cost_words, job_words
from recorder.wording import size

_GREEN, _RED, _YELLOW, _DIM, _BOLD = "32", "31", "33", "2", "1"
_HIT: Final = "1;4"  # bold, underlined: seen on any background
_SHORT_SID: Final = 14  # the time and 20 bits of chance: enough to name one, and find_tape says if it is not
_PLAIN_COLUMNS: Final = 160  # of a line that is not for a terminal
_TEXT_COLUMNS: Final = 24  # the least that a text gets
# What protocols tell of a user's coming, in the header of the tape.
_TOLD: Final = (
    ("login by", "proof"), ("from", "peer"), ("with", "client"), ("client", "application_name"),
    ("database", "database"), ("login", "login"),
)  # fmt: skip
_USUAL: Final = ("closed", "failed")  # how a tape should end


@dataclass(frozen=True, slots=True)
class Paper:
    """What is written on: so many columns, with colours or without."""

    columns: int = _PLAIN_COLUMNS
    color: bool = False

    @classmethod
    def of(cls, out: TextIO) -> Paper:
        if not out.isatty():
            return cls()
        return cls(shutil.get_terminal_size().columns, not os.environ.get("NO_COLOR"))

    def paint(self, text: str, sgr: str) -> str:
        """Colour a text."""
        return paint(text, sgr) if self.color and sgr else text


def list_text(rows: Sequence[Mapping[str, Any]], paper: Paper) -> str:
    """The table of sessions list."""
    if not rows:
        return "No session is recorded here.\n"
    head = ("SESSION", "STARTED", "LENGTH", "STATUS", "COMMANDS", "TARGET", "FOR")
    lines = table(head, [_session_cells(row) for row in rows]).splitlines()
    return "\n".join([paper.paint(lines[0], _BOLD), *lines[1:]]) + "\n"


def _session_cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of a row; a file that is no tape has an error in place of all else."""
    if "error" in row:
        return [str(row["sid"]), "", "", "unreadable", "", "", str(row["error"])]
    count = row["commands_count"]
    length = f"{row['seconds']:.1f} s" if row["seconds"] < 120 else f"{row['seconds'] / 60:.0f} min"
    started = f"{row['started'][:19]}Z"
    cells = [row["sid"], started, length, row["status"], _commands_cell(row, count), row["target"], who_of(row)]
    return [visible(str(cell)) for cell in cells]


def _commands_cell(row: Mapping[str, Any], count: int | None) -> str:
    notes = [f"{row[name]} {name}" for name in ("denied", "held") if row.get(name)]
    shown = "" if count is None else str(count)
    return f"{shown} ({', '.join(notes)})" if notes else shown


def who_of(row: Mapping[str, Any]) -> str:
    """``agent for subject``, or the subject alone."""
    agents = "/".join(map(str, row.get("agents") or ()))
    return f"{agents} for {row['subject']}" if agents else str(row["subject"])


def commands_line(row: Mapping[str, Any]) -> str:
    """What to type next to see a command in its place."""
    return f"gatecast replay {row['sid']} --command {row['number']}"


def search_text(rows: Sequence[Mapping[str, Any]], limit: int, paper: Paper) -> str:
    """One line a command: when, in which session, by whom, what became of it, and its text with the hit."""
    if not rows:
        return "No command that is indexed is so.\n"
    cells = [_command_cells(row) for row in rows]
    widths = [max(width(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = []
    for row, line in zip(rows, cells, strict=True):
        padded = [cell + " " * (size - width(cell)) for cell, size in zip(line, widths, strict=True)]
        padded[4] = paper.paint(padded[4], _verdict_color(row["verdict"]))
        used = sum(widths) + 2 * len(widths)
        lines.append("  ".join([*padded, _text_cell(row, max(_TEXT_COLUMNS, paper.columns - used), paper)]))
    if len(rows) >= limit:
        lines.append(paper.paint(f"The newest {limit} are shown; --limit N shows more.", _DIM))
    lines.append(paper.paint(f"See one in its place, as this: {commands_line(rows[0])}", _DIM))
    return "\n".join(lines) + "\n"


def _command_cells(row: Mapping[str, Any]) -> list[str]:
    time = f"{row['time'][:19]}Z".replace("T", " ")
    session = str(row["sid"])[:_SHORT_SID]
    who = clip(visible(who_of(row)).replace("\n", " "), 32)
    target = clip(visible(str(row["target"])).replace("\n", " "), 20)
    number = f"{session} {row['number']}"
    verdict = clip(visible(str(row["verdict"] or "?")).replace("\n", " "), 12)
    return [time, number, who, target, verdict]


def _text_cell(row: Mapping[str, Any], columns: int, paper: Paper) -> str:
    notes = "" if row["status"] in _USUAL else f"({row['status']}) "
    code = row["code"] or ("error" if row["error"] else "")
    start = notes + (f"[{code}] " if code else "")
    start = visible(start).replace("\n", " ")
    parts = [(" ".join(_spaced(visible(str(text)))), hit) for text, hit in row["parts"]]
    left = columns - width(start)
    shown = [paper.paint(start, _RED if code else _DIM)] if start else []
    if label := labelled(str(row["verb"]), "").rstrip():
        parts = [(f"{label} ", False), *parts]
    verb = visible(str(row["verb"])).replace("\n", " ")
    parts = _from_hit(parts, left, clip(verb, 12))
    for text, hit in parts:
        if left <= 0:
            break
        piece = clip(text, left)
        left -= width(piece)
        shown.append(paper.paint(piece, _HIT) if hit else piece)
    return "".join(shown)


def _spaced(text: str) -> list[str]:
    """The words of a text; an empty one at its ends where it begins or ends with space."""
    words = text.split()
    return [*([""] if text[:1].isspace() else []), *words, *([""] if text[-1:].isspace() else [])]


def _from_hit(parts: list[tuple[str, bool]], columns: int, verb: str) -> list[tuple[str, bool]]:
    """Cut what stands before the first hit, so that the hit is in the line; the verb stays."""
    before = ""
    for i, (text, hit) in enumerate(parts):
        if hit:
            room = max(0, columns // 2 - width(text))
            if width(before) + width(text) <= columns or width(before) <= room:
                return parts
            start = f"{verb} …"
            room = max(0, room - width(start))
            return [(start + before[len(before) - room :], False), *parts[i:]]
        before += text
    return parts


def _verdict_color(verdict: str) -> str:
    if verdict.endswith("deny"):
        return _RED
    return _YELLOW if verdict.startswith("held") else _GREEN if verdict == "allow" else ""


# -- one session ------------------------------------------------------------------------------------------


def show_text(found: Mapping[str, Any], paper: Paper) -> str:
    """A session: who, for whom, how proved, where, why; then its commands, one after the other."""
    identity = found["header"].get("identity")
    identity = identity if isinstance(identity, dict) else {}
    text = fields([
        ("session", found["sid"]),
        ("status", _status(found)),
        ("for", str(found["subject"])),
        ("by agents", ", ".join(found["agents"])),
        ("groups", _words(identity.get("groups"))),
        ("proved by", _proof(identity)),
        *_whence(found["header"].get("more")),
        ("target", str(found["target"])),
        ("protocol", str(found["protocol"])),
        ("run", str(found["run"])),
        ("node", str(found["node"])),
        ("started", str(found["started"])),
        ("length", f"{found['seconds']} s"),
        ("recorded", f"{found['records']} records, {found['size_bytes']} bytes, segments: {len(found['segments'])}"),
        ("passed", _passed(found)),
        ("rules", str(found["header"].get("policy_rev", ""))),
        *(("intent", intent) for intent in found["intents"]),
    ])  # fmt: skip
    lines = [line for command in found["commands"] for line in _command_lines(command, paper)]
    if found["unreadable"]:
        lines.append(visible(f"encrypted: not shown ({found['unreadable']})"))
    more = (found["commands_count"] or 0) - len(found["commands"])
    if more > 0 and not found["unreadable"]:
        lines.append(f"... {more} more commands; gatecast export has them all")
    end = f"Play it: gatecast replay {found['sid']}   Prove it: gatecast verify {found['sid']}"
    return f"{text}\n" + "".join(f"{line}\n" for line in lines) + paper.paint(visible(end), _DIM) + "\n"


def _whence(more: object) -> list[tuple[str, str]]:
    """How, from where and with what the user came, where the protocol told the tape; and as whom at the target."""
    told = more if isinstance(more, dict) else {}
    return [(name, str(told.get(key) or "")) for name, key in _TOLD]


def _status(found: Mapping[str, Any]) -> str:
    match found["status"]:
        case "closed" | "failed" | "crashed" as status:
            return f"{status}; sealed, the seal not checked here"
        case status:
            return f"{status}; not sealed"


def _passed(found: Mapping[str, Any]) -> str:
    """Bytes in each direction, where the whole tape was read."""
    up, down = found.get("bytes_from_user"), found.get("bytes_to_user")
    return "" if up is None or down is None else f"{size(up)} from the user, {size(down)} to the user"


def _proof(identity: Mapping[str, Any]) -> str:
    issuer, proof = str(identity.get("issuer", "")), str(identity.get("proof", ""))
    return (
        f"{issuer}, a proof with the SHA-256 {proof}" if proof and issuer else f"SHA-256 {proof}" if proof else issuer
    )


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else ""


def _command_lines(command: Mapping[str, Any], paper: Paper) -> list[str]:
    verdict = command["verdict"] or "undecided"
    head = f"{command['number']:>4}  {command['time'][11:23]}Z  "
    rule = f" by {command['rule']}" if command["rule"] else ""
    typed = "" if command["exact"] else "typed: "
    rest = f"{rule}  {typed}{' '.join(labelled(str(command['verb']), str(command['text'])).split())}"
    first = head + paper.paint(visible(verdict), _verdict_color(verdict)) + visible(rest).replace("\n", " ")
    lines = [first]
    indent = " " * 6
    if command["values"]:
        lines.append(paper.paint(indent + visible(f"values: {', '.join(command['values'])}"), _DIM))
    if command["estimate"]:
        lines.append(paper.paint(indent + visible(command["estimate"]), _DIM))
    if command["intent"]:
        lines.append(paper.paint(indent + visible(f"intent: {command['intent']}").replace("\n", " "), _DIM))
    approval = command["approval"]
    if approval is not None:
        lines.append(paper.paint(indent + visible(_approval(approval)).replace("\n", " "), _YELLOW))
    if command["verdict"].endswith("deny") and command["reason"]:
        lines.append(paper.paint(indent + visible(f"refused: {command['reason']}").replace("\n", " "), _RED))
    lines += [indent + visible(text).replace("\n", " ") for text in _masked(command["masked"])]
    for file in command["details"].get("files", ()):  # of kubectl cp, sftp and scp of many
        lines.append(paper.paint(indent + visible(_file(file)).replace("\n", " "), _DIM))
    error = command["error"]
    if error is not None:
        said = f"error {error['code']}: {error['message']}"
        lines.append(paper.paint(indent + visible(said).replace("\n", " "), _RED))
    elif command["tag"]:
        rows = command["rows"]
        count = f", rows: {rows}" if rows and not command["tag"].endswith(f" {rows}") else ""  # as SELECT 5 says it
        passed = _transferred(command["details"]) + _job(command["details"])
        lines.append(paper.paint(indent + visible(f"{command['tag']}{count}{passed}").replace("\n", " "), _DIM))
    return lines


def _file(file: Mapping[str, Any]) -> str:
    """One of the files that a command carried."""
    way = {"upload": "put ", "download": "got "}.get(str(file.get("direction")), "")
    length = f", {size(file['size'])}" if isinstance(file.get("size"), int) else ""
    digest = f", sha256 {file['sha256']}" if file.get("sha256") else ""
    part = ", not complete" if file.get("complete") is False else ""
    return f"{way}{file.get('path', '?')}{length}{digest}{part}"


def _transferred(details: Mapping[str, Any]) -> str:
    """What of a file passed, and its hash."""
    if "direction" not in details or not isinstance(details.get("size"), int):
        return ""
    digest = f", sha256 {details['sha256']}" if details.get("sha256") else ""
    part = ", not complete" if details.get("complete") is False else ""
    return f", {details['direction']} of {size(details['size'])}{digest}{part}"


def _job(details: Mapping[str, Any]) -> str:
    """Which job of BigQuery it was, and what that cost."""
    if not isinstance(details.get("job"), str):
        return ""
    return ", ".join(("", job_words(details), cost_words(details))).rstrip(", ")


def _masked(masked: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each rule that masked something: which columns of the result."""
    by: dict[str, list[str]] = {}
    for item in masked:
        by.setdefault(item["rule"], []).append(item["column"])
    return [f"masked by {rule}: {', '.join(columns)}" for rule, columns in by.items()]


def _approval(approval: Mapping[str, Any]) -> str:
    needs = f"held {approval['id']}, needs one of {', '.join(approval['approvers']) or '?'}"
    if approval["state"] == "pending":
        return f"{needs}: waiting"
    by = f" by {approval['by']}" if approval["by"] else ""
    reason = f": {approval['reason']}" if approval["reason"] else ""
    return f"{needs}: {approval['state']}{by} after {approval['seconds']} s{reason}"
