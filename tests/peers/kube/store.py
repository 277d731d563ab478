"""The stand-in's objects: versions, what watches see, selectors, and the four kinds of patches."""

from __future__ import annotations

import asyncio
import base64
import copy
import datetime
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.peers.kube.http import ApiError
from tests.peers.kube.tables import Object

HISTORY_LIMIT: Final = 10_000  # changes that a watch can still see
Key = tuple[str, str, str]  # plural, namespace, name


@dataclass(frozen=True, slots=True)
class Change:
    """Something that a watch reports. verb: ADDED, MODIFIED or DELETED."""

    version: int
    verb: str
    plural: str
    item: Object


@dataclass(slots=True)
class Store:
    """All objects, by plural, namespace and name."""

    version: int = 100
    objects: dict[Key, Object] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def put(self, plural: str, item: Object, verb: str) -> Object:
        """Keep a change, with a new version; announce() tells the watches."""
        self.version += 1
        metadata = item["metadata"]
        metadata["resourceVersion"] = str(self.version)
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", now())
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        if verb == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = item
        self.changes.append(Change(self.version, verb, plural, copy.deepcopy(item)))
        del self.changes[:-HISTORY_LIMIT]
        return item

    async def announce(self) -> None:
        """Wake the watches."""
        async with self.changed:
            self.changed.notify_all()

    def select(self, plural: str, namespace: str, fields: str, labels: str) -> Iterator[Object]:
        """The objects of a kind, of one namespace or all, that selectors choose."""
        for (kind, place, _), item in sorted(self.objects.items()):
            if kind == plural and namespace in ("", place) and matches(item, fields, labels):
                yield item

    def since(self, version: int, plural: str, namespace: str) -> list[Change]:
        """What changed after a version."""
        return [
            each
            for each in self.changes
            if each.version > version
            and each.plural == plural
            and namespace in ("", each.item["metadata"].get("namespace", ""))
        ]


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def base64_text(text: str) -> str:
    """Encode a Secret's value."""
    return base64.b64encode(text.encode()).decode()


def matches(item: Object, fields: str, labels: str) -> bool:
    """Whether a field selector and a label selector (of = and != terms) choose an object."""
    metadata, status = item["metadata"], item.get("status", {})
    known = {
        "metadata.name": metadata["name"], "metadata.namespace": metadata.get("namespace", ""),
        "status.phase": status.get("phase", ""), "type": item.get("type", ""),
    }  # fmt: skip
    return _selected(fields, known) and _selected(labels, metadata.get("labels") or {})


def _selected(selector: str, values: Mapping[str, str]) -> bool:
    for term in filter(None, selector.split(",")):
        name, _, wanted = term.partition("=")
        same = values.get(name.rstrip("!"), "") == wanted.lstrip("=")
        if same == name.endswith("!"):
            return False
    return True


def patched(item: Object, patch: Any, media: str) -> Object:
    """Return the object with a patch of some media type on it. Raises ApiError."""
    item = copy.deepcopy(item)
    if media.startswith("application/json-patch"):
        for step in patch:
            _step(item, step)
        return item
    if media.startswith(("application/merge-patch", "application/strategic-merge-patch", "application/apply-patch")):
        return merge(item, patch, lists=not media.startswith("application/merge-patch"))
    raise ApiError(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {media}")


def merge(into: Object, patch: Object, *, lists: bool) -> Object:
    """Merge a patch (RFC 7396). lists: those of named things are merged by their names, as strategic patches do."""
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict):
            found = into.get(key)
            into[key] = merge(found if isinstance(found, dict) else {}, value, lists=lists)
        elif lists and isinstance(value, list) and _named(value) and _named(into.get(key)):
            into[key] = _merged(into[key], value)
        else:
            into[key] = value
    return into


def _named(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and "name" in each for each in value)


def _merged(old: list[Object], new: list[Object]) -> list[Object]:
    by_name = {each["name"]: each for each in old}
    for each in new:
        if each.get("$patch") == "delete":
            by_name.pop(each["name"], None)
        else:
            by_name[each["name"]] = merge(by_name.get(each["name"], {}), each, lists=True)
    return list(by_name.values())


def _step(item: Any, step: Mapping[str, Any]) -> None:
    """Apply one operation of a JSON patch (RFC 6902); move and copy are not known here."""
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
    try:
        for part in path:
            item = item[int(part)] if isinstance(item, list) else item[part]
        place: Any = last
        if isinstance(item, list):
            place = len(item) if last == "-" else int(last)
        match step["op"]:
            case "add" if isinstance(item, list):
                item.insert(place, step["value"])
            case "add" | "replace":
                item[place] = step["value"]
            case "remove":
                del item[place]
            case "test" if item[place] == step["value"]:
                pass
            case other:
                raise ApiError(422, "Invalid", f"the server rejected our request: {other}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ApiError(422, "Invalid", f"the server rejected our request due to an error: {error}") from error
