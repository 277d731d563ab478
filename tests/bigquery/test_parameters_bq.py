"""Queries, system parameters, headers, the method override and partial answers."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bigquery.methods import METHODS
from protocols.bigquery.parameters import (
    FIELDS_DEPTH_LIMIT,
    FIELDS_LIMIT,
    NEEDED,
    QUERY_LIMIT,
    check_fields,
    forwarded,
    http_method,
    read_fields,
    read_parameters,
    safe_target,
    split_query,
)
from proxy.core.http.heads import BadRequest, RequestHead

RESULTS = METHODS["jobs.getQueryResults"].parameters


def head(method: str = "GET", **fields: str) -> RequestHead:
    return RequestHead(method, "/x", tuple((name.replace("_", "-"), value) for name, value in fields.items()))


def refused(raw: str, types: dict[str, str] | None = None) -> int:
    with pytest.raises(BadRequest) as caught:
        read_parameters(raw, RESULTS if types is None else types)
    return caught.value.status


def test_parameters_are_typed_and_written_anew() -> None:
    """As google-cloud-bigquery and Go ask for a page."""
    found = read_parameters(
        "maxResults=0&location=EU&formatOptions.useInt64Timestamp=True&prettyPrint=false&alt=json&quotaUser=me", RESULTS
    )
    assert found.get("maxResults") == "0"
    assert found.flag("formatOptions.useInt64Timestamp")
    assert not found.flag("nothing")
    assert parse_qsl(found.encoded()) == [
        ("maxResults", "0"), ("location", "EU"), ("formatOptions.useInt64Timestamp", "true"), ("prettyPrint", "false"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    ["access_token=x", "oauth_token=x", "key=x", "callback=f", "alt=media", "alt=proto", "$alt=media",
     "upload_protocol=raw", "$ct=x", "$key=x", "$httpMethod=DELETE", "uploadType=media", "deleteContents=true",
     "MaxResults=1", "maxResults=-1", "maxResults=x", "maxResults=1&maxResults=2", "maxResults=1&%6daxResults=2",
     "fields=a&$fields=b", "alt=json&$alt=json", "formatOptions.useInt64Timestamp=yes", "a;b", "a=%zz", "a=%ff",
     "fields=a(", "formatOptions.useInt64Timestamp="],
)  # fmt: skip
def test_what_is_no_parameter_of_the_method_is_refused(raw: str) -> None:
    assert refused(raw) == 400


def test_a_parameter_may_come_more_than_once_where_it_is_a_list() -> None:
    types = METHODS["jobs.list"].parameters
    assert read_parameters("stateFilter=done&stateFilter=pending", types).encoded().startswith(
        "stateFilter=done&stateFilter=pending"
    )  # fmt: skip


def test_queries_have_a_limit() -> None:
    assert len(split_query("a=" + "x" * (QUERY_LIMIT - 2))) == 1
    assert refused("pageToken=" + "x" * QUERY_LIMIT) == 414


def test_a_long_get_comes_as_a_post() -> None:
    form = "application/x-www-form-urlencoded"
    assert http_method(head("POST", X_HTTP_Method_Override="GET", Content_Type=form)) == ("GET", True)
    assert http_method(head("POST", X_HTTP_Method_Override="PATCH", Content_Type="application/json")) == (
        "PATCH",
        False,
    )
    assert http_method(head("DELETE")) == ("DELETE", False)
    for method, meant in (("POST", "DELETE"), ("POST", "PUT"), ("GET", "DELETE"), ("GET", "GET"), ("POST", "")):
        with pytest.raises(BadRequest):
            http_method(head(method, X_HTTP_Method_Override=meant))


def test_headers_that_mean_a_credential_are_refused() -> None:
    for name in ("X-Goog-Api-Key", "x-goog-fieldmask", "X-Goog-Upload-Protocol", "X-Goog-IAM-Authorization-Token"):
        with pytest.raises(BadRequest):
            check_fields(RequestHead("GET", "/", ((name, "x"),)))
    with pytest.raises(BadRequest):
        check_fields(RequestHead("GET", "/", (("Authorization", "a"), ("authorization", "b"))))
    check_fields(head(Authorization="a", X_Goog_User_Project="other"))


def test_only_listed_headers_go_on() -> None:
    asked = head(
        Authorization="Bearer canary", Cookie="canary", X_Goog_User_Project="other", X_HTTP_Method_Override="GET",
        Host="gw", User_Agent="python (gzip)", If_None_Match="e", If_Match="e", Accept_Encoding="gzip",
        X_Server_Timeout="10", Content_Encoding="gzip", X_Upload_Content_Type="text/csv", X_Goog_API_Client="gl-python",
        Connection="close",
    )  # fmt: skip
    always = {"User-Agent", "If-Match", "X-Server-Timeout", "X-Upload-Content-Type", "X-Goog-API-Client"}
    assert {name for name, _ in forwarded(asked, masked=True)} == always
    assert {name for name, _ in forwarded(asked, masked=False)} == always | {"If-None-Match", "Accept-Encoding"}


def test_no_tape_holds_a_token_from_a_query() -> None:
    target = "/x?access_token=canary&a=b&$oauth_token=canary&%6bey=canary&Key=canary&pageToken=p&flag"
    safe = safe_target(target)
    assert "canary" not in safe
    assert "a=b" in safe
    assert "pageToken=p" in safe
    assert safe.endswith("&flag")
    assert safe_target("/x") == "/x"


def test_fields_are_widened_where_the_gate_has_to_read() -> None:
    mask = read_fields("jobReference,totalRows,pageToken,rows")
    assert mask is not None
    assert mask.upstream("jobs.getQueryResults") == "jobReference,totalRows,pageToken,rows,jobComplete,schema"
    assert mask.upstream("tables.get") == mask.text
    for text, expected in {
        "rows/f/v": "rows,jobReference,jobComplete,schema",
        "rows(f(v)),schema/fields(name)": "rows,schema,jobReference,jobComplete",
        "rows.f": "rows,jobReference,jobComplete,schema",
        "*": "",
        "*/f": "",
        "pageToken,*": "",
    }.items():
        found = read_fields(text)
        assert found is not None
        assert found.upstream("jobs.getQueryResults") == expected
    assert read_fields("") is None
    assert set(NEEDED) <= set(METHODS)


@pytest.mark.parametrize("text", [",", "a,", "a(", "a(b", "a)", "a(b))", "a//b", "a b", "a()", "/a", "a/", "a\n", "é"])
def test_malformed_fields_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        read_fields(text)


def test_fields_have_limits() -> None:
    assert read_fields("a" * FIELDS_LIMIT)
    assert read_fields("/".join("a" * (FIELDS_DEPTH_LIMIT + 1)))
    for text in ("a" * (FIELDS_LIMIT + 1), "/".join("a" * (FIELDS_DEPTH_LIMIT + 2)), "(" * 2000, "a(" * 2000):
        with pytest.raises(BadRequest):
            read_fields(text)


@given(st.text(alphabet="ab,/().*", max_size=30))
def test_any_fields_are_refused_or_hide_nothing(text: str) -> None:
    try:
        mask = read_fields(text)
    except BadRequest:
        return
    if mask is not None:
        upstream = mask.upstream("jobs.getQueryResults")
        assert upstream == "" or set(NEEDED["jobs.getQueryResults"]) <= set(upstream.split(","))
        assert not set(upstream) & set("/()*")
