"""Which fields a create or a patch writes, named as masks name them: "secrets:data.password".

Indexes of lists are left out; an item of an ``env`` list goes by its name. A name may stand for all that is below it:
where a whole object is set or removed. Not known (None): what replaces the whole object. Patches are patches.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from protocols.kubernetes.bodies import Body, member
from protocols.kubernetes.patches import fields_of

FIELDS_LIMIT: Final = 2000  # a chart's largest object has some hundred; more is not known. Ours
_NAMES: Final = frozenset({"apiVersion", "kind"})


def fields_written(resource_name: str, verb: str, body: Body) -> tuple[str, ...] | None:
    """Return the fields, None where they are not known."""
    if body.value is None or body.opaque or verb == "update" or body.form in ("delete-options", "none"):
        return None
    if body.patch:
        return fields_of(body.value, resource_name, body.form)
    found: dict[str, None] = {}
    for path in _leaves(body.value, ()):
        if len(found) >= FIELDS_LIMIT:
            return None
        if path and path[0] not in _NAMES:
            found[f"{resource_name}:{'.'.join(path)}"] = None
        elif not path:
            return None
    return tuple(found)


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
