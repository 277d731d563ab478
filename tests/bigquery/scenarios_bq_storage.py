"""The Storage API by Google's own client, for two users. They run in the clients' environment: see scenarios_bq_python.

place is a file by which one user's client tells the other's the names of its read session, stream and result table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bigquery.scenarios_bq_python import PROJECT, _client, _raises, _seeded, _storage

HIDDEN = "[redacted]"


def _session(client: Any, table: str, **options: Any) -> Any:
    from google.cloud.bigquery_storage import types

    asked = types.ReadSession(table=table, data_format=types.DataFormat.ARROW, read_options=options)
    return client.create_read_session(parent=f"projects/{PROJECT}", read_session=asked, max_stream_count=1)


def makes(dataset: str, place: str) -> None:
    """A read session with a stream, and a result."""
    table = f"projects/{PROJECT}/datasets/{_seeded(dataset)}/tables/people"
    made = _session(_storage(), table)
    job = _client().query("SELECT 'of ana' AS s")
    job.result()
    where = job.destination
    found = {
        "session": made.name, "stream": made.streams[0].name, "job": job.job_id, "table": table,
        "result": f"projects/{PROJECT}/datasets/{where.dataset_id}/tables/{where.table_id}",
    }  # fmt: skip
    Path(place).write_text(json.dumps(found))


def reads(place: str) -> None:
    """Its own stream, with masks."""
    stream = json.loads(Path(place).read_text())["stream"]
    frame = _storage().read_rows(stream).to_dataframe()
    assert sorted(frame["id"]) == [1, 2, 3]
    assert set(frame["email"]) == {HIDDEN}


def reads_anothers(place: str) -> None:
    """What is another's is not there: the stream, whole or split, the result, and the rows of the job."""
    from google.api_core.exceptions import NotFound

    found, client = json.loads(Path(place).read_text()), _storage()
    _raises(NotFound, lambda: list(client.read_rows(found["stream"])))
    _raises(NotFound, lambda: client.split_read_stream(request={"name": found["stream"]}))
    _raises(NotFound, lambda: _session(client, found["result"]))
    stream = f"projects/{PROJECT}/locations/us/jobs/{found['job']}/streams/_default"
    _raises(NotFound, lambda: list(client.read_rows(stream)))
    theirs = _session(client, found["table"])  # the table itself is everybody's
    assert theirs.name != found["session"]


def frames(dataset: str) -> None:
    """to_dataframe() as people use it: of a table, of a query, of a query that renames."""
    client = _client()
    table = client.list_rows(f"{PROJECT}.{_seeded(dataset)}.people").to_dataframe(bqstorage_client=_storage())
    assert set(table["email"]) == {HIDDEN}, table
    assert sorted(table["id"]) == [1, 2, 3]
    for text, column in (
        (f"SELECT id, email FROM {dataset}.people", "email"),
        (f"SELECT id, UPPER(email) AS mail FROM {dataset}.people", "mail"),
    ):
        rows = client.query(text).result(page_size=2)
        frame = rows.to_dataframe(bqstorage_client=_storage())
        assert set(frame[column]) == {HIDDEN}, frame
        assert sorted(frame["id"]) == [1, 2, 3]


def oracles(dataset: str) -> None:
    """A row restriction on a masked column would tell what is hidden."""
    from google.api_core.exceptions import GoogleAPICallError

    table = f"projects/{PROJECT}/datasets/{_seeded(dataset)}/tables/people"
    error = _raises(
        GoogleAPICallError,
        lambda: _session(_storage(), table, row_restriction="email = 'p1@example.org'"),
    )
    assert "p1@" not in str(error)
