"""The bodies of requests as they come: gzip, JSON, a multipart upload's two parts, the range of an upload's chunk.

What is decided on has to be what the service will read, so that a body with two readings is refused (400): a key that
comes twice in an object, text that is not UTF-8, halves of surrogate pairs, numbers that are none, a second member
behind the first of a gzip file. The gate writes bodies anew from what it read, so that no third reading exists.

A multipart body is an object in JSON and the data of a load, which may be large: first_part() needs only its beginning.

Left out: other encodings than gzip (415), parts with an encoding of their own.

Source: RFC 8259, RFC 1952 2.2, RFC 2046 5.1.1, RFC 2387 3; bigquery note 3; "Uploading media" of Google's API guide.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from proxy.core.decoded import has_half_pair, nested_beyond
from proxy.core.http.heads import BadRequest

# Bytes of an inflated JSON body. Source: "Quotas and limits", maximum request size of jobs.query, jobs.insert and
# tabledata.insertAll: 10 MB each.
BODY_LIMIT: Final = 10 * 1024 * 1024
DEPTH_LIMIT: Final = 200  # of objects and arrays; a schema has 15 levels, each in "fields": 30 and some; ours
PART_HEAD_LIMIT: Final = 8192  # bytes of the fields of a part; clients send one or two; ours
PREAMBLE_LIMIT: Final = 1024  # bytes before the first boundary; Python's e-mail package may write a line; ours
# RFC 2046 5.1.1: 1 to 70 of these, no space at the end.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER: Final = re.compile(r';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=(?:"([^"\\]*)"|([^\s;"]+))\s*')
_FIELD: Final = re.compile(r"[a-z0-9-]+")
_VALUE: Final = re.compile(r"[\t -~]*")
_JSON_TYPES: Final = frozenset({"", "application/json", "text/json"})
_RANGE: Final = re.compile(r"bytes (?:\*|([0-9]{1,18})-([0-9]{1,18}))/(?:\*|([0-9]{1,18}))")


@dataclass(frozen=True, slots=True)
class Part:
    """The first part of a multipart upload. data_at: where in the body the bytes of the second part begin.

    end: what ends the second part. media_type: as its Content-Type says, "" where it says nothing.
    """

    content: bytes
    media_type: str
    data_at: int
    end: bytes


@dataclass(frozen=True, slots=True)
class Range:
    """A Content-Range of an upload. first, last: None where a chunk asks how far the upload came; total: or not known.

    Source: "Resumable uploads": Content-Range: bytes 0-524287/2000000, bytes 43-99/*, bytes */2000000.
    """

    first: int | None
    last: int | None
    total: int | None


def inflate(body: bytes, encoding: str | None, limit: int = BODY_LIMIT) -> bytes:
    """Return a body without its Content-Encoding. Raises BadRequest: 400, 413, 415."""
    coding = (encoding or "").strip().lower()
    if coding in ("gzip", "x-gzip"):
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            found = decoder.decompress(body, limit + 1)
        except zlib.error as error:
            raise BadRequest(400, "the body is no gzip") from error
        if len(found) > limit:
            raise BadRequest(413, f"the body is larger than {limit} bytes")
        if not decoder.eof or decoder.unused_data:
            raise BadRequest(400, "the body is no whole gzip file, or has something behind its end")
        return found
    if coding not in ("", "identity"):
        raise BadRequest(415, "bodies come plain or as gzip")
    if len(body) > limit:
        raise BadRequest(413, f"the body is larger than {limit} bytes")
    return body


def media_type(content_type: str | None) -> str:
    """Return the media type of a Content-Type, in lower case, without its parameters."""
    return (content_type or "").partition(";")[0].strip().lower()


def is_json(content_type: str | None) -> bool:
    """Tell whether a body is JSON in UTF-8, which is also what one without a type is taken for."""
    if media_type(content_type) not in _JSON_TYPES:
        return False
    return all(
        name.lower() != "charset" or (quoted or plain).lower() in ("utf-8", "utf8")
        for name, quoted, plain in _parameters(content_type or "")
    )


def read_object(data: bytes) -> dict[str, Any]:
    """Read an object in JSON in which every key comes once. Raises BadRequest. Any: a document is its user's own."""
    if len(data) > BODY_LIMIT:
        raise BadRequest(413, f"the body is larger than {BODY_LIMIT} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(400, "the body is not UTF-8") from error
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_number)
    except RecursionError as error:
        raise BadRequest(400, "the body is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, and integers of thousands of digits
        raise BadRequest(400, "the body is no valid JSON") from error
    if not isinstance(value, dict):
        raise BadRequest(400, "the body is no object")
    if nested_beyond(value, DEPTH_LIMIT):
        raise BadRequest(400, "the body is nested too deeply")
    if ("\\ud" in text or "\\uD" in text) and has_half_pair(value):
        raise BadRequest(400, "the body has half a surrogate pair")
    return value


def write_object(value: dict[str, Any]) -> bytes:
    """Write what was read: one spelling of it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def decoded(body: bytes) -> dict[str, Any] | None:
    """Return an answer's object, None where it is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def encoded(value: Mapping[str, Any]) -> bytes:
    """Return a document as it is sent."""
    # Half a surrogate pair, which some target may send, goes on as it came: as an escape.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def boundary_of(content_type: str | None) -> bytes:
    """Return the boundary of a multipart/related body. Raises BadRequest: 400, 415."""
    if media_type(content_type) != "multipart/related":
        raise BadRequest(415, "an upload with its configuration is multipart/related")
    found = [quoted or plain for name, quoted, plain in _parameters(content_type or "") if name.lower() == "boundary"]
    if len(found) != 1 or not _BOUNDARY.fullmatch(found[0]):
        raise BadRequest(400, "the Content-Type names no boundary, or a malformed one")
    return found[0].encode("ascii")


def first_part(content_type: str | None, body: bytes) -> Part | None:
    """Read the JSON of a multipart upload from the body's beginning; None: more of it is needed. Raises BadRequest.

    Its lines end as its first one does: with CR LF, or LF alone, as Python's e-mail package writes them by default
    (googleapiclient, for empty files).
    """
    boundary = boundary_of(content_type)
    line = b"--" + boundary
    start = 0 if body.startswith(line) else body.find(b"\n" + line) + 1
    if (start == 0 and not body.startswith(line)) or start > PREAMBLE_LIMIT:
        return _more(body, PREAMBLE_LIMIT, "the body does not begin with its boundary")
    ends = body.find(b"\n", start + len(line))
    if ends < 0:
        return _more(body[start:], PREAMBLE_LIMIT, "the body does not begin with its boundary")
    newline = b"\r\n" if body[ends - 1 : ends] == b"\r" else b"\n"
    head = _part_head(body, start + len(line), newline)
    if head is None:
        return None
    fields, at = head
    if not is_json(fields.get("content-type")):
        raise BadRequest(400, "the first part of the upload is no JSON")
    end = newline + line
    stop = body.find(end, at)
    if stop < 0:
        return _more(body[at:], BODY_LIMIT, "the configuration of the upload is too large")
    second = _part_head(body, stop + len(end), newline)
    if second is None:
        return None
    return Part(body[at:stop], second[0].get("content-type", ""), second[1], end)


def read_multipart(content_type: str | None, body: bytes) -> tuple[bytes, str, bytes]:
    """Return of a whole multipart upload: the JSON, the type of the data, the data. Raises BadRequest."""
    part = first_part(content_type, body)
    stop = -1 if part is None else body.find(part.end, part.data_at)
    if part is None or stop < 0 or body[stop + len(part.end) :].rstrip(b" \t\r\n") != b"--":
        raise BadRequest(400, "the upload is not two parts and their end")
    return part.content, part.media_type, body[part.data_at : stop]


def read_range(text: str | None) -> Range:
    """Read the Content-Range of an upload's chunk; without one a chunk is the whole upload. Raises BadRequest."""
    if text is None:
        return Range(0, None, None)
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        raise BadRequest(400, "the Content-Range is malformed")
    first, last, total = (None if each is None else int(each) for each in found.groups())
    if first is not None and last is not None and (last < first or (total is not None and last >= total)):
        raise BadRequest(400, "the Content-Range is impossible")
    return Range(first, last, total)


def _more(body: bytes, limit: int, problem: str) -> Part | None:
    """Ask for more of a body, up to a limit."""
    if len(body) > limit:
        raise BadRequest(400, problem)
    return None


def _part_head(body: bytes, at: int, newline: bytes) -> tuple[dict[str, str], int] | None:
    """Read the rest of a boundary's line and the fields of a part; None: more is needed."""
    stop = body.find(newline * 2, at, at + PART_HEAD_LIMIT)
    if stop < 0:
        if len(body) - at > PART_HEAD_LIMIT:
            raise BadRequest(400, "a part of the upload has no end of its fields")
        return None
    rest, *lines = body[at:stop].split(newline)
    if rest.strip(b" \t"):
        raise BadRequest(400, "the upload has fewer than two parts, or a malformed boundary")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        key = name.lower()
        if not colon or key in fields or not _FIELD.fullmatch(key) or not _VALUE.fullmatch(value):
            raise BadRequest(400, "a part of the upload has malformed fields")
        fields[key] = value.strip()
    if fields.get("content-transfer-encoding", "binary").lower() not in ("binary", "7bit", "8bit"):
        raise BadRequest(415, "parts of an upload come plain")
    return fields, stop + 2 * len(newline)


def _parameters(content_type: str) -> list[tuple[str, str, str]]:
    """Return the parameters of a Content-Type: name, quoted value, plain value. Raises BadRequest."""
    at = len(content_type.partition(";")[0])
    found = []
    while at < len(content_type):
        match = _PARAMETER.match(content_type, at)
        if match is None:
            if not content_type[at:].strip("; \t"):
                break
            raise BadRequest(400, "the Content-Type is malformed")
        found.append((match[1], match[2] or "", match[3] or ""))
        at = match.end()
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest(400, "the body has a key that comes twice in an object")
    return found


def _no_number(text: str) -> Any:
    raise BadRequest(400, f"{text} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadRequest(400, "the body has a number that is too large")
    return value
