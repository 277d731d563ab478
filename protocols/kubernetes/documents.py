"""Masks in the API server's JSON answers: objects, lists, tables, events of a watch, errors.

A field is named by its resource and its path, list indexes left out: ``secrets:data.password``. An element of a list
that has a name and a value (an env entry) is also known by its name: ``pods:spec.containers.env.DB_PASSWORD``. Where a
value shows a second time, it is masked there too:

- in lists, whose items lack a kind; in the rows of tables (the object of a row, and the cells: printers.py);
- in the annotation last-applied-configuration, a JSON text: by the same masks; one that cannot be read is emptied;
- in objects inside of objects (templates of operators): by the masks of what they say they are;
- in managedFields, whose keys hold values of sets and of key fields: an entry is emptied where one is masked;
- in a Status, where the message of a failure may quote a value: the quotations go, for what masks speak of.

What nobody knows the resource of is masked by the masks of all resources whose path matches. Values of Secrets' data
(and ConfigMaps' binaryData) are decoded from base64, masked and encoded again, so that readers still decode them. A
masked number becomes 0, a boolean false, a time the beginning of 1970, null stays: what is read by types stays
readable. An object's kind, apiVersion, name, namespace, uid, resourceVersion and times of making are never masked by
name: without them nobody can read it, and the request names most of them anyway. Detectors look at each value (beside
its key) and each key.

Values are spliced into the text (splicing.py): what no mask changes stays byte for byte, and so do numbers. Lists and
tables are decoded element by element, so that a long list costs the memory of its text and of one element. Where the
masks speak of the server's own resources alone, and none of their kinds occurs in the text, nothing is decoded at all.

Left out: what is encoded otherwise (helm's releases are gzip in base64: mask ``secrets:data.release``), annotations of
other tools that keep copies; objects of custom resources inside of answers that the last paragraph passes unread.
What is no JSON, or says a key twice, raises: nothing unread passes. Source: kubernetes note 7.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from protocols.kubernetes import printers
from protocols.kubernetes.kinds import UNKNOWN, is_own, kind_of, resources_of
from protocols.kubernetes.masked_values import Values
from protocols.kubernetes.patches import fields_of as fields_of
from protocols.kubernetes.splicing import Cursor, Edit, Json, Renamed, Span, Unreadable, json_text, locate, splice
from proxy.core.errors import TargetPeerError
from proxy.core.events import FieldMask

HIDDEN: Final = json_text("[redacted]")  # a cell that may show a masked field

_ANY_KEY: Final = "\0"  # no key of a map; a mask that covers it covers all of them
_BETWEEN: Final = (".", ".matchLabels.")  # a selector, and its keys

# Answers about what the server serves: they hold names and descriptions, no objects.
_DISCOVERY: Final = frozenset({"APIVersions", "APIGroupList", "APIGroup", "APIResourceList", "APIGroupDiscoveryList"})
_STREAMED: Final = frozenset({"items", "rows"})
_ESCAPED_LETTER: Final = re.compile(r"\\u00(?!3[cCeE]|26)")  # Go escapes <, > and &, and no letters
# Reasons of a Status whose messages hold names only, unless a webhook wrote them.
_NAMES_ONLY: Final = frozenset((
    *("NotFound", "AlreadyExists", "Conflict", "Forbidden", "Unauthorized", "Expired", "Gone", "TooManyRequests"),
    *("Timeout", "ServerTimeout", "ServiceUnavailable", "MethodNotAllowed", "NotAcceptable", "UnsupportedMediaType"),
    "RequestEntityTooLarge",
))  # fmt: skip
_WEBHOOK: Final = "admission webhook"
# From here on a message quotes. Source: k8s.io/apimachinery/pkg/util/validation/field/errors.go, ErrorType.String.
_QUOTING: Final = re.compile(
    r"(?:[Ii]nvalid|[Uu]nsupported|[Dd]uplicate) value: |Not found: |Forbidden: |denied[^:]*: "
)
_QUOTED: Final = re.compile(r"\"[^\"]*\"?|'[^']*'?|`[^`]*`?")


def rewrite(data: bytes, fields: FieldMask, resource: str | None) -> bytes:
    """Return a JSON answer with its masked values replaced; data itself if there are none.

    resource: what the request was about ("deployments.apps"), None if about none. Raises TargetPeerError.
    """
    try:
        text = data.decode()
        if _passes(text, fields, resource):
            return data
        spans = _Answer(text, fields, resource).spans()
        return splice(text, spans).encode() if spans else data
    except (Unreadable, UnicodeDecodeError, RecursionError) as error:
        raise TargetPeerError(f"an answer that masks apply to cannot be read: {_why(error)}") from error


def rewrite_line(line: bytes, fields: FieldMask, resource: str | None) -> bytes:
    """The same for one event of a watch, with its line break or without; a blank line stays."""
    if not line.strip():
        return line
    try:
        text = line.decode()
        if _passes(text, fields, resource):
            return line
        spans = _Answer(text, fields, resource).event_spans()
    except (Unreadable, UnicodeDecodeError, RecursionError) as error:
        raise TargetPeerError(f"an event that masks apply to cannot be read: {_why(error)}") from error
    return splice(text, spans).encode() if spans else line


def _why(error: Exception) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it is not UTF-8"


def _passes(text: str, fields: FieldMask, asked: str | None) -> bool:
    """Tell whether nothing in the text can be masked: no object of a kind that masks speak of."""
    if fields.texts is not None or asked is None or fields.touches(f"{asked}:"):
        return False
    for resource in fields.resources:
        kind = kind_of(resource)
        if kind is None or f'"{kind}' in text:  # lists of them too, and texts in texts
            return False
    return _ESCAPED_LETTER.search(text) is None  # a kind could hide in them


class _Answer:
    """One answer at work."""

    def __init__(self, text: str, fields: FieldMask, asked: str | None) -> None:
        self._text = text
        self._fields = fields
        self._asked = asked
        self._values = Values(fields, asked)
        self._spans: list[Span] = []

    def spans(self) -> list[Span]:
        """Return what is to be replaced where, in order. Raises Unreadable."""
        cursor = Cursor(self._text)
        if cursor.opens() == "{":
            self._document(cursor)
        else:
            at = cursor.at
            value = self._values.decode(cursor)
            self._note(at, self._values.any(value, "", self._values.names((self._asked or UNKNOWN,))))
        cursor.end()
        return sorted(self._spans)

    def event_spans(self) -> list[Span]:
        """The same of an event of a watch."""
        cursor = Cursor(self._text)
        at = cursor.at
        event = self._values.decode(cursor)
        cursor.end()
        if (
            not isinstance(event, dict)
            or not isinstance(event.get("object"), dict)
            or event.keys() != {"type", "object"}
        ):
            raise Unreadable("it is no event of a watch")
        edits = self._whole(event["object"])
        if edits:
            self._note(at, {"object": edits})
        return sorted(self._spans)

    def _note(self, at: int, edit: Edit | None) -> None:
        if edit is not None:
            locate(Cursor(self._text, at), edit, self._spans)

    # -- the shape of the whole -----------------------------------------------------------------------

    def _document(self, cursor: Cursor) -> None:
        """An object at the cursor; the elements of a list or table are decoded one by one."""
        members: dict[str, Json] = {}
        keys: dict[str, tuple[int, int]] = {}
        places: dict[str, int] = {}
        waiting: list[str] = []
        for key in cursor.members():
            if key in places:
                raise Unreadable("a key comes twice in one object")
            keys[key], places[key] = cursor.key_span, cursor.at
            if key not in _STREAMED or cursor.opens() != "[":
                members[key] = self._values.decode(cursor)
            elif _settled(members) and _holds(members) == key:
                self._elements(cursor, members)
            else:  # what they are is told behind them
                cursor.decode()
                waiting.append(key)
        for key in waiting:
            place = Cursor(self._text, places[key])
            if _holds(members) == key:
                self._elements(place, members)
            else:
                members[key] = self._values.decode(place)
        for key, change in self._whole(members).items():
            edit: Edit | None = change
            if isinstance(change, Renamed):
                self._spans.append((*keys[key], change.key))
                edit = change.edit
            self._note(places[key], edit)

    def _elements(self, cursor: Cursor, members: dict[str, Json]) -> None:
        element = self._element(members)
        for _ in cursor.elements():
            at = cursor.at
            self._values.forget()
            self._note(at, element(self._values.decode(cursor)))

    def _element(self, members: dict[str, Json]) -> Callable[[Json], Edit | None]:
        """Return what masks an element of a list, or a row of a table."""
        if members.get("kind") == "Table":
            return _Rows(self._values, self._fields, self._asked, members.get("columnDefinitions")).row
        kind, version = _head(members)
        resources = resources_of(kind.removesuffix("List"), version, self._asked)
        return lambda item: self._values.item(item, resources)

    def _whole(self, value: dict[str, Json]) -> dict[str, Edit]:
        """Mask an answer, or the object of an event: what is in its items and rows too, if they are there."""
        kind, version = _head(value)
        if kind == "Status" and version == "v1":
            return self._status(value)
        if kind in _DISCOVERY or (self._asked is None and ("openapi" in value or "swagger" in value)):
            return self._values.members(value, ())
        held = _holds(value)
        found: dict[str, Edit] = {}
        if held is not None and isinstance(value.get(held), list):
            element = self._element(value)
            inside = {index: edit for index, each in enumerate(value[held]) if (edit := element(each)) is not None}
            if inside:
                found[held] = inside
            value = {key: each for key, each in value.items() if key != held}
        if kind == "Table":
            return found | self._values.members(value, ())
        resources = resources_of(kind if held is None else kind.removesuffix("List"), version, self._asked)
        return found | self._values.thing(value, resources)

    def _status(self, value: dict[str, Json]) -> dict[str, Edit]:
        found = self._values.members(value, ())
        resource = self._asked or UNKNOWN
        if value.get("status") == "Success" or not self._fields.touches(f"{resource}:"):
            return found
        message = value.get("message")
        quoting = value.get("reason") not in _NAMES_ONLY
        if isinstance(message, str) and (quoting or message.startswith(_WEBHOOK)):
            found["message"] = self._told(message)
        details = value.get("details")
        causes = details.get("causes") if isinstance(details, dict) else None
        told = {
            index: {"message": self._told(cause["message"])}
            for index, cause in enumerate(causes if isinstance(causes, list) else ())
            if isinstance(cause, dict) and isinstance(cause.get("message"), str)
        }
        if told:
            # What detectors found beside the messages stays found.
            others = _mapping(found.get("details"))
            those = _mapping(others.get("causes"))
            both = {**those, **{index: {**_mapping(those.get(index)), **each} for index, each in told.items()}}
            found["details"] = {**others, "causes": both}
        return found

    def _told(self, message: str) -> Edit:
        """A message without its quotations, and without what detectors find in the rest."""
        plain = _unquoted(message)
        return self._values.any(plain, "message", ()) or json_text(plain)


def _mapping(edit: Any) -> Mapping[Any, Any]:  # an Edit: of members by their names, of elements by their indexes
    return edit if isinstance(edit, Mapping) else {}


class _Rows:
    """The rows of one table."""

    def __init__(self, values: Values, fields: FieldMask, asked: str | None, definitions: Json) -> None:
        self._values = values
        self._fields = fields
        self._asked = asked or UNKNOWN
        self._touched = fields.touches(f"{self._asked}:")
        self._names: list[str] = []
        self._hidden: list[bool] | None = None
        if isinstance(definitions, list) and definitions:
            self._names = [str(each.get("name", "")) if isinstance(each, dict) else "" for each in definitions]
            self._hidden = [self._hides(each) for each in definitions]
        # The later events of a watch have no definitions; the first cell is the name.
        self._others = not is_own(self._asked) or any(self._shows(paths) for paths in printers.COLUMNS.values())

    def row(self, row: Json) -> Edit | None:
        """Mask a row: its object, and its cells."""
        if not isinstance(row, dict):
            raise Unreadable("a row of a table is no object")
        found: dict[str, Edit] = {}
        thing, cells = row.get("object"), row.get("cells")
        if thing is not None:
            kind, version = _head(thing)
            edit = self._values.item(
                thing, resources_of(kind, version, None if self._asked == UNKNOWN else self._asked)
            )
            if edit is not None:
                found["object"] = edit
        if isinstance(cells, list):
            inside = {index: edit for index, cell in enumerate(cells) if (edit := self._cell(index, cell)) is not None}
            if inside:
                found["cells"] = inside
        return found or None

    def _cell(self, index: int, cell: Json) -> Edit | None:
        if self._touched and cell is not None and (self._is_hidden(index) or self._shows_key(index, cell)):
            return HIDDEN
        return self._values.any(cell, self._names[index] if index < len(self._names) else "", ())

    def _is_hidden(self, index: int) -> bool:
        if self._hidden is None:
            return index > 0 and self._others
        return index >= len(self._hidden) or self._hidden[index]

    def _hides(self, definition: Json) -> bool:
        if not isinstance(definition, dict):
            return True
        if not is_own(self._asked):
            return definition.get("format") != "name" and definition.get("type") != "date"
        paths = printers.COLUMNS.get(str(definition.get("name", "")).lower())
        return paths is None or self._shows(paths)

    def _shows(self, paths: tuple[str, ...]) -> bool:
        """Tell whether cells that are made of these fields may show a masked one; of maps: whatever their keys are."""
        return any(
            self._covers(path.removesuffix(".*")) or (path.endswith(".*") and self._covers(f"{path[:-2]}.{_ANY_KEY}"))
            for path in paths
        )

    def _covers(self, path: str) -> bool:
        return self._fields(f"{self._asked}:{path}") is not None

    def _shows_key(self, index: int, cell: Json) -> bool:
        """Tell whether a cell that shows a map shows one of its keys that is masked."""
        if index >= len(self._names) or not isinstance(cell, str):
            return False
        maps = [path[:-2] for path in printers.COLUMNS.get(self._names[index].lower(), ()) if path.endswith(".*")]
        keys = [pair.partition("=")[0].partition(":")[0].strip() for pair in cell.split(",")] if maps else ()
        return any(self._covers(f"{path}{between}{key}") for path in maps for key in keys for between in _BETWEEN)


def _head(value: Json) -> tuple[str, str]:
    """Kind and apiVersion, "" where there is none."""
    if not isinstance(value, dict):
        return "", ""
    kind, version = value.get("kind"), value.get("apiVersion")
    return kind if isinstance(kind, str) else "", version if isinstance(version, str) else ""


def _settled(members: dict[str, Json]) -> bool:
    """Whether enough of a document is read to know what its elements are."""
    return (
        "kind" in members and "metadata" in members and (members["kind"] != "Table" or "columnDefinitions" in members)
    )


def _holds(members: dict[str, Json]) -> str | None:
    """Where the elements of a list or table are, None where the document is neither: an object has a name."""
    kind, _ = _head(members)
    if kind == "Table":
        return "rows"
    metadata = members.get("metadata")
    named = isinstance(metadata, dict) and "name" in metadata
    return "items" if (not kind or kind.endswith("List")) and not named else None


def _unquoted(message: str) -> str:
    """Return a message up to where it begins to quote values, and without what is quoted before."""
    found = _QUOTING.search(message)
    head = message if found is None else message[: found.end()]
    return _QUOTED.sub('"?"', head) + ("" if found is None else "[redacted]")
