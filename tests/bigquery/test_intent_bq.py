"""What a query and its job say of their purpose: comments around the SQL, sqlcommenter's pairs, labels."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bigquery.commands import command_of, with_estimate
from protocols.bigquery.estimates import Estimate
from protocols.bigquery.intent import INTENT_LIMIT, TEXT_LIMIT, comments_of, intent_of, labels_text
from protocols.bigquery.requests import Asked, read_request
from proxy.core.events import ESTIMATE_FACT
from proxy.core.http.heads import RequestHead
from proxy.core.warehouse import Analysis

CASES = [
    ("SELECT 1", ()),
    ("", ()),
    ("-- how many customers left in May?\nSELECT 1", ("how many customers left in May?",)),
    ("# as asked in ticket 7\n\n# by Ana\nSELECT 1", ("as asked in ticket 7 by Ana",)),
    ("SELECT 1 -- for the report", ("for the report",)),
    ("SELECT 1; -- a\n-- b\n", ("a b",)),
    ("/* one */ /* two\n   * lines */ SELECT 1 /* three */;", ("one", "two * lines", "three")),
    ("-- head\n/* block */\n-- tail\nSELECT 1", ("head", "block", "tail")),
    ("SELECT /* of a line */ 1, -- this too\n 2", ()),
    ("SELECT '-- no' , 2", ()),
    ("SELECT '/* no */'", ()),
    ('SELECT """\n-- no\n""" , 1', ()),
    ("SELECT r'\\' -- no'", ()),
    ("SELECT '''it''s -- no''' -- yes", ("yes",)),
    ("SELECT `a--b` FROM t # yes", ("yes",)),
    ("SELECT 1 - -2", ()),
    ("SELECT 4 / 2", ()),
    ("SELECT 1 /* not closed", ("not closed",)),
    ("SELECT 'not closed -- no", ()),
    ("--\n-- \nSELECT 1 /**/", ()),
    ("-- only", ("only",)),
]


@pytest.mark.parametrize(("sql", "expected"), CASES, ids=[str(number) for number in range(len(CASES))])
def test_comments_around_the_text_and_no_others(sql: str, expected: tuple[str, ...]) -> None:
    assert comments_of(sql) == expected


def test_sqlcommenter_is_decoded_and_its_trace_left_out() -> None:
    sql = (
        "SELECT * FROM foo /*action='%2Fparam*d',controller='index',framework='spring',"
        "traceparent='00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01',"
        "tracestate='congo%3Dt61rcWkgMzE%2Crojo%3D00f067aa0ba902b7',why='Ana%5C%27s report'*/"
    )
    assert comments_of(sql) == ("action=/param*d, controller=index, framework=spring, why=Ana\\'s report",)
    assert comments_of("SELECT 1 /*traceparent='00-5bd6-c532-01'*/") == ()


def test_dbt_says_its_model() -> None:
    said = '{"app": "dbt", "dbt_version": "1.11.3", "node_id": "model.shop.customers"}'
    assert comments_of(f"/* {said} */\n\n  create or replace table `p`.`d`.`t` as (select 1)") == (said,)


def test_a_text_that_is_too_long_is_read_at_its_head_alone() -> None:
    body = "SELECT 1 -- behind"
    room = " " * (TEXT_LIMIT - len(body))
    assert comments_of(body[:8] + room + body[8:]) == ("behind",)
    assert comments_of(body[:8] + room + " " + body[8:]) == ()
    assert comments_of("-- before\n" + body[:8] + room + " " + body[8:]) == ("before",)


@pytest.mark.parametrize("piece", ["/*", "'''", '"""', "'", "--", "\\", "'''\\", "a='", "/*a='b',", "`", "- ", " \n#"])
def test_no_text_is_read_more_than_once(piece: str) -> None:
    """What a regular expression could take hours for ends at once; the test would not end."""
    sql = piece * (TEXT_LIMIT // len(piece))
    assert isinstance(comments_of(sql), tuple)
    assert isinstance(comments_of("SELECT 1 " + sql[:-9]), tuple)
    assert isinstance(comments_of(f"SELECT 1 /*{sql[:-20]}*/"), tuple)


@given(st.text(alphabet="ab'\"`\\-#/*; \n=,", max_size=60))
def test_any_text_is_read_without_an_error(sql: str) -> None:
    for said in comments_of(sql):
        assert said
        assert "\n" not in said


def test_a_query_with_labels_says_both() -> None:
    assert _job("-- why\nSELECT 1", {"team": "crm", "urgent": ""}) == "why; labels team=crm, urgent"
    assert _job("SELECT 1", {}) == ""
    assert labels_text({}) == ""


def test_an_intent_has_a_limit() -> None:
    assert len(_job(f"-- {'a' * INTENT_LIMIT}\nSELECT 1", {})) == INTENT_LIMIT
    assert len(_job(f"-- {'a' * (INTENT_LIMIT + 1)}\nSELECT 1", {})) == INTENT_LIMIT
    assert len(_job(f"-- {'a' * (INTENT_LIMIT - 1)}\nSELECT 1", {})) == INTENT_LIMIT - 1


def test_a_job_without_sql_says_its_labels() -> None:
    copy = {
        "sourceTable": {"projectId": "p", "datasetId": "d", "tableId": "a"},
        "destinationTable": {"projectId": "p", "datasetId": "d", "tableId": "b"},
    }
    assert _asked({"configuration": {"copy": copy, "labels": {"ticket": "7"}}}) == "labels ticket=7"


def _job(sql: str, labels: dict[str, str]) -> str:
    return _asked({"configuration": {"query": {"query": sql, "useLegacySql": False}, "labels": labels}})


def _asked(body: object) -> str:
    return intent_of(_read(body))


def _read(body: object) -> Asked:
    head = RequestHead("POST", "/bigquery/v2/projects/my-project/jobs", (("Content-Type", "application/json"),))
    return read_request(head, json.dumps(body).encode())


def test_a_command_has_the_intent_and_the_estimate() -> None:
    configuration = {"query": {"query": "-- why\nSELECT 1", "useLegacySql": False}, "labels": {"team": "crm"}}
    asked = _read({"configuration": configuration})
    plain = command_of(asked, Analysis(), Estimate(), 3, b"request")
    assert (plain.why, plain.taped_facts) == ("why; labels team=crm", {})
    told = with_estimate(plain, asked, Analysis(), Estimate(known=True, bytes=1 << 40, price=6.25))
    assert (told.why, told.taped_facts) == (plain.why, {ESTIMATE_FACT: (1 << 40, 6.25)})
    silent = command_of(_read({"configuration": {"query": {"query": "SELECT 1"}}}), Analysis(), Estimate(), 3, b"")
    assert silent.why == ""
