"""The bodies of requests as plain values: JSON, YAML, protobuf and the forms of patches.

What is decided on has to be what the API server will read, so that a body with two readings is refused (400): a key
that comes twice in an object, keys that differ only by case where facts are read (``member``), text that is not UTF-8,
numbers that are none. YAML is read from its events, without tags, with few aliases, with the scalars of Go's YAML 1.1.

Left out: CBOR (alpha in 1.32 to 1.37) and bodies with a Content-Encoding: 415.

Source: k8s.io/apimachinery/pkg/runtime/serializer, sigs.k8s.io/yaml and sigs.k8s.io/json; kubernetes note 2, "Bodies".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from protocols.kubernetes import protobuf
from protocols.kubernetes.yaml_reader import read_yaml
from proxy.core.decoded import has_half_pair, nested_beyond
from proxy.core.http.heads import BadRequest

Form = Literal[
    "json", "yaml", "protobuf", "json-patch", "merge-patch", "strategic-merge-patch", "apply-patch", "delete-options",
    "none",
]  # fmt: skip
# Values as JSON has them. Any: documents are the users' own.
Value = Any

BODY_LIMIT: Final = 3 * 1024 * 1024  # bytes. Source: apiserver's MaxRequestBodyBytes
DEPTH_LIMIT: Final = 200  # of objects, arrays and what is in the last; a CRD's schema, the deepest, has some 60; ours
_FORMS: Final[Mapping[str, Form]] = {
    "": "json",  # as the server does
    "application/json": "json",
    "application/yaml": "yaml",
    "application/vnd.kubernetes.protobuf": "protobuf",
    "application/json-patch+json": "json-patch",
    "application/merge-patch+json": "merge-patch",
    "application/strategic-merge-patch+json": "strategic-merge-patch",
    "application/apply-patch+yaml": "apply-patch",
}
PATCHES: Final[frozenset[Form]] = frozenset({"json-patch", "merge-patch", "strategic-merge-patch", "apply-patch"})


@dataclass(frozen=True, slots=True)
class Body:
    """A body that was read. value: the dict or list, None where there is none.

    opaque: some of it could not be read (a protobuf message that is not known here): value has what could.
    """

    form: Form
    value: Value = None
    opaque: bool = False

    @property
    def patch(self) -> bool:
        """Whether it changes an object rather than being one."""
        return self.form in PATCHES


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type, in lower case, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def read_body(content_type: str, body: bytes) -> Body:
    """Read a request's body. content_type is as it came. Raises BadRequest: 400, 413, 415."""
    if len(body) > BODY_LIMIT:
        raise BadRequest(413, f"the body is larger than {BODY_LIMIT} bytes")
    if not body:
        return Body("none")
    form = _FORMS.get(media_type(content_type))
    if form is None or not _plain_parameters(content_type):
        raise BadRequest(415, f"bodies of the type {content_type[:80]!r} are not served")
    if form == "protobuf":
        decoded = protobuf.decode(body)
        value, opaque = decoded.value, not decoded.whole
    else:
        value, opaque = _read_text(form, body), False
    if form == "json-patch":
        _check_operations(value)
    elif not isinstance(value, dict):
        raise BadRequest(400, "the body is no object")
    elif form in ("json", "yaml", "protobuf") and value.get("kind") == "DeleteOptions":
        form = "delete-options"
    return Body(form, value, opaque)


def read_json(text: str) -> Value:
    """Read JSON in which every key comes once. Raises BadRequest."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError as error:
        raise BadRequest(400, "the body is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, and integers of thousands of digits
        raise BadRequest(400, "the body is no valid JSON") from error
    if nested_beyond(value, DEPTH_LIMIT - 1):
        raise BadRequest(400, "the body is nested too deeply")
    if ("\\ud" in text or "\\uD" in text) and has_half_pair(value):
        raise BadRequest(400, "the body has half a surrogate pair")
    return value


def member(value: Value, key: str) -> Value:
    """Return a member of an object, None where there is none; another spelling of its key is refused.

    Old decoders of Go match keys whatever their case; nobody shall tell a gate "Image" and a server "image".
    """
    if not isinstance(value, dict):
        return None
    lower = key.lower()
    for found in value:
        if found != key and len(found) == len(key) and found.lower() == lower:
            raise BadRequest(400, f"the key {found!r} is written {key!r}")
    return value.get(key)


def at(value: Value, *keys: str) -> Value:
    """Return what is found by following keys, None where one of them is missing."""
    for key in keys:
        value = member(value, key)
    return value


def text_at(value: Value, *keys: str) -> str:
    """Return a string by following keys, "" where it is missing. Raises BadRequest for anything else."""
    found = at(value, *keys)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise BadRequest(400, f"{'.'.join(keys)} is no text")
    return found


def _read_text(form: Form, body: bytes) -> Value:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(400, "the body is not UTF-8") from error
    if form == "yaml" or (form == "apply-patch" and not _looks_like_json(text)):
        value = read_yaml(text, DEPTH_LIMIT)
        if nested_beyond(value, DEPTH_LIMIT - 1):  # aliases add to the depth that was read
            raise BadRequest(400, "the body is nested too deeply")
        return {} if value is None and form == "yaml" else value
    return read_json(text)


def _looks_like_json(text: str) -> bool:
    """kubectl puts JSON into apply-patch+yaml. What only looks like it is read as the YAML that it is."""
    if not text.lstrip(" \t\r\n").startswith("{") or "<<" in text:
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _plain_parameters(content_type: str) -> bool:
    """Tell whether the parameters say nothing that changes the reading."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.strip().partition("=")
        if name and (name.lower() != "charset" or value.strip('"').lower() != "utf-8"):
            return False
    return True


def _object(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest(400, "the body has a key that comes twice in an object")
    return found


def _no_number(text: str) -> Value:
    raise BadRequest(400, f"{text} is no number of JSON")


def _check_operations(value: Value) -> None:
    """Check that a JSON patch is a list of operations. Source: RFC 6902 3 and 4."""
    if not isinstance(value, list):
        raise BadRequest(400, "a JSON patch is a list of operations")
    for operation in value:
        if not isinstance(operation, dict):
            raise BadRequest(400, "a JSON patch is a list of operations")
        if member(operation, "op") not in ("add", "remove", "replace", "move", "copy", "test"):
            raise BadRequest(400, "an operation of the JSON patch is not known")
        for key in ("path", "from"):
            pointer = text_at(operation, key)
            if pointer and not pointer.startswith("/"):
                raise BadRequest(400, "a pointer of the JSON patch is malformed")
        member(operation, "value")
