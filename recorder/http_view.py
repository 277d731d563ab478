"""Short views of what HTTP exchanges carry, for the transcript: bodies, errors, and the events of a watch. Pure.

JSON is laid out, YAML and other text is shown as it is, of all else type and size are told. A view has few lines, none
wider than the terminal, and every line is made harmless. The whole of a body is on the tape: ``replay --http`` shows it
and ``export --format bytes --flow N`` writes it.

An event of a watch is one line: "ADDED pod/api-7f6d  Running"; of a Table the cells that kubectl prints.
Left out: protobuf and CBOR, content codings, the meaning of objects beyond their names.
Source: Kubernetes API concepts, "Efficient detection of changes" and "Receiving resources as Tables"; metav1.Status.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from recorder.escape import clip, visible
from recorder.http_messages import Message
from recorder.wording import size

VIEW_LINES: Final = 12  # of one body: half a small screen
EVENT_LIMIT: Final = 256 * 1024  # bytes of one event that is taken apart; ours: most objects have a few KiB
EVENT_ROWS_LIMIT: Final = 100  # of one event that is a Table: kubectl's first answer to get -w has one row an event
WORDS_LIMIT: Final = 300  # characters of an error's message, or of a name
_TEXTS: Final = ("application/yaml", "application/x-yaml", "application/xml", "application/apply-patch+yaml")


def is_json(content_type: str) -> bool:
    """Whether a body of that media type is JSON."""
    return content_type == "application/json" or content_type.endswith("+json")


def is_text(content_type: str) -> bool:
    """Whether a body of that media type is text of another kind."""
    return content_type.startswith("text/") or content_type in _TEXTS or content_type.endswith(("+yaml", "+xml"))


def body_lines(message: Message, columns: int, limit: int = VIEW_LINES) -> list[str]:
    """A body in lines of so many columns at most; none of an empty one. The last line says what is missing."""
    if not message.size:
        return []
    kind, told = message.content_type, f"{message.content_type or 'of no type'}, {size(message.size)}"
    body = bytes(message.body)
    if message.get("content-encoding") not in ("", "identity"):
        return [f"({visible(told)}, {visible(message.get('content-encoding'))})"]
    cut = message.size > len(body)
    laid_out = "" if cut or not (is_json(kind) or kind in _TEXTS[-1:]) else _laid_out(body)
    if laid_out:
        text = laid_out
    elif is_json(kind) or is_text(kind) or (not kind and _looks_like_text(body)):
        text = body.decode("utf-8", "replace")
    else:
        return [f"({visible(told)})"]
    lines = visible(text.rstrip("\r\n")).split("\n")
    shown = [clip(line.replace("\t", "    "), columns) for line in lines[:limit]]
    rest = len(lines) - len(shown)
    if cut:
        shown.append(f"... {visible(told)}, the rest is recorded")
    elif rest:
        shown.append(f"... {rest} more {'line' if rest == 1 else 'lines'} recorded ({size(message.size)})")
    return shown


def object_name(body: bytes | Mapping[str, Any]) -> str:
    """What an object of Kubernetes is called: "Deployment payments/api"; "" of what is none."""
    document = body if isinstance(body, Mapping) else read(bytes(body))
    if not isinstance(document, Mapping):
        return ""
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    kind = document.get("kind")
    if not isinstance(kind, str) or not isinstance(name, str) or not isinstance(metadata, Mapping):
        return ""
    namespace = metadata.get("namespace")
    return _word(f"{kind} {namespace}/{name}" if isinstance(namespace, str) and namespace else f"{kind} {name}")


def problem(message: Message) -> dict[str, str]:
    """What an answer says that went wrong, as RESULT has errors; {} where it says nothing that we can read."""
    document = read(bytes(message.body)) if is_json(message.content_type) else None
    if not isinstance(document, dict):
        return {}
    inner = document.get("error")  # as Google's APIs have it
    said = inner if isinstance(inner, dict) else document
    if isinstance(said.get("message"), str):
        reason = said.get("reason") or said.get("status") or message.status
        return {"code": _word(str(reason)), "message": said["message"][:WORDS_LIMIT]}
    return {}


def event_lines(line: bytes, resource: str, anywhere: bool) -> list[tuple[str, bool]]:
    """An event of a watch: its lines, each with whether it is an error. resource: what is watched, for Tables.

    anywhere: the watch is of all namespaces, so that names do with them.
    """
    event = read(line)
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        return [(f"(an event of {size(len(line))} that is not read here)", False)]
    what, thing = _word(str(event.get("type", "?"))), event["object"]
    if thing.get("kind") == "Status":
        return [(f"{what:<8}  {_word(str(thing.get('reason') or ''))}: {_word(str(thing.get('message') or ''))}", True)]
    if thing.get("kind") == "Table":
        return _table_lines(what, thing, resource, anywhere)
    metadata = thing.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if what == "BOOKMARK":
        return [(f"{what}  up to {_word(str(metadata.get('resourceVersion', '?')))}", False)]
    status = thing.get("status")
    phase = status.get("phase") if isinstance(status, dict) else None
    notes = [phase] if isinstance(phase, str) else []
    if isinstance(thing.get("reason"), str):  # of an Event, what it tells
        notes += [str(thing["reason"]), str(thing.get("message") or thing.get("note") or "")]
    elif metadata.get("deletionTimestamp") and what != "DELETED":
        notes.append("terminating")
    name = _name(str(thing.get("kind") or resource).lower(), metadata, anywhere)
    return [("  ".join([f"{what:<8}  {name}", *map(_word, notes)]).rstrip(), False)]


def _table_lines(what: str, table: Mapping[str, Any], resource: str, anywhere: bool) -> list[tuple[str, bool]]:
    """A row of a Table is a line; its first cell is the name, which stands there already."""
    lines = []
    rows = table.get("rows")
    rows = rows if isinstance(rows, list) else []
    shown = _shown_columns(table.get("columnDefinitions"))
    for row in rows[:EVENT_ROWS_LIMIT]:
        cells = row.get("cells") if isinstance(row, dict) else None
        thing = row.get("object") if isinstance(row, dict) else None
        metadata = thing.get("metadata") if isinstance(thing, dict) else None
        texts = [_word(str(cell)) for cell in cells] if isinstance(cells, list) else []
        texts = [texts[i] for i in shown if i < len(texts)] if shown else texts
        if isinstance(metadata, dict) and texts[:1] == [metadata.get("name")]:
            del texts[0]
        if what == "BOOKMARK" and not any(texts):
            continue
        name = _name(resource, metadata if isinstance(metadata, dict) else {}, anywhere)
        lines.append(("  ".join([f"{what:<8}  {name}", *texts]).rstrip(), False))
    if len(rows) > EVENT_ROWS_LIMIT:
        lines.append((f"... {len(rows) - EVENT_ROWS_LIMIT} more rows recorded", False))
    return lines or [(f"{what}  {_word(resource)}", False)]


def _shown_columns(definitions: object) -> list[int]:
    """Which cells kubectl prints unless told -o wide: those of priority 0. [] where nothing is said of it."""
    if not isinstance(definitions, list):
        return []
    return [i for i, said in enumerate(definitions) if isinstance(said, dict) and not said.get("priority")]


def _name(kind: str, metadata: Mapping[str, Any], anywhere: bool) -> str:
    name = f"{kind}/{metadata.get('name', '?')}"
    namespace = metadata.get("namespace")
    return _word(f"{namespace}/{name}" if anywhere and namespace else name)


def read(body: bytes) -> Any:
    """The document; None of what is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is one
        return None


def _laid_out(body: bytes) -> str:
    """JSON on lines; "" of what is none, or too deep."""
    document = read(body)
    try:
        return "" if document is None else json.dumps(_shortened(document), indent=2, ensure_ascii=False)
    except RecursionError:  # the encoder gives up before the decoder does
        return ""


def _shortened(document: Any) -> Any:
    """Without what only machines read: who manages which field."""
    if isinstance(document, dict):
        metadata = document.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("managedFields"), list):
            return {**document, "metadata": {**metadata, "managedFields": "..."}}
    return document


def _looks_like_text(body: bytes) -> bool:
    return not any(byte < 9 or 13 < byte < 27 for byte in body[:1024])


def _word(text: str) -> str:
    return clip(visible(text[:WORDS_LIMIT]).replace("\n", " ").replace("\t", " "), WORDS_LIMIT)
