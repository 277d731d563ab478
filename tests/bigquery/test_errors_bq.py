"""Google's error document, the token endpoint's, and what clients make of their reasons."""

from __future__ import annotations

import json

import pytest

from protocols.bigquery import errors
from protocols.bigquery.errors import MESSAGE_LIMIT, RETRIED
from proxy.core.errors import Refused
from proxy.core.verdict import Deny

DENY = Deny("no-prod", "not on a Friday")


def test_a_refusal_has_googles_shape() -> None:
    text = 'Access Denied: gatecast: denied by rule "no-prod": not on a Friday (approval A1 https://gw/approvals/A1)'
    assert json.loads(errors.denial(Refused(DENY, approval="A1"), "https://gw/approvals/A1")) == {
        "error": {
            "code": 403,
            "message": text,
            "status": "PERMISSION_DENIED",
            "errors": [{"message": text, "domain": "global", "reason": "accessDenied"}],
        }
    }


def test_a_refusal_says_what_is_known() -> None:
    assert errors.denial_text(Refused(DENY)) == 'Access Denied: gatecast: denied by rule "no-prod": not on a Friday'
    assert errors.denial_text(Refused(DENY, approval="A1")).endswith("Friday (approval A1)")
    assert errors.denial_text(Refused(DENY, approval="A1"), "u").endswith("(approval A1 u)")
    back = errors.denial_text(Refused(DENY, approval="A1", withdrawn=True))
    assert back == 'Access Denied: gatecast: taken back while held by rule "no-prod" (approval A1)'


@pytest.mark.parametrize(
    "code", [400, 401, 403, 404, 405, 408, 409, 412, 413, 414, 415, 429, 431, 500, 501, 502, 503, 504]
)
def test_no_failure_is_repeated(code: int) -> None:
    error = json.loads(errors.failure(code, "x"))["error"]
    assert error["code"] == code
    assert error["status"]
    assert error["errors"][0]["reason"] not in RETRIED
    assert error["errors"][0]["reason"]


def test_only_what_did_nothing_is_repeated() -> None:
    error = json.loads(errors.unavailable("the target cannot be reached"))["error"]
    assert (error["code"], error["status"], error["errors"][0]["reason"]) == (503, "UNAVAILABLE", "backendError")


def test_what_is_another_s_is_not_found() -> None:
    error = json.loads(errors.not_found("Job", "p:US.j"))["error"]
    assert (error["code"], error["status"], error["message"]) == (404, "NOT_FOUND", "Not found: Job p:US.j")
    assert error["errors"][0]["reason"] == "notFound"
    assert json.loads(errors.duplicate("Job", "p:US.j"))["error"]["errors"][0]["reason"] == "duplicate"


def test_messages_are_harmless_and_short() -> None:
    error = json.loads(errors.failure(400, "a\x1b[2J\n\ud800" + "x" * 2 * MESSAGE_LIMIT))["error"]
    assert error["message"].startswith("a\\x1b[2J\\n\\ud800x")
    assert len(error["message"]) == MESSAGE_LIMIT


def test_a_bad_token_is_401() -> None:
    document, field = errors.unauthenticated("the token is over")
    error = json.loads(document)["error"]
    assert (error["code"], error["status"], error["errors"][0]["reason"]) == (401, "UNAUTHENTICATED", "authError")
    assert field == ("WWW-Authenticate", 'Bearer realm="gatecast", error="invalid_token"')


def test_the_token_endpoint_has_its_own() -> None:
    status, document = errors.token_error("invalid_grant", 'the "token"\\ is over\n\u00e9')
    assert status == 400
    assert json.loads(document) == {"error": "invalid_grant", "error_description": "the 'token'/ is over??"}
    assert errors.token_error("invalid_client", "x")[0] == 401
