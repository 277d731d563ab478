"""Which fields a create or a patch writes, named as masks name them: "secrets:data.password".

Indexes of lists are left out; an item of an ``env`` list goes by its name. A name may stand for all that is below it:
where a whole object is set or removed. What a JSON patch tests is named too, as the answer tells whether it guessed
right. Not known (None): what replaces the whole object, and copies within it, which could lay a masked value open.

Source: RFC 6902, RFC 7386; strategic merge patch (kubernetes/community, strategic-merge-patch.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from protocols.kubernetes.bodies import Body, member
from protocols.kubernetes.pods import is_index, pointer

FIELDS_LIMIT: Final = 2000  # a chart's largest object has some hundred; more is not known. Ours
_NAMES: Final = frozenset({"apiVersion", "kind"})


def fields_written(resource_name: str, verb: str, body: Body) -> tuple[str, ...] | None:
    """Return the fields, None where they are not known."""
    if body.value is None or body.opaque or verb == "update" or body.form in ("delete-options", "none"):
        return None
    found: dict[str, None] = {}
    paths = _operations(body.value) if body.form == "json-patch" else _leaves(body.value, ())
    for path in paths:
        if path is None or len(found) >= FIELDS_LIMIT:
            return None
        if path and path[0] not in _NAMES:
            found[f"{resource_name}:{'.'.join(path)}"] = None
        elif not path:
            return None
    return tuple(found)


def _operations(operations: Any) -> Iterator[tuple[str, ...] | None]:
    for operation in operations:
        word = member(operation, "op")
        if word in ("copy", "move"):
            yield None
            return
        parts = pointer(member(operation, "path") or "")
        path = [part for part in parts if not is_index(part)]
        if "env" in path:
            place = path.index("env")
            within = parts[parts.index("env") + 1 :]
            if len(within) > 1:  # a part of an item whose name is not told
                path = path[: place + 1]
        if word in ("add", "replace"):
            value = member(operation, "value")
            yield from _leaves([value] if parts and is_index(parts[-1]) else value, tuple(path))
        else:
            yield tuple(path)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            if not key.startswith("$"):
                yield from _leaves(child, (*path, key))
            elif key.startswith("$deleteFromPrimitiveList/"):
                yield (*path, key.partition("/")[2])
            elif key == "$patch" or key.startswith("$retainKeys"):
                yield path
    elif isinstance(value, list) and value:
        for item in value:
            if path and path[-1] == "env" and isinstance(item, dict):
                name = member(item, "name")
                yield (*path, name) if isinstance(name, str) else path
            else:
                yield from _leaves(item, path)
    else:
        yield path
