"""Scenarios of Python's clients. They run in the clients' environment (tests/peers/bq/worker.py): no pytest there.

Each public function is one; dataset is made for the worker. Google's packages are imported where they are used, as the
tests read this module without them. Nothing here knows whether a gateway is on the way.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import io
import json
import os
import uuid
from collections.abc import Callable
from typing import Any

PROJECT = os.environ.get("GOOGLE_CLOUD_PROJECT", "")


@functools.cache
def _client() -> Any:
    from google.cloud import bigquery
    from google.oauth2.credentials import Credentials

    if os.environ["BQ_DOOR"] == "universe":
        return bigquery.Client()
    options = {"api_endpoint": os.environ["BQ_URL"]}
    return bigquery.Client(PROJECT, credentials=Credentials(os.environ["BQ_TOKEN"]), client_options=options)


def _storage() -> Any:
    from google.cloud.bigquery_storage import BigQueryReadClient
    from google.oauth2.credentials import Credentials

    if os.environ["BQ_DOOR"] == "universe":
        return BigQueryReadClient()
    options = {"api_endpoint": os.environ["BQ_STORAGE"]}
    return BigQueryReadClient(credentials=Credentials(os.environ["BQ_TOKEN"]), client_options=options)


def _raises(kind: type[Exception], call: Callable[[], object]) -> Any:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


@functools.cache
def _seeded(dataset: str) -> str:
    """A dataset with people(id, email, born, addr.zip, tags): three rows."""
    client = _client()
    client.create_dataset(dataset)
    client.query_and_wait(
        f"CREATE TABLE {dataset}.people (id INT64, email STRING, born TIMESTAMP, addr STRUCT<zip STRING>, "
        "tags ARRAY<STRING>)"
    )
    rows = ", ".join(
        f"({index}, 'p{index}@example.org', TIMESTAMP '2001-01-0{index} 10:00:00+00', STRUCT('zip{index}'), ['a', 'b'])"
        for index in (1, 2, 3)
    )
    client.query_and_wait(f"INSERT INTO {dataset}.people VALUES {rows}")
    return dataset


def query(dataset: str) -> None:
    """A job, polled: rows with nested values, its statistics and labels."""
    from google.cloud import bigquery

    text = f"SELECT * FROM {_seeded(dataset)}.people ORDER BY id"
    job = _client().query(text, job_config=bigquery.QueryJobConfig(labels={"team": "a"}))
    assert job.state == "RUNNING", job.state
    rows = [dict(row) for row in job.result()]
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert rows[0]["email"] == "p1@example.org"
    assert rows[0]["addr"] == {"zip": "zip1"}
    assert rows[0]["tags"] == ["a", "b"]
    assert rows[0]["born"] == datetime.datetime(2001, 1, 1, 10, tzinfo=datetime.UTC), rows[0]["born"]
    assert (job.state, job.location) == ("DONE", "US")
    assert job.labels == {"team": "a"}, job.labels
    assert job.statement_type == "SELECT"
    assert [table.table_id for table in job.referenced_tables] == ["people"]
    assert job.total_bytes_processed == 3 * (8 + 20 + 8 + 20 + 20), job.total_bytes_processed
    assert job.total_bytes_billed == 10 << 20
    again = _client().get_job(job.job_id, location=job.location)
    assert "@" in again.user_email
    assert again.query == text
    assert job.job_id in [each.job_id for each in _client().list_jobs(max_results=20)]


def query_and_wait(dataset: str) -> None:
    rows = _client().query_and_wait(f"SELECT id FROM {_seeded(dataset)}.people WHERE id > 1 ORDER BY id")
    assert [row.id for row in rows] == [2, 3]
    assert rows.total_rows == 2


def query_without_a_job(dataset: str) -> None:
    """JOB_CREATION_OPTIONAL: a query id alone."""
    from google.cloud import bigquery

    client = bigquery.Client(
        PROJECT, credentials=_client()._credentials, default_job_creation_mode="JOB_CREATION_OPTIONAL",
        client_options=None if os.environ["BQ_DOOR"] == "universe" else {"api_endpoint": os.environ["BQ_URL"]},
    )  # fmt: skip
    rows = client.query_and_wait(f"SELECT id FROM {_seeded(dataset)}.people ORDER BY id")
    assert rows.job_id is None
    assert rows.query_id
    assert [row.id for row in rows] == [1, 2, 3]


def parameters(dataset: str) -> None:
    from google.cloud import bigquery

    wanted = [bigquery.ArrayQueryParameter("ids", "INT64", [1, 3]), bigquery.ScalarQueryParameter("x", "STRING", "p%")]
    config = bigquery.QueryJobConfig(query_parameters=wanted)
    text = f"SELECT id FROM {_seeded(dataset)}.people WHERE id IN UNNEST(@ids) AND email LIKE @x ORDER BY id"
    assert [row.id for row in _client().query_and_wait(text, job_config=config)] == [1, 3]


def pages(dataset: str) -> None:
    rows = _client().query("SELECT n FROM UNNEST(GENERATE_ARRAY(1, 250)) AS n ORDER BY n").result(page_size=100)
    assert [len(list(page)) for page in rows.pages] == [100, 100, 50]


def types(dataset: str) -> None:
    """Values of every type that the emulator has, decoded by the client."""
    text = (
        "SELECT TRUE AS b, 1.5 AS f, NUMERIC '1.23' AS n, DATE '2026-01-02' AS d, TIME '01:02:03' AS t, b'ab' AS y, "
        "DATETIME '2026-01-02 03:04:05' AS dt, TIMESTAMP '2026-01-02 03:04:05.678901+00' AS ts, CAST(NULL AS INT64) x"
    )
    (row,) = _client().query_and_wait(text)
    assert (row.b, row.f, row.n, row.y, row.x) == (True, 1.5, decimal.Decimal("1.23"), b"ab", None)
    assert (row.d, row.t) == (datetime.date(2026, 1, 2), datetime.time(1, 2, 3))
    assert row.dt == datetime.datetime(2026, 1, 2, 3, 4, 5)
    assert row.ts == datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)


def dml(dataset: str) -> None:
    client = _client()
    client.query_and_wait(f"CREATE TABLE {_seeded(dataset)}.counted AS SELECT n FROM UNNEST([1, 2, 3]) AS n")
    job = client.query(f"DELETE FROM {dataset}.counted WHERE n > 1")
    job.result()
    assert job.num_dml_affected_rows == 2
    assert job.dml_stats.deleted_row_count == 2
    assert [row.n for row in client.query_and_wait(f"SELECT n FROM {dataset}.counted")] == [1]


def failing(dataset: str) -> None:
    """Errors of SQL: of a job, and at once."""
    from google.api_core.exceptions import BadRequest, Conflict, NotFound

    error = _raises(BadRequest, lambda: _client().query(f"SELECT nope FROM {_seeded(dataset)}.people").result())
    assert "nope" in error.message
    error = _raises(BadRequest, lambda: _client().query_and_wait(f"SELECT nope FROM {dataset}.people"))
    assert error.code == 400
    _raises(NotFound, lambda: _client().get_table(f"{dataset}.nothing"))
    _raises(NotFound, lambda: _client().get_job("nothing", location="US"))
    _raises(Conflict, lambda: _client().create_dataset(dataset))


def duplicate(dataset: str) -> None:
    """A job id twice is 409: the client takes the job that is there."""
    name = f"twice-{uuid.uuid4().hex}"
    first = _client().query("SELECT 1 AS a", job_id=name)
    assert [row.a for row in first.result()] == [1]
    from google.api_core.exceptions import Conflict

    error = _raises(Conflict, lambda: _client().query("SELECT 2 AS a", job_id=name))
    assert "Already Exists" in error.message


def dry_run(dataset: str) -> None:
    from google.cloud import bigquery

    config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    job = _client().query(f"SELECT email FROM {_seeded(dataset)}.people", job_config=config)
    assert job.total_bytes_processed == 3 * 20
    assert [str(table) for table in job.referenced_tables] == [f"{PROJECT}.{dataset}.people"]
    assert [field.name for field in job.schema] == ["email"]


def bytes_billed(dataset: str) -> None:
    """The client knows no status for this reason: its error is a 500 with the text."""
    from google.api_core.exceptions import InternalServerError
    from google.cloud import bigquery

    text = f"SELECT id FROM {_seeded(dataset)}.people"
    small = bigquery.QueryJobConfig(maximum_bytes_billed=1000)
    error = _raises(InternalServerError, lambda: _client().query(text, job_config=small).result())
    assert error.errors[0]["reason"] == "bytesBilledLimitExceeded"
    enough = bigquery.QueryJobConfig(maximum_bytes_billed=10 << 20)
    assert len(list(_client().query(text, job_config=enough).result())) == 3


def destination(dataset: str) -> None:
    """Written, appended, replaced, refused because it is not empty; and the anonymous table of a plain SELECT."""
    from google.api_core.exceptions import Conflict
    from google.cloud import bigquery

    text = f"SELECT id, email FROM {_seeded(dataset)}.people"

    def run(disposition: str) -> int:
        config = bigquery.QueryJobConfig(destination=f"{PROJECT}.{dataset}.copied", write_disposition=disposition)
        _client().query(text, job_config=config).result()
        return int(_client().get_table(f"{dataset}.copied").num_rows)

    assert [run("WRITE_EMPTY"), run("WRITE_APPEND"), run("WRITE_TRUNCATE")] == [3, 6, 3]
    _raises(Conflict, lambda: run("WRITE_EMPTY"))
    job = _client().query(text)
    job.result()
    assert job.destination.dataset_id.startswith("_")
    assert job.destination.table_id.startswith("anon")
    assert _client().get_table(job.destination).num_rows == 3
    assert len(list(_client().list_rows(job.destination))) == 3
    assert not [each for each in _client().list_datasets() if each.dataset_id.startswith("_")]


def list_rows(dataset: str) -> None:
    table = _client().get_table(f"{_seeded(dataset)}.people")
    chosen = [field for field in table.schema if field.name in ("id", "email")]
    rows = sorted(tuple(row.values()) for row in _client().list_rows(table, selected_fields=chosen))
    assert rows[0] == (1, "p1@example.org")
    assert len(rows) == 3


def insert_rows_json(dataset: str) -> None:
    from google.cloud import bigquery

    table = bigquery.Table(f"{PROJECT}.{_seeded(dataset)}.streamed", [bigquery.SchemaField("n", "INTEGER")])
    _client().create_table(table)
    assert _client().insert_rows_json(table, [{"n": 1}, {"n": 2}]) == []
    errors = _client().insert_rows_json(table, [{"n": 3}, {"unknown": 4}])
    assert [(each["index"], each["errors"][0]["reason"]) for each in errors] == [(0, "stopped"), (1, "invalid")]
    assert sorted(row.n for row in _client().list_rows(table)) == [1, 2]


def load_json(dataset: str) -> None:
    """Multipart, its second part of type */*."""
    from google.cloud import bigquery

    config = bigquery.LoadJobConfig(schema=[bigquery.SchemaField("n", "INTEGER"), bigquery.SchemaField("s", "STRING")])
    job = _client().load_table_from_json([{"n": 1, "s": "x"}], f"{_seeded(dataset)}.loaded", job_config=config)
    asked = job.job_id
    assert job.result().output_rows == 1
    assert _client().get_job(asked, location="US").state == "DONE"
    assert [tuple(row.values()) for row in _client().list_rows(f"{dataset}.loaded")] == [(1, "x")]


def load_file(dataset: str) -> None:
    """Resumable, in chunks: CSV without a header."""
    from google.cloud import bigquery

    count = 60_000
    text = "".join(f"{index},text of row {index}\n" for index in range(count)).encode()
    config = bigquery.LoadJobConfig(
        schema=[bigquery.SchemaField("n", "INTEGER"), bigquery.SchemaField("s", "STRING")], source_format="CSV"
    )
    file = io.BytesIO(text)
    file.name = "rows.csv"
    client = _client()
    job = client.load_table_from_file(file, f"{_seeded(dataset)}.filed", job_config=config)  # size unknown: resumable
    job.result()
    assert client.get_table(f"{dataset}.filed").num_rows == count
    (row,) = client.query_and_wait(f"SELECT MIN(n) AS low, MAX(s) AS high FROM {dataset}.filed")
    assert (row.low, row.high) == (0, "text of row 9999")


def load_dataframe(dataset: str) -> None:
    """Parquet, which pandas writes."""
    import pandas

    frame = pandas.DataFrame({"n": [1, 2], "s": ["a", "b"]})
    _client().load_table_from_dataframe(frame, f"{_seeded(dataset)}.framed").result()
    assert sorted(row.s for row in _client().list_rows(f"{dataset}.framed")) == ["a", "b"]


def copy_table(dataset: str) -> None:
    source, target = f"{PROJECT}.{_seeded(dataset)}.people", f"{PROJECT}.{dataset}.people_copy"
    _client().copy_table(source, target).result()
    assert len(list(_client().list_rows(target))) == 3
    _client().delete_table(target)
    assert "people_copy" not in [each.table_id for each in _client().list_tables(dataset)]


def extract(dataset: str) -> None:
    """To a bucket, which is a folder at the emulator."""
    job = _client().extract_table(f"{PROJECT}.{_seeded(dataset)}.people", f"gs://exports-{dataset}/people.csv")
    job.result()
    assert job.state == "DONE"


def metadata(dataset: str) -> None:
    """A dataset is described and labelled; patches carry If-Match."""
    held = _client().get_dataset(_seeded(dataset))
    held.description, held.labels = "people", {"a": "b"}
    changed = _client().update_dataset(held, ["description", "labels"])
    assert (changed.description, changed.labels) == ("people", {"a": "b"})
    assert [project.project_id for project in _client().list_projects()]


def dbapi(dataset: str) -> None:
    from google.cloud.bigquery import dbapi as module

    connection = module.connect(_client(), prefer_bqstorage_client=False)
    cursor = connection.cursor()
    cursor.execute(f"SELECT id, email FROM {_seeded(dataset)}.people WHERE id = %(id)s", {"id": 2})
    assert [tuple(row.values()) for row in cursor.fetchall()] == [(2, "p2@example.org")]


def dataframe(dataset: str) -> None:
    """Over REST alone."""
    rows = _client().query(f"SELECT id, email FROM {_seeded(dataset)}.people ORDER BY id").result()
    frame = rows.to_dataframe(create_bqstorage_client=False)
    assert list(frame["email"]) == [f"p{index}@example.org" for index in (1, 2, 3)]


def dataframe_storage(dataset: str) -> None:
    """Over the Storage API: a table, and the anonymous table of a result."""
    frame = _client().list_rows(f"{PROJECT}.{_seeded(dataset)}.people").to_dataframe(bqstorage_client=_storage())
    assert sorted(frame["email"]) == [f"p{index}@example.org" for index in (1, 2, 3)]
    job = _client().query("SELECT n FROM UNNEST(GENERATE_ARRAY(1, 5000)) AS n")
    frame = job.result(page_size=100).to_dataframe(bqstorage_client=_storage())
    assert sorted(frame["n"]) == list(range(1, 5001))


def pandas_gbq(dataset: str) -> None:
    import pandas_gbq as module

    text = f"SELECT id, email FROM {_seeded(dataset)}.people ORDER BY id"
    frame = module.read_gbq(
        text, project_id=PROJECT, bigquery_client=_client(), use_bqstorage_api=False, progress_bar_type=None
    )
    assert list(frame["id"]) == [1, 2, 3]


def sqlalchemy(dataset: str) -> None:
    import sqlalchemy as module

    url = f"bigquery://{PROJECT}?user_supplied_client=True"
    engine = module.create_engine(url, connect_args={"client": _client()})
    text = module.text(f"SELECT email FROM {_seeded(dataset)}.people WHERE id = :id")
    with engine.connect() as connection:
        assert connection.execute(text, {"id": 3}).scalar() == "p3@example.org"


def wrong_token(dataset: str) -> None:
    """A token that nobody knows is 401, told by the client as such."""
    from google.api_core.exceptions import Unauthorized
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import bigquery
    from google.oauth2.credentials import Credentials

    options = {"api_endpoint": _client()._connection.API_BASE_URL}
    client = bigquery.Client(PROJECT, credentials=Credentials("nobodys"), client_options=options)
    error = _raises(Exception, lambda: client.query_and_wait("SELECT 1", retry=None, job_retry=None))
    assert isinstance(error, Unauthorized | GoogleAuthError), json.dumps(str(error))
