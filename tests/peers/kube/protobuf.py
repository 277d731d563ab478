"""Protobuf by tables: what kubectl sends in protobuf, what a container runtime's CRI takes, and OpenAPI v2.

A schema maps field numbers to names and kinds. A kind is a scalar's name, the name of another schema, or one of these
in ("list", kind) or ("map", kind). Values are JSON's: bytes are base64 text, times are RFC 3339. Fields that a schema
does not name are dropped.

A Kubernetes object travels in an envelope: b"k8s\\0", then runtime.Unknown{1 TypeMeta{1 apiVersion, 2 kind}, 2 raw}.
In a watch each event is 4 bytes of length, then WatchEvent{1 type, 2 RawExtension{1 raw}} with the envelope inside.

Sources: k8s.io/api and apimachinery generated.proto (field numbers only grow), CRI v1 api.proto, OpenAPIv2.proto.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Iterator, Mapping
from typing import Any, Final

MAGIC: Final = b"k8s\x00"
MEDIA_TYPE: Final = "application/vnd.kubernetes.protobuf"
Kind = str | tuple[str, str]
Schema = Mapping[int, tuple[str, Kind]]

KUBERNETES: Final[Mapping[str, Schema]] = {
    "ObjectMeta": {
        1: ("name", "str"), 2: ("generateName", "str"), 3: ("namespace", "str"), 5: ("uid", "str"),
        6: ("resourceVersion", "str"), 7: ("generation", "int"), 8: ("creationTimestamp", "time"),
        11: ("labels", ("map", "str")), 12: ("annotations", ("map", "str")), 14: ("finalizers", ("list", "str")),
    },
    "ListMeta": {2: ("resourceVersion", "str"), 3: ("continue", "str"), 4: ("remainingItemCount", "int")},
    "Secret": {
        1: ("metadata", "ObjectMeta"), 2: ("data", ("map", "bytes")), 3: ("type", "str"),
        4: ("stringData", ("map", "str")), 5: ("immutable", "bool"),
    },
    "ConfigMap": {
        1: ("metadata", "ObjectMeta"), 2: ("data", ("map", "str")), 3: ("binaryData", ("map", "bytes")),
        4: ("immutable", "bool"),
    },
    "Namespace": {1: ("metadata", "ObjectMeta"), 2: ("spec", "NamespaceSpec"), 3: ("status", "NamespaceStatus")},
    "NamespaceSpec": {1: ("finalizers", ("list", "str"))},
    "NamespaceStatus": {1: ("phase", "str")},
    "SecretList": {1: ("metadata", "ListMeta"), 2: ("items", ("list", "Secret"))},
    "ConfigMapList": {1: ("metadata", "ListMeta"), 2: ("items", ("list", "ConfigMap"))},
    "UserInfo": {1: ("username", "str"), 2: ("uid", "str"), 3: ("groups", ("list", "str"))},
    "ReviewedUser": {1: ("userInfo", "UserInfo")},
    "SelfSubjectReview": {1: ("metadata", "ObjectMeta"), 2: ("status", "ReviewedUser")},
    "ResourceAttributes": {
        1: ("namespace", "str"), 2: ("verb", "str"), 3: ("group", "str"), 4: ("version", "str"),
        5: ("resource", "str"), 6: ("subresource", "str"), 7: ("name", "str"),
    },
    "NonResourceAttributes": {1: ("path", "str"), 2: ("verb", "str")},
    "AccessAsked": {
        1: ("resourceAttributes", "ResourceAttributes"), 2: ("nonResourceAttributes", "NonResourceAttributes"),
    },
    "AccessStatus": {1: ("allowed", "bool"), 2: ("reason", "str"), 4: ("denied", "bool")},
    "SelfSubjectAccessReview": {
        1: ("metadata", "ObjectMeta"), 2: ("spec", "AccessAsked"), 3: ("status", "AccessStatus"),
    },
}  # fmt: skip
ENVELOPE: Final[Mapping[str, Schema]] = {
    "Unknown": {
        1: ("typeMeta", "TypeMeta"), 2: ("raw", "bytes"), 3: ("contentEncoding", "str"), 4: ("contentType", "str"),
    },
    "TypeMeta": {1: ("apiVersion", "str"), 2: ("kind", "str")},
    "WatchEvent": {1: ("type", "str"), 2: ("object", "RawExtension")},
    "RawExtension": {1: ("raw", "bytes")},
}  # fmt: skip


def encode(schemas: Mapping[str, Schema], name: str, value: Mapping[str, Any]) -> bytes:
    """Encode one message; what is absent or None is left out."""
    out = bytearray()
    for number, (key, kind) in schemas[name].items():
        found = value.get(key)
        if found is None:
            continue
        if not isinstance(kind, tuple):
            out += _field(schemas, number, kind, found)
        elif kind[0] == "list":
            for each in found:
                out += _field(schemas, number, kind[1], each)
        else:
            for each in sorted(found):
                pair = _field(schemas, 1, "str", each) + _field(schemas, 2, kind[1], found[each])
                out += _delimited(number, pair)
    return bytes(out)


def decode(schemas: Mapping[str, Schema], name: str, data: bytes) -> dict[str, Any]:
    """Decode one message. Raises ValueError, IndexError."""
    out: dict[str, Any] = {}
    for number, value in _fields(data):
        if (known := schemas[name].get(number)) is None:
            continue
        key, kind = known
        if not isinstance(kind, tuple):
            out[key] = _value(schemas, kind, value)
        elif kind[0] == "list":
            out.setdefault(key, []).append(_value(schemas, kind[1], value))
        else:
            assert isinstance(value, bytes)
            pair = dict(_fields(value))
            place = _value(schemas, "str", pair.get(1, b""))
            out.setdefault(key, {})[place] = _value(schemas, kind[1], pair.get(2, b""))
    return out


def encode_object(value: Mapping[str, Any]) -> bytes:
    """Put an object of a kind that we know into its envelope."""
    raw = encode(KUBERNETES, value["kind"], value)
    envelope = {"typeMeta": value, "raw": base64.b64encode(raw).decode(), "contentEncoding": "", "contentType": ""}
    return MAGIC + encode(ENVELOPE, "Unknown", envelope)


def decode_object(data: bytes) -> dict[str, Any]:
    """Return the object of an envelope. Raises ValueError, KeyError for a kind that has no schema here."""
    if data[:4] != MAGIC:
        raise ValueError("no Kubernetes protobuf")
    envelope = decode(ENVELOPE, "Unknown", data[4:])
    names = envelope["typeMeta"]
    return {**names, **decode(KUBERNETES, names["kind"], base64.b64decode(envelope.get("raw", "")))}


def encode_event(kind: str, value: Mapping[str, Any]) -> bytes:
    """Return one event of a watch, with its length."""
    raw = {"raw": base64.b64encode(encode_object(value)).decode()}
    event = encode(ENVELOPE, "WatchEvent", {"type": kind, "object": raw})
    return len(event).to_bytes(4, "big") + event


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _delimited(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _field(schemas: Mapping[str, Schema], number: int, kind: str, value: Any) -> bytes:
    match kind:
        case "int" | "bool":
            return _varint(number << 3) + _varint(int(value))
        case "str":
            return _delimited(number, value.encode())
        case "bytes":
            return _delimited(number, base64.b64decode(value))
        case "time":
            return _delimited(number, _varint(8) + _varint(int(datetime.datetime.fromisoformat(value).timestamp())))
        case _:
            return _delimited(number, encode(schemas, kind, value))


def _value(schemas: Mapping[str, Schema], kind: str, value: int | bytes) -> Any:
    if isinstance(value, int):
        return bool(value) if kind == "bool" else value - (1 << 64) if value >> 63 else value
    match kind:
        case "str":
            return value.decode()
        case "bytes":
            return base64.b64encode(value).decode()
        case "time":
            seconds = dict(_fields(value)).get(1, 0)
            assert isinstance(seconds, int)
            return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case _:
            return decode(schemas, kind, value)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint is too long")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        match key & 7:
            case 0:
                number, at = _read_varint(data, at)
                yield key >> 3, number
                continue
            case 2:
                size, at = _read_varint(data, at)
            case 1:
                size = 8
            case 5:
                size = 4
            case other:
                raise ValueError(f"wire type {other}")
        if at + size > len(data):
            raise ValueError("a field is cut off")
        yield key >> 3, data[at : at + size]
        at += size
