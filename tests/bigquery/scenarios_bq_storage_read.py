"""Scenarios of Google's client of the Storage API. They run in the clients' environment: no pytest there.

Each public function is one; email says what the emails that come are like: "plain", or what masks make of all of them.
"""

from __future__ import annotations

import functools
import os
from typing import Any

PROJECT = os.environ.get("GOOGLE_CLOUD_PROJECT", "")
ROWS = 50_000


@functools.cache
def _client() -> Any:
    from google.cloud.bigquery_storage import BigQueryReadClient
    from google.oauth2.credentials import Credentials

    options = {"api_endpoint": os.environ["BQ_STORAGE"]}
    return BigQueryReadClient(credentials=Credentials(os.environ["BQ_TOKEN"]), client_options=options)


def _session(count: int, form: str = "ARROW", streams: int = 1) -> Any:
    from google.cloud.bigquery_storage import types

    table = f"projects/{PROJECT}/datasets/synthetic/tables/rows_{count}"
    asked = types.ReadSession(table=table, data_format=types.DataFormat[form])
    return _client().create_read_session(parent=f"projects/{PROJECT}", read_session=asked, max_stream_count=streams)


def _email(number: int, email: str) -> str:
    return f"user{number}@example.org" if email == "plain" else email


def _check(rows: list[dict[str, Any]], email: str, first: int, end: int) -> None:
    assert [row["id"] for row in rows] == list(range(first, end)), (len(rows), first, end)
    assert all(row["email"] == _email(row["id"], email) and row["text"] == f"{row['id']:064x}" for row in rows)


def arrow(email: str) -> None:
    session = _session(ROWS)
    _check(_client().read_rows(session.streams[0].name).to_arrow(session).to_pylist(), email, 0, ROWS)


def dataframe(email: str) -> None:
    session = _session(ROWS)
    frame = _client().read_rows(session.streams[0].name).to_dataframe(session)
    assert list(frame["id"]) == list(range(ROWS))
    assert list(frame["email"]) == [_email(number, email) for number in range(ROWS)]


def avro(email: str) -> None:
    """The client's own reader of Avro wants fastavro, which its environment lacks: the rows are read by hand."""
    session = _session(1000, "AVRO")
    (message,) = _client().read_rows(session.streams[0].name)
    data, place, rows = message.avro_rows.serialized_binary_rows, 0, []

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value >> 1 ^ -(value & 1)

    def text() -> str:
        nonlocal place
        assert number() == 1
        size = number()
        place += size
        return str(data[place - size : place], "utf-8")

    while place < len(data):
        assert number() == 1
        rows.append({"id": number(), "email": text(), "text": text()})
    _check(rows, email, 0, 1000)


def streams(email: str) -> None:
    """Several, one of them split, one read from its middle."""
    session = _session(ROWS, streams=4)
    assert len(session.streams) == 4
    parts = [each.name for each in session.streams]
    split = _client().split_read_stream(request={"name": parts[3], "fraction": 0.5})
    parts[3:] = [split.primary_stream.name, split.remainder_stream.name]
    rows = [row for name in parts for row in _client().read_rows(name).to_arrow(session).to_pylist()]
    _check(rows, email, 0, ROWS)
    later = _client().read_rows(parts[0], offset=100).to_arrow(session).to_pylist()
    _check(later, email, 100, ROWS // 4)


def restricted(email: str) -> None:
    """A filter on what is masked is refused, shown whole by the client."""
    from google.api_core.exceptions import PermissionDenied
    from google.cloud.bigquery_storage import types

    table = f"projects/{PROJECT}/datasets/synthetic/tables/rows_10"
    options = types.ReadSession.TableReadOptions(row_restriction="email LIKE 'user1%'")
    asked = types.ReadSession(table=table, data_format=types.DataFormat.ARROW, read_options=options)
    try:
        _client().create_read_session(parent=f"projects/{PROJECT}", read_session=asked)
    except PermissionDenied as error:
        assert email != "plain", error
        assert "the row_restriction reads a masked column (email)" in error.message, error.message
    else:
        assert email == "plain"


def writes(email: str) -> None:
    from google.api_core.exceptions import PermissionDenied
    from google.cloud.bigquery_storage import BigQueryWriteClient, types
    from google.oauth2.credentials import Credentials

    options = {"api_endpoint": os.environ["BQ_STORAGE"]}
    client = BigQueryWriteClient(credentials=Credentials(os.environ["BQ_TOKEN"]), client_options=options)
    parent = client.table_path(PROJECT, "synthetic", "rows_10")
    try:
        client.create_write_stream(parent=parent, write_stream=types.WriteStream(type_="PENDING"))
    except PermissionDenied as error:
        assert "the Storage Write API is not allowed through this gateway" in error.message, error.message
    else:
        raise AssertionError("it was let in")
