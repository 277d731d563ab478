"""A command that gets its estimate later is the command that would have been made with it."""

from __future__ import annotations

import json

import pytest

from protocols.bigquery.commands import command_of, texts_of, with_estimate
from protocols.bigquery.estimates import Estimate
from protocols.bigquery.requests import read_request
from proxy.core.http.heads import RequestHead
from proxy.policy.bigquery import analyse

KNOWN = Estimate(
    known=True, bytes=5, price=0.25, statement_type="SELECT", referenced=("p.seen.t",), routines=("p.fn.f",),
    behind={"p.d.v": ("p.below.t",)},
)  # fmt: skip
AT_ODDS = Estimate(opaque="text and dry run do not agree")
JSON = (("Content-Type", "application/json"),)


@pytest.mark.parametrize("estimate", [Estimate(), KNOWN, AT_ODDS])
@pytest.mark.parametrize(
    "settings",
    [
        {"query": "SELECT a FROM d.t"},
        {"query": "CREATE TEMP TABLE x AS SELECT 1; DELETE FROM d.t WHERE TRUE; SELECT * FROM d.v"},
        {"query": "CALL d.p()"},
        {"query": "SELECT a FROM d.t", "destinationTable": {"projectId": "p", "datasetId": "o", "tableId": "u"}},
    ],
)
def test_an_estimate_may_come_later(settings: dict[str, object], estimate: Estimate) -> None:
    body = json.dumps({"configuration": {"query": settings}}).encode()
    asked = read_request(RequestHead("POST", "/bigquery/v2/projects/p/jobs", JSON), body)
    (text,) = texts_of(asked)
    analysis = analyse(*text)
    plain = command_of(asked, analysis, Estimate(), 1, b"request")
    at_once = command_of(asked, analysis, estimate, 1, b"request")
    assert with_estimate(plain, asked, analysis, estimate) == at_once
    assert (plain == at_once) == (estimate != KNOWN and (not estimate.opaque or plain.facts["opaque"]))
    assert at_once.facts["opaque"] == (bool(estimate.opaque) or plain.facts["opaque"])
