"""The values of one Kubernetes object under masks: a decoded object in, the edits of its text out.

How: the object is walked with the names that the current value has: one for each resource that it may be of, since
objects lie in objects. Only what a mask may touch by name is walked, unless detectors read every value, or the object
holds further objects (known since it was decoded). See documents.py for what is masked where.

Specification: RFC 4648, section 4 (base64 of Secrets' data).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Final

from protocols.kubernetes.kinds import resources_of
from protocols.kubernetes.splicing import (
    Cursor,
    Edit,
    Json,
    Renamed,
    Span,
    Unreadable,
    json_text,
    locate,
    splice,
    strict_decoder,
    unique,
)
from proxy.core.events import FieldMask

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
EMPTY: Final = '""'

# Answers about names of fields that are kept for one document; lists have the same fields over and over.
NAMES_LIMIT: Final = 50_000
# Texts in texts that are read: the annotation of an object within the annotation of an object is nobody's.
NESTED_LIMIT: Final = 2

_NEVER: Final = frozenset((
    *("kind", "apiVersion", "metadata.name", "metadata.namespace", "metadata.uid", "metadata.resourceVersion"),
    *("metadata.generation", "metadata.creationTimestamp", "metadata.continue", "metadata.remainingItemCount"),
))  # fmt: skip
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z")
_NO_TIME: Final = '"1970-01-01T00:00:00Z"'
_ENCODED: Final = {"secrets": "data", "configmaps": "binaryData"}
_EXACT_FLOAT: Final = 1e19  # a whole number up to here is written in digits

Names = tuple[str, ...]  # "secrets:data", one for each resource that something may be of; "secrets:" is the object


class Values:
    """Walks the values of one answer. asked: the resource that the request was about."""

    def __init__(self, fields: FieldMask, asked: str | None) -> None:
        self._fields = fields
        self._asked = asked
        self._texts = fields.texts
        self._decoder = strict_decoder(self._pairs)
        self._inner: list[dict[str, Json]] = []  # what was decoded and is, or holds, an object of its own
        self._all = True  # every value is walked, whatever its name
        self._known: dict[str, bool] = {}
        self._keys: dict[str, str | None] = {}
        self._resources: tuple[str, ...] = ()
        self._nested = 0

    def decode(self, cursor: Cursor) -> Json:
        """Decode the value at the cursor. Raises Unreadable."""
        return cursor.decode(self._decoder)

    def forget(self) -> None:
        """What was decoded until now is done with."""
        self._inner.clear()

    def names(self, resources: tuple[str, ...]) -> Names:
        """Return the names of an object of these resources, as far as masks may touch them."""
        return tuple(f"{each}:" for each in resources if self._fields.touches(f"{each}:"))

    def item(self, value: Json, resources: tuple[str, ...]) -> Edit | None:
        """Mask an object of a list; its own kind counts if it says one."""
        if not isinstance(value, dict):
            return self.any(value, "", self.names(resources))
        kind, version = value.get("kind"), value.get("apiVersion")
        if isinstance(kind, str) and isinstance(version, str):
            resources = resources_of(kind, version, self._asked)
        return self.thing(value, resources) or None

    def thing(self, value: dict[str, Json], resources: tuple[str, ...]) -> dict[str, Edit]:
        """Mask an object of one of these resources."""
        names = self.names(resources)
        self._all = self._texts is not None or any(each is not value for each in self._inner)
        return self._object(value, names, resources) if names or self._all else {}

    def members(self, value: dict[str, Json], names: Names, encoded: bool = False, coded: str = "") -> dict[str, Edit]:
        """Mask the members of an object. encoded: all are base64; coded: what is below that member is."""
        found: dict[str, Edit] = {}
        everything = self._all
        for key, each in value.items():
            below = self._below(names, key) if names else ()
            edit = self.any(each, key, below, encoded or key == coded) if below or everything else None
            if everything and self._texts is not None and (new := self._key(key)) is not None:
                found[key] = Renamed(new, edit)
            elif edit is not None:
                found[key] = edit
        return found

    def any(self, value: Json, key: str, names: Names, encoded: bool = False) -> Edit | None:
        """Mask any value; key: what stands before it. None if it stays."""
        kind = type(value)
        if kind is str:
            return self._string(value, key, names, encoded)
        if kind is dict:
            if self._all and _is_object(value):
                resources = resources_of(value["kind"], value["apiVersion"], self._asked)[:1]
                return self._object(value, names + self.names(resources), resources) or None
            return self.members(value, names, encoded) or None
        if kind is list:
            return self._list(value, key, names, encoded)
        if value is None or value is False:
            return None
        if any(self._fields(name) is not None for name in names):
            return "false" if value is True else "0"
        if self._texts is None or value is True:
            return None
        text = _digits(value)
        return None if self._texts(key, text) == text else "0"

    # -- objects --------------------------------------------------------------------------------------

    def _pairs(self, pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        found = unique(pairs)
        if LAST_APPLIED in found or ("kind" in found and _is_object(found)):
            self._inner.append(found)
        return found

    def _object(self, value: dict[str, Json], names: Names, resources: tuple[str, ...]) -> dict[str, Edit]:
        outer, self._resources = self._resources, resources
        coded = next((_ENCODED[each] for each in resources if each in _ENCODED), "")
        metadata = value.get("metadata")
        if not isinstance(metadata, dict) or "managedFields" not in metadata:
            found = self.members(value, names, coded=coded)
        else:
            owned = metadata["managedFields"]
            rest = {key: each for key, each in metadata.items() if key != "managedFields"}
            found = self.members({**value, "metadata": rest}, names, coded=coded)
            if isinstance(owned, list) and (emptied := self._owners(owned, names)):
                inside = found.get("metadata")
                found["metadata"] = {**(inside if isinstance(inside, dict) else {}), "managedFields": emptied}
        self._resources = outer
        return found

    def _owners(self, entries: list[Json], names: Names) -> dict[int, Edit]:
        """Empty the fields of those entries of managedFields that show a masked value."""
        return {
            index: {"fieldsV1": "{}"}
            for index, entry in enumerate(entries)
            if isinstance(entry, dict) and "fieldsV1" in entry and self._shows(entry["fieldsV1"], names)
        }

    def _shows(self, tree: Json, names: Names) -> bool:
        """Tell whether a set of fields has a masked value among its keys. Source: structured-merge-diff, fieldpath."""
        if not isinstance(tree, dict) or not (names or self._texts is not None):
            return False
        for key, inside in tree.items():
            mark, _, rest = key.partition(":")
            below = self._below(names, rest) if mark == "f" else names
            if mark in ("v", "k") and self._shows_value(mark, rest, names):
                return True
            if self._shows(inside, below):
                return True
        return False

    def _shows_value(self, mark: str, text: str, names: Names) -> bool:
        if self._texts is not None and self._texts("", text) != text:
            return True
        if mark == "v":
            return any(self._fields(name) is not None for name in names)
        try:
            value = self.decode(Cursor(text))
        except Unreadable:
            return bool(names)
        keys = value if isinstance(value, dict) else ()
        return any(self._fields(name) is not None for key in keys for name in self._below(names, key))

    # -- names ----------------------------------------------------------------------------------------

    def _below(self, names: Names, key: str) -> Names:
        """The names of a member, as far as masks may touch them."""
        found: Names = ()
        for name in names:
            child = f"{name}{key}" if name.endswith(":") else f"{name}.{key}"
            touched = self._known.get(child)
            if touched is None:
                touched = self._fields.touches(child) and child.partition(":")[2] not in _NEVER
                if len(self._known) >= NAMES_LIMIT:
                    self._known.clear()
                self._known[child] = touched
            if touched:
                found += (child,)
        return found

    def _key(self, key: str) -> str | None:
        """Return what detectors make of a key, as JSON text; None if nothing."""
        if key not in self._keys:
            if len(self._keys) >= NAMES_LIMIT:
                self._keys.clear()
            new = self._texts("", key) if self._texts is not None else key
            self._keys[key] = None if new == key else json_text(new)
        return self._keys[key]

    # -- lists and leaves -----------------------------------------------------------------------------

    def _list(self, values: list[Json], key: str, names: Names, encoded: bool) -> Edit | None:
        found: dict[int, Edit] = {}
        for index, each in enumerate(values):
            if type(each) is dict and "value" in each and type(each.get("name")) is str and not _is_object(each):
                edit = self._named(each, names, encoded)
            else:
                edit = self.any(each, key, names, encoded)
            if edit is not None:
                found[index] = edit
        return found or None

    def _named(self, pair: dict[str, Json], names: Names, encoded: bool) -> Edit | None:
        """An entry like one of env: its value is also known by its name."""
        rest = {key: each for key, each in pair.items() if key != "value"}
        found = self.members(rest, names, encoded)
        name = pair["name"]
        known = self._below(names, "value") + self._below(names, name)
        edit = self.any(pair["value"], name, known, encoded) if known or self._all else None
        if edit is not None:
            found["value"] = edit
        return found or None

    def _string(self, value: str, key: str, names: Names, encoded: bool) -> str | None:
        for name in names:
            replace = self._fields(name)
            if replace is not None:
                return _replaced(value, replace, encoded)
        if key == LAST_APPLIED:
            return self._applied(value)
        texts = self._texts
        if texts is None:
            return None
        if encoded:
            return _replaced(value, lambda text: texts(key, text), encoded)
        new = texts(key, value)
        return None if new is value or new == value else json_text(new)

    def _applied(self, text: str) -> str | None:
        """Mask the object in an annotation, by its own kind and by that of the object that bears it."""
        if not text:
            return None
        self._nested += 1
        try:
            if self._nested > NESTED_LIMIT:
                return EMPTY
            cursor = Cursor(text)
            value = self.decode(cursor)
            cursor.end()
            if not isinstance(value, dict):
                return EMPTY
            kind, version = value.get("kind"), value.get("apiVersion")
            own: tuple[str, ...] = ()
            if isinstance(kind, str) and isinstance(version, str):
                own = resources_of(kind, version, self._asked)
            resources = tuple(dict.fromkeys((*own, *self._resources)))
            edit = self._object(value, self.names(resources), resources)
            spans: list[Span] = []
            if edit:
                locate(Cursor(text), edit, spans)
            return json_text(splice(text, sorted(spans))) if spans else None
        except Unreadable:
            return EMPTY if self._texts is not None or self.names(self._resources) else None
        finally:
            self._nested -= 1


def _is_object(value: dict[str, Json]) -> bool:
    """Tell whether a part of a document is an object in itself; a mere reference has texts alone."""
    return (
        type(value.get("kind")) is str
        and type(value.get("apiVersion")) is str
        and any(type(each) is dict or type(each) is list for each in value.values())
    )


def _replaced(value: str, replace: Callable[[str], str], encoded: bool) -> str | None:
    """Return the JSON text in the place of a string, None if it stays."""
    if not encoded:
        if _TIME.fullmatch(value):
            return _NO_TIME
        new = replace(value)
        return None if new == value else json_text(new)
    try:
        text = base64.b64decode(value, validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError):
        text = value  # what is no base64 is masked as it is; it would not have been served
    new = replace(text)
    return None if new == text else json_text(base64.b64encode(_bytes(new)).decode())


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _digits(value: float) -> str:
    """Write a number so that detectors see its digits."""
    if isinstance(value, float) and abs(value) < _EXACT_FLOAT and value.is_integer():
        return str(int(value))
    return str(value)
