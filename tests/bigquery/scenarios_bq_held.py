"""Python's clients while their query waits for a human. They run in the clients' environment: see scenarios_bq_python.

Each public function asks for text by one way and returns once it has ended as expects says: "rows" (one row, n = 1),
"denied" (403, whose message has the approver's words), "stopped" (somebody cancelled it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.bigquery.scenarios_bq_python import _client


def _ends(expects: str, says: str, ask: Callable[[], list[Any]]) -> None:
    from google.api_core.exceptions import Forbidden, GoogleAPICallError

    try:
        rows = ask()
    except GoogleAPICallError as error:
        assert expects != "rows", str(error)
        assert says in str(error), str(error)
        assert isinstance(error, Forbidden) == (expects == "denied"), repr(error)
        return
    assert expects == "rows", rows
    assert rows == [1], rows


def result(text: str, expects: str, says: str) -> None:
    """jobs.insert, then jobs.get and getQueryResults."""
    _ends(expects, says, lambda: [row.n for row in _client().query(text).result()])


def query_and_wait(text: str, expects: str, says: str) -> None:
    """jobs.query, then getQueryResults."""
    _ends(expects, says, lambda: [row.n for row in _client().query_and_wait(text)])


def dbapi(text: str, expects: str, says: str) -> None:
    """As pandas and others ask."""
    from google.cloud.bigquery import dbapi as module

    def ask() -> list[Any]:
        cursor = module.connect(_client(), prefer_bqstorage_client=False).cursor()
        cursor.execute(text)
        return [row[0] for row in cursor.fetchall()]

    try:
        _ends(expects, says, ask)
    except module.DatabaseError as error:
        assert expects != "rows", str(error)
        assert says in str(error), str(error)


def pandas_gbq(text: str, expects: str, says: str) -> None:
    """It wraps what it is told, and takes whatever was cancelled for a timeout of its own."""
    import pandas_gbq as module

    def ask() -> list[Any]:
        frame = module.read_gbq(
            text, project_id=_client().project, bigquery_client=_client(), use_bqstorage_api=False,
            progress_bar_type=None,
        )  # fmt: skip
        return [int(each) for each in frame["n"]]

    try:
        _ends(expects, says, ask)
    except (module.exceptions.GenericGBQException, module.exceptions.QueryTimeout) as error:
        assert expects != "rows", str(error)
        assert says in str(error), str(error)


def sqlalchemy(text: str, expects: str, says: str) -> None:
    """By an engine over the client."""
    import sqlalchemy as module

    engine = module.create_engine(
        f"bigquery://{_client().project}?user_supplied_client=True", connect_args={"client": _client()}
    )

    def ask() -> list[Any]:
        with engine.connect() as connection:
            return [connection.execute(module.text(text)).scalar()]

    try:
        _ends(expects, says, ask)
    except module.exc.DatabaseError as error:
        assert expects != "rows", str(error)
        assert says in str(error), str(error)


def times_out(text: str, expects: str, says: str) -> None:
    """A caller that waits five seconds is told so, and its job stays: asked for again, it is there."""
    import concurrent.futures

    job = _client().query(text)
    try:
        job.result(timeout=1)
    except concurrent.futures.TimeoutError:
        assert _client().get_job(job.job_id, location=job.location).state == "PENDING"
        return
    raise AssertionError("it did not wait")


def cancels(text: str, expects: str, says: str) -> None:
    """The caller takes its own job back."""
    job = _client().query(text)
    assert job.state == "PENDING", job.state
    assert job.cancel()
    _ends("stopped", says, lambda: [row.n for row in job.result()])
    again = _client().get_job(job.job_id, location=job.location)
    assert (again.state, again.error_result["reason"]) == ("DONE", "stopped")
