"""Bodies as they come: gzip, JSON with one reading, the two parts of an upload, the table of keys."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bigquery import bodies
from protocols.bigquery.bodies import (
    BODY_LIMIT,
    DEPTH_LIMIT,
    Range,
    boundary_of,
    first_part,
    inflate,
    is_json,
    read_multipart,
    read_object,
    read_range,
    write_object,
)
from protocols.bigquery.body_schemas import SCHEMAS, check
from proxy.core.http.heads import BadRequest

RELATED = "multipart/related; boundary=abc"


def refused(call: Any, *arguments: Any) -> int:
    with pytest.raises(BadRequest) as caught:
        call(*arguments)
    return caught.value.status


def upload(configuration: bytes, data: bytes, boundary: bytes = b"abc", kind: bytes = b"*/*") -> bytes:
    """As google-cloud-bigquery writes one. Source: resumable_media/_upload.py, construct_multipart_request."""
    line = b"--" + boundary
    head = b"\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n"
    return b"".join((line, head, configuration, b"\r\n", line, b"\r\ncontent-type: ", kind, b"\r\n\r\n", data,
                     b"\r\n", line, b"--"))  # fmt: skip


def test_gzip_is_inflated_up_to_a_limit() -> None:
    assert inflate(gzip.compress(b"{}"), "gzip") == b"{}"
    assert inflate(b"{}", None) == inflate(b"{}", "identity") == b"{}"
    assert len(inflate(gzip.compress(b"x" * 100), "GZIP", 100)) == 100
    assert refused(inflate, gzip.compress(b"x" * 101), "gzip", 100) == 413
    assert len(inflate(b"x" * 100, "", 100)) == 100
    assert refused(inflate, b"x" * 101, "", 100) == 413
    assert refused(inflate, b"{}", "br") == 415
    assert refused(inflate, b"{}", "gzip, gzip") == 415


def test_a_bomb_costs_no_memory() -> None:
    bomb = gzip.compress(b"\0" * (8 * BODY_LIMIT))
    assert len(bomb) < BODY_LIMIT // 10
    tracemalloc.start()
    try:
        assert refused(inflate, bomb, "gzip") == 413
        assert tracemalloc.get_traced_memory()[1] < 3 * BODY_LIMIT
    finally:
        tracemalloc.stop()


def test_gzip_with_two_readings_is_refused() -> None:
    whole = gzip.compress(b'{"a":1}')
    for data in (whole[:-4], whole + gzip.compress(b"{}"), whole + b"x", b"{}", b""):
        assert refused(inflate, data, "gzip") == 400


@pytest.mark.parametrize(
    "data",
    [b'{"a":1,"a":2}', b'{"a":{"b":1,"\\u0062":2}}', b'{"a":NaN}', b'{"a":1e999}', b'{"a":"\\ud800"}', b'{"\\uDFFF":1}',
     b"\xff", b"[]", b'"x"', b"", b"{} {}", b"{'a':1}", b'{"a":1,}', b"\xef\xbb\xbf{}",
     b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
)  # fmt: skip
def test_json_with_two_readings_is_refused(data: bytes) -> None:
    assert refused(read_object, data) == 400


def test_json_has_limits() -> None:
    deep = b'{"a":' + b"[" * (DEPTH_LIMIT - 1) + b"]" * (DEPTH_LIMIT - 1) + b"}"
    assert read_object(deep)
    assert refused(read_object, deep.replace(b"[]", b"[[]]")) == 400
    assert refused(read_object, b" " * BODY_LIMIT + b"{}") == 413


def test_json_is_told_by_its_type() -> None:
    for good in ("", "application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8";'):
        assert is_json(good)
    for bad in ("text/plain", "application/json; charset=utf-16", "application/x-protobuf"):
        assert not is_json(bad)
    assert refused(is_json, "application/json; charset") == 400


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(), inner, max_size=3), max_leaves=9))  # fmt: skip
def test_what_is_written_reads_the_same(value: Any) -> None:
    try:
        found = read_object(json.dumps({"x": value}).encode())
    except BadRequest as bad:
        assert "surrogate" in bad.text
        return
    assert read_object(write_object(found)) == found == {"x": value}


# -- uploads --------------------------------------------------------------------------------------------


def test_an_upload_has_two_parts() -> None:
    data = b"a,b\r\n1,2\r\n--ab"
    whole = upload(b'{"a":1}', data)
    assert read_multipart(RELATED, whole) == (b'{"a":1}', "*/*", data)
    assert read_multipart('multipart/related; boundary="abc"', b"\r\n" + whole + b"\r\n")[2] == data
    assert read_multipart(RELATED, upload(b"{}", b""))[2] == b""


def test_the_first_part_needs_only_the_beginning() -> None:
    whole = upload(b'{"a":1}', b"data")
    part = first_part(RELATED, whole)
    assert part is not None
    assert (part.content, part.media_type, whole[part.data_at :][:4]) == (b'{"a":1}', "*/*", b"data")
    for size in range(part.data_at):
        assert first_part(RELATED, whole[:size]) is None, size
    for size in range(part.data_at, len(whole)):
        assert first_part(RELATED, whole[:size]) == part


@pytest.mark.parametrize(
    "body",
    [b"", b"x" * 5000, upload(b"{}", b"x")[:-2], upload(b"{}", b"x") + b"x", upload(b"{}", b"x\r\n--abc\r\n\r\ny"),
     upload(b"{}", b"x", b"abd"), b"--abc\r\n\r\n{}\r\n--abc--", upload(b"{}", b"x\r\n--abcd"),
     upload(b"{}", b"x").replace(b"application/json", b"text/plain"),
     b"--abc\r\nA: 1\r\na: 2\r\n\r\n{}" + upload(b"", b"")[-30:], b"--abc\r\n" + b"x" * 9000],
)  # fmt: skip
def test_another_form_of_upload_is_refused(body: bytes) -> None:
    assert refused(read_multipart, RELATED, body) == 400


def test_an_upload_names_one_boundary() -> None:
    assert boundary_of("multipart/related; type=x; boundary====1==") == b"===1=="
    assert boundary_of('multipart/related; boundary="' + "b" * 70 + '"') == b"b" * 70
    for text in ("multipart/related", "multipart/related; boundary=a; boundary=b", 'multipart/related; boundary="a "',
                 "multipart/related; boundary=" + "b" * 71, 'multipart/related; boundary="a\\"b"'):  # fmt: skip
        assert refused(boundary_of, text) == 400
    assert refused(boundary_of, "multipart/form-data; boundary=a") == 415
    encoded = upload(b"{}", b"x").replace(
        b"charset=UTF-8\r\n", b"charset=UTF-8\r\ncontent-transfer-encoding: base64\r\n"
    )
    assert refused(read_multipart, RELATED, encoded) == 415


def test_parts_as_the_standard_library_writes_them() -> None:
    """googleapiclient writes its uploads with Python's e-mail package, whose lines end with LF alone."""
    root = MIMEMultipart("related", boundary="===1==")
    for kind, data in (("json", b'{"a":1}'), ("octet-stream", b"a,b\n1,2\n")):
        part = MIMENonMultipart("application", kind)
        part["Content-Transfer-Encoding"] = "binary"
        part.set_payload(data.decode())
        root.attach(part)
    body = root.as_bytes().partition(b"\n\n")[2]
    assert b"\r" not in body
    found = read_multipart('multipart/related; boundary="===1=="', body)
    assert found == (b'{"a":1}', "application/octet-stream", b"a,b\n1,2\n")


def test_the_range_of_a_chunk() -> None:
    assert read_range("bytes 0-9/10") == Range(0, 9, 10)
    assert read_range("bytes 5-9/*") == Range(5, 9, None)
    assert read_range("bytes */10") == Range(None, None, 10)
    assert read_range("bytes */*") == Range(None, None, None)
    assert read_range(None) == Range(0, None, None)
    for text in ("bytes 9-0/10", "bytes 0-10/10", "bytes 0-/10", "bytes -5/10", "items 0-9/10", "bytes=0-9", ""):
        assert refused(read_range, text) == 400


# -- the table of keys ----------------------------------------------------------------------------------


def test_the_table_is_closed() -> None:
    """Every type that it names is in it, and every line of it is used."""
    used = {"Job", "QueryRequest", "Dataset", "Table", "Routine", "Model", "RowAccessPolicy"}
    used |= {name for name in SCHEMAS if name.endswith("Request")}
    for name, each in SCHEMAS.items():
        assert not set(each.types) & each.read_only, name
        for kind in each.types.values():
            inner = kind.strip("[]<>")
            assert inner in {*SCHEMAS, "s", "b", "i", "n", "v", "*"}, (name, kind)
            used.add(inner)
    assert set(SCHEMAS) <= used


def test_what_the_older_document_lacks_is_there() -> None:
    """Source: bigquery note 3."""
    assert {"maxSlots", "queryResultsFormat", "arrowSerializationOptions"} <= set(SCHEMAS["QueryRequest"].types)
    assert "maxSlots" in SCHEMAS["JobConfiguration"].types
    assert "timestampOutputFormat" in SCHEMAS["DataFormatOptions"].types
    assert "systemVariables" not in SCHEMAS["JobConfigurationQuery"].types


@pytest.mark.parametrize(
    "body",
    [{"x": 1}, {"configuration": {"query": {"query": "x", "use_legacy_sql": True}}},
     {"configuration": {"query": {"query": "x", "systemVariables": {}}}},
     {"configuration": {"query": {"query": "x", "Query": "y"}}},
     {"configuration": {"query": {"tableDefinitions": {"t": {"csvOptions": {"x": 1}}}}}},
     {"configuration": {"query": {"queryParameters": [{"parameterValue": {"structValues": {"a": {"x": 1}}}}]}}},
     {"configuration": {"query": {"useLegacySql": "false"}}}, {"configuration": {"query": {"query": ["x"]}}},
     {"configuration": {"load": {"sourceUris": "gs://x"}}}, {"configuration": {"load": {"sourceUris": [None]}}},
     {"configuration": {"labels": {"a": {}}}}, {"configuration": {"query": {"maximumBytesBilled": "1e9"}}},
     {"configuration": {"query": {"maximumBytesBilled": True}}}, {"configuration": {"maxSlots": 1.5}},
     {"configuration": []}, {"jobReference": {"jobId": 7}}],
)  # fmt: skip
def test_unknown_keys_and_types_are_refused(body: dict[str, Any]) -> None:
    assert refused(check, "Job", body) == 400


def test_what_only_answers_have_stays_here() -> None:
    body = {"etag": "x", "statistics": {"a": 1}, "configuration": {"labels": None, "maxSlots": 2.0}}
    assert check("Job", body) == {"configuration": {"labels": None, "maxSlots": 2.0}}
    # node puts keys of its own there, which the service ignores.
    query = {"query": "x", "queryParameters": [{"parameterValue": {"value": 1}}]}
    assert check("Job", {"configuration": {"query": {**query, "dryRun": True, "location": "US"}}}) == {
        "configuration": {"query": query}
    }
    rows = {"rows": [{"insertId": "1", "json": {"any": [{"thing": 1.5}]}}]}
    assert check("TableDataInsertAllRequest", rows) == rows


def test_a_refusal_names_the_key_harmlessly() -> None:
    with pytest.raises(BadRequest) as caught:
        check("Job", {"evil\x1b[2J" + "x" * 100: 1})
    assert "evil\\x1b[2J" in caught.value.text
    assert len(caught.value.text) < 200
    assert bodies.media_type(None) == ""
