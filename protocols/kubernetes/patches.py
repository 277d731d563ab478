"""Which fields a patch writes, in the names that masks have for them.

For a guard that must not let a masked value be written back, moved or asked for: so what a patch reads counts too (the
``from`` of a JSON patch, and what its ``test`` compares). A name that ends in ``.*`` stands for all that is below:
where a list or object is replaced or removed as a whole, or the place in a list tells no name.

=====================  ================================================================================================
merge patch            members, to the leaves; lists are replaced whole; null removes. RFC 7386
strategic merge patch  the same, but lists of objects are merged: each element's members, and an element that has a name
                       and a value by its name. ``$patch`` replaces or removes what it stands in, ``$retainKeys`` too;
                       ``$setElementOrder/x`` only sorts, ``$deleteFromPrimitiveList/x`` writes x
apply patch            as the strategic one, without directives (structured-merge-diff)
JSON patch             each operation's path, and the leaves of its value. RFC 6902
=====================  ================================================================================================

Left out: whole objects (create, update): None. Source: k8s.io/apimachinery/pkg/util/strategicpatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocols.kubernetes.kinds import UNKNOWN
from protocols.kubernetes.splicing import Json

# Names of one patch; a larger one counts as the whole object.
WRITTEN_LIMIT: Final = 20_000
_ALL: Final = ".*"
_MERGES: Final = frozenset({"strategic-merge-patch", "apply-patch"})
_ORDER: Final = "$setElementOrder/"
_DELETE: Final = "$deleteFromPrimitiveList/"
_DIRECTIVES: Final = frozenset({"$patch", "$retainKeys"})
_OWN: Final = frozenset({"kind", "apiVersion"})  # say what the patch is about, and write nothing


def fields_of(value: Json, resource: str | None, form: str) -> tuple[str, ...] | None:
    """Return the fields that a body writes; None for a whole object, or where it is not known.

    value: the decoded body; resource: what it is written to ("deployments.apps"), None for one that is not known; form:
    how the body is meant, as bodies.py names it.
    """
    names: dict[str, None] = {}
    prefix = f"{resource or UNKNOWN}:"
    found: Iterator[str] | None
    if form == "json-patch":
        found = _operations(value)
    elif form == "merge-patch" or form in _MERGES:
        found = _members(value, "", form in _MERGES) if isinstance(value, dict) else None
    else:
        found = None
    if found is None:
        return None
    try:
        for name in found:
            if name in ("", _ALL) or len(names) >= WRITTEN_LIMIT:
                return None  # the whole object
            names[prefix + name] = None
    except (ValueError, RecursionError):  # what is no patch of that form, or too deep to be one
        return None
    return tuple(names)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _members(value: dict[str, Json], path: str, merges: bool) -> Iterator[str]:
    if merges and _DIRECTIVES & value.keys():
        yield path + _ALL
    for key, each in value.items():
        if merges and (key in _DIRECTIVES or key.startswith(_ORDER)):
            continue
        if not path and key in _OWN:
            continue
        name = key.removeprefix(_DELETE) if merges else key
        yield from _value(each, _join(path, name), merges)


def _value(value: Json, path: str, merges: bool) -> Iterator[str]:
    """The fields that a value written to a path writes."""
    if isinstance(value, dict) and value:
        yield from _members(value, path, merges)
    elif isinstance(value, list):
        if not merges:
            yield path + _ALL
        yield from _elements(value, path, merges)
    else:
        yield path
        if value is None:
            yield path + _ALL


def _elements(values: list[Json], path: str, merges: bool) -> Iterator[str]:
    if not values or not all(isinstance(each, dict) for each in values):
        yield path
    for each in values:
        if not isinstance(each, dict):
            continue
        name = each.get("name")
        if isinstance(name, str) and "value" in each:
            yield from _value(each["value"], _join(path, name), merges)
        yield from _members(each, path, merges) if each else (path,)


def _operations(value: Json) -> Iterator[str]:
    if not isinstance(value, list):
        raise ValueError("a JSON patch is a list")
    for operation in value:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise ValueError("an operation has no path")
        yield from _pointed(operation["path"], operation.get("value"))
        if "from" in operation:
            source = operation["from"]
            if not isinstance(source, str):
                raise ValueError("from is no path")
            yield from _pointed(source, None)


def _pointed(pointer: str, value: Json) -> Iterator[str]:
    """The fields at a JSON pointer (RFC 6901), with all below; and what a value there writes."""
    if not pointer.startswith("/"):
        raise ValueError("no pointer")
    segments = [each.replace("~1", "/").replace("~0", "~") for each in pointer[1:].split("/")]
    path = ".".join(each for each in segments if not _is_index(each))
    if len(segments) > 1 and _is_index(segments[-2]) and segments[-1] == "value":
        yield ".".join(each for each in segments[:-1] if not _is_index(each)) + _ALL
    yield path
    if isinstance(value, dict | list) or value is None:
        yield path + _ALL
    if isinstance(value, dict):
        named = value.get("name")
        if isinstance(named, str) and "value" in value:
            yield _join(path, named)
        yield from _members(value, path, False)
    elif isinstance(value, list):
        yield from _elements(value, path, False)


def _is_index(segment: str) -> bool:
    return segment == "-" or segment.isdecimal()
