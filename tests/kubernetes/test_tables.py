"""Answers as rows: Tables, lists, errors; never an exception."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from protocols.kubernetes.tables import CELL_LIMIT, ROWS_LIMIT, SHOWN_LIMIT, error_of, read_answer, rows_of


def test_a_table_is_shown_without_its_wide_columns() -> None:
    value = {
        "kind": "Table",
        "columnDefinitions": [
            {"name": "Name", "priority": 0},
            {"name": "IP", "priority": 1},
            {"name": "Ready"},
            {"name": "Restarts"},
        ],
        "rows": [{"cells": ["web", "10.0.0.1", True, 3]}, {"cells": ["db", None, None]}, {"cells": "no"}],
    }
    shown = rows_of(value)
    assert shown.columns == ("Name", "Ready", "Restarts")
    assert shown.rows == (("web", "true", "3"), ("db", None, None))
    assert shown.count == 3


def test_a_table_of_all_namespaces_says_whose_each_row_is() -> None:
    rows = [
        {"cells": ["web"], "object": {"metadata": {"namespace": "pay"}}},
        {"cells": ["web"], "object": {"metadata": {"namespace": "dev"}}},
        {"cells": ["web"]},
    ]
    value = {"kind": "Table", "columnDefinitions": [{"name": "Name"}], "rows": rows}
    shown = rows_of(value, everywhere=True)
    assert shown.columns == ("Namespace", "Name")
    assert shown.rows == (("pay", "web"), ("dev", "web"), (None, "web"))
    assert rows_of(value).rows == (("web",), ("web",), ("web",))
    nodes = rows_of({**value, "rows": [{"cells": ["n1"], "object": {"metadata": {"name": "n1"}}}]}, everywhere=True)
    assert (nodes.columns, nodes.rows) == (("Name",), (("n1",),))


def test_a_list_is_shown_by_its_names() -> None:
    item = {"metadata": {"namespace": "pay", "name": "web", "creationTimestamp": "2026-01-02T03:04:05Z"}}
    shown = rows_of({"kind": "PodList", "items": [item, {"metadata": 1}, 7]})
    assert shown.columns == ("NAMESPACE", "NAME", "CREATED")
    assert shown.rows == (("pay", "web", "2026-01-02T03:04:05Z"), (None, None, None), (None, None, None))
    nodes = rows_of({"kind": "NodeList", "items": [{"metadata": {"name": "n1"}}]})
    assert (nodes.columns, nodes.rows) == (("NAME", "CREATED"), (("n1", None),))
    assert rows_of({"kind": "Pod", "metadata": {"name": "x"}}).rows == ()


def test_rows_and_cells_have_limits() -> None:
    items = [{"metadata": {"name": "n" * (CELL_LIMIT + 1)}}] * (ROWS_LIMIT + 1)
    shown = rows_of({"kind": "NodeList", "items": items})
    assert (len(shown.rows), shown.count) == (ROWS_LIMIT, ROWS_LIMIT + 1)
    assert shown.rows[0][0] == "n" * CELL_LIMIT + "..."
    assert (
        rows_of({"kind": "NodeList", "items": [{"metadata": {"name": "n" * CELL_LIMIT}}]}).rows[0][0]
        == "n" * CELL_LIMIT
    )


def test_only_so_much_is_read() -> None:
    def answer(size: int) -> bytes:
        return b'{"a":"' + b"x" * (size - 8) + b'"}'

    assert read_answer(answer(SHOWN_LIMIT)) is not None
    assert read_answer(answer(SHOWN_LIMIT + 1)) is None
    assert read_answer(b"[1]") is None
    assert read_answer(b"[" * 100_000) is None
    assert read_answer(b"\xff") is None


def test_errors() -> None:
    value = {"kind": "Status", "status": "Failure", "code": 404, "message": "gone", "reason": "NotFound"}
    assert error_of(value) == {"code": "404", "message": "gone", "reason": "NotFound"}
    assert error_of({**value, "status": "Success"}) is None
    assert error_of({"kind": "Pod"}) is None
    assert error_of(None) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["kind", "items", "rows", "cells", "columnDefinitions", "metadata", "name", "priority", "status"]
            ),
            inner | st.sampled_from(["Table", "PodList", "Status", "Failure"]),
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_answer_can_be_shown(value: object) -> None:
    shown = rows_of(value)
    assert all(len(row) == len(shown.columns) for row in shown.rows)
    error_of(value)
    read_answer(json.dumps(value).encode())
