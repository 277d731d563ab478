"""metav1.Status: what kubectl is told, and what is read of how an exec ended."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from protocols.kubernetes import status
from proxy.core.errors import Refused
from proxy.core.verdict import Deny


def test_a_failure_is_a_status() -> None:
    document = status.failure(404, "there is nothing\x1b[2J here")
    assert document.endswith(b"\n")
    assert json.loads(document) == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "there is nothing\\x1b[2J here",
        "reason": "NotFound",
        "code": 404,
    }


def test_every_error_has_a_reason() -> None:
    for code in (400, 401, 403, 404, 405, 408, 413, 414, 415, 429, 431, 500, 502, 503, 504):
        found = json.loads(status.failure(code, "x"))
        assert found["code"] == code
        assert found["reason"]
        assert status.reason_phrase(code) != "Unknown"
    assert status.reason_phrase(299) == "Unknown"
    assert json.loads(status.failure(403, "x"))["reason"] == "Forbidden"


def test_a_denial_names_rule_reason_and_approval() -> None:
    found = json.loads(status.denial(Refused(Deny("no-prod", "not on a Friday"))))
    assert found["message"] == 'gatecast: denied by rule "no-prod": not on a Friday'
    assert (found["code"], found["reason"]) == (403, "Forbidden")
    assert found["details"] == {"causes": [{"reason": "GatecastRule", "message": "no-prod"}]}
    held = json.loads(status.denial(Refused(Deny("ask", "nobody answered"), approval="A1")))
    assert held["message"] == 'gatecast: denied by rule "ask": nobody answered (approval A1)'
    assert {"reason": "GatecastApproval", "message": "A1"} in held["details"]["causes"]
    back = json.loads(status.denial(Refused(Deny("ask", "x"), approval="A1", withdrawn=True)))
    assert back["message"] == 'gatecast: taken back while held by rule "ask" (approval A1)'


def test_exit_codes_come_back() -> None:
    for code in (0, 1, 7, 126, 137, 255):
        found, text = status.exit_of(status.exit_document(code))
        assert found == code
        assert (text == "") == (code == 0)


def test_an_exec_that_failed_without_an_exit_code() -> None:
    assert status.exit_of(status.failure_document("no such container")) == (None, "no such container")
    assert status.exit_of(b"") == (0, "")
    assert status.exit_of(b"error executing: no shell\n") == (None, "error executing: no shell")
    assert status.exit_of(b'{"status":"Success"}') == (0, "")
    assert status.exit_of(b'{"status":"Maybe"}')[0] is None
    assert status.exit_of(b'{"metadata":{},"status":"Failure","reason":"NonZeroExitCode","message":"m"}') == (None, "m")
    for causes in ('[{"reason":"ExitCode","message":"x"}]', '[{"reason":"ExitCode","message":7}]', "7", "[7]", "null"):
        document = f'{{"status":"Failure","reason":"NonZeroExitCode","details":{{"causes":{causes}}}}}'
        assert status.exit_of(document.encode()) == (None, ""), causes
    other = b'{"status":"Failure","reason":"Other","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}'
    assert status.exit_of(other) == (None, "")
    assert status.exit_of(b"[" * 100_000)[0] is None


def test_the_document_has_a_limit() -> None:
    pad = b" " * (status.DOCUMENT_LIMIT - len(b'{"status":"Success"}'))
    assert status.exit_of(b'{"status":"Success"}' + pad) == (0, "")
    assert status.exit_of(b'{"status":"Success"}' + pad + b" ")[0] is None


@given(st.binary(max_size=200))
def test_garbage_is_a_message(document: bytes) -> None:
    code, text = status.exit_of(document)
    assert code is None or code >= 0
    assert isinstance(text, str)
