"""What a request says beside its path and body: the query, Google's system parameters, the method override, the fields.

Every API of Google knows parameters that stand for headers, change the form of the answer or carry a credential. Those
that say nothing are dropped, the rest is refused; what goes to the target is written anew from what was read. A partial
answer (``fields``) may not hide what the gate has to read: in answers with rows and jobs it is widened to whole members
and what the gate needs is added. Widening is safe for the user: it asked for less than it may have.

Of the headers a list goes on (bigquery note 3); nothing is refused that is merely dropped, but for those by which a
client means a credential or another reading of the answer: to drop these silently would be a lie.

Source: "System parameters" and "Partial responses" of Google's API guides; bigquery note 3; googleapiclient/http.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes, urlencode

from protocols.bigquery.bodies import media_type
from proxy.core.http.heads import BadRequest, Fields, RequestHead, values

QUERY_LIMIT: Final = 64 * 1024  # bytes, also in the body of an overridden GET; a selectedFields of 10,000 columns fits
FIELDS_LIMIT: Final = 4096  # characters of a fields mask; Go's, the longest of a client's, has some 500; ours
FIELDS_DEPTH_LIMIT: Final = 16  # levels of a fields mask: a schema has 15 ("Quotas", nested records)

# Dropped: whose quota is used, and how errors and white space look, is the gate's to say.
_DROPPED: Final = frozenset({"quotaUser", "$.xgafv", "prettyPrint", "$prettyPrint"})
_SECRET: Final = frozenset({"access_token", "oauth_token", "key", "bearer_token", "id_token", "token"})
_RAW: Final = re.compile(r"[!-~]*")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_INTEGER: Final = re.compile(r"[0-9]{1,20}")
_BOOLEANS: Final = {"true": "true", "1": "true", "false": "false", "0": "false"}
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|\*")

# What the gate reads in an answer, and so asks for whatever the user's fields leave out. These answers' fields are
# widened to whole members. The job's whole statistics: they name sessions, children and bytes.
_JOB: Final = ("jobReference", "configuration", "status", "statistics")
NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "jobs.insert": _JOB,
    "upload.insert": _JOB,
    "upload.chunk": _JOB,
    "jobs.get": _JOB,
    "jobs.list": ("jobs",),
    "jobs.cancel": ("job",),
    "jobs.query": ("jobReference", "queryId", "jobComplete", "schema", "sessionInfo"),
    "jobs.getQueryResults": ("jobReference", "jobComplete", "schema"),
    "tabledata.list": (),
}

# What a user may say to the target. Everything else is the gate's to say, or stays here: X-Goog-User-Project would
# charge another project.
_PASSED: Final = frozenset({
    "accept", "accept-language", "if-match", "user-agent", "x-goog-api-client", "x-server-timeout",
    "x-upload-content-type", "x-upload-content-length", "content-range",
})  # fmt: skip
# Where masks apply, a 304 would confirm what a value is, and a packed answer would only have to be unpacked.
_PASSED_UNMASKED: Final = frozenset({"if-none-match", "accept-encoding"})
_REFUSED_FIELDS: Final = frozenset({"x-goog-api-key", "x-goog-fieldmask"})
_REFUSED_START: Final = ("x-goog-upload-", "x-goog-iam-")
_ONCE: Final = (
    "authorization", "content-encoding", "content-range", "content-type", "host", "if-match", "x-http-method-override",
    "x-upload-content-length", "x-upload-content-type",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a request, in order. fields: of its partial answer, None where it asks for the whole."""

    pairs: tuple[tuple[str, str], ...] = ()
    fields: FieldsMask | None = None

    def get(self, name: str) -> str:
        """Return the first value of a parameter, "" where there is none."""
        return next((value for found, value in self.pairs if found == name), "")

    def flag(self, name: str) -> bool:
        """Tell whether a parameter says true."""
        return self.get(name) == "true"

    def encoded(self, fields: str = "") -> str:
        """Return the query for the target."""
        extra = [("fields", fields)] if fields else []
        return urlencode([*self.pairs, *extra, ("prettyPrint", "false")])


@dataclass(frozen=True, slots=True)
class FieldsMask:
    """A partial answer: its members by name, each with those below it; () = all below. text: as it was asked for."""

    text: str
    members: tuple[tuple[str, FieldsMask], ...]

    def upstream(self, method: str) -> str:
        """Return the fields to ask the target for; "" = all of them."""
        needed = NEEDED.get(method)
        if needed is None:
            return self.text
        names = [name for name, _ in self.members]
        return "" if "*" in names else ",".join(dict.fromkeys([*names, *needed]))


def http_method(head: RequestHead) -> tuple[str, bool]:
    """Return the method that a request means, and whether its query is its body: a long GET is sent as a POST.

    googleapiclient sends a GET of more than 2,048 characters so; Java clients, which cannot PATCH, a PATCH. All other
    overrides are refused. Source: googleapiclient/http.py (MAX_URI_LENGTH), google-api-client's MethodOverride.
    """
    override = head.get("x-http-method-override")
    if override is None:
        return head.method, False
    meant = override.strip().upper()
    if head.method != "POST" or meant not in ("GET", "PATCH"):
        raise BadRequest(400, "gatecast: the method override is not one that clients need: POST for GET, or for PATCH")
    return meant, meant == "GET" and media_type(head.get("content-type")) == "application/x-www-form-urlencoded"


def check_fields(head: RequestHead) -> None:
    """Refuse headers that come twice, carry another credential or change the answer. Raises BadRequest."""
    for name in _ONCE:
        if len(values(head.fields, name)) > 1:
            raise BadRequest(400, f"the header {name} comes twice")
    for found, _ in head.fields:
        name = found.lower()
        if name in _REFUSED_FIELDS or name.startswith(_REFUSED_START):
            raise BadRequest(400, f"gatecast: the header {name} is not served here")


def forwarded(head: RequestHead, masked: bool) -> Fields:
    """Return the user's fields that go to the target. Host, credential, length and type of the body are the gate's."""
    passed = _PASSED if masked else _PASSED | _PASSED_UNMASKED
    return tuple((name, value) for name, value in head.fields if name.lower() in passed)


def read_parameters(raw: str, types: Mapping[str, str]) -> Parameters:
    """Read a query; types: of the method's own parameters, by name. Raises BadRequest."""
    pairs = []
    fields = None
    seen = set()
    for name, value in split_query(raw):
        kind = types.get(name, "")
        known = name.removeprefix("$") if name in ("$fields", "$alt") else name
        if known in seen and not kind.endswith("*"):
            raise BadRequest(400, f"the parameter {known} comes twice")
        seen.add(known)
        if kind:
            pairs.append((name, _typed(name, value, kind[0])))
        elif known == "fields":
            fields = read_fields(value)
        elif known == "alt":
            if value.lower() != "json":
                raise BadRequest(400, "gatecast: answers are JSON (alt=json)")
        elif name not in _DROPPED:
            raise BadRequest(400, "gatecast: the query has a parameter that this method does not have, or not here")
    return Parameters(tuple(pairs), fields)


def split_query(raw: str) -> list[tuple[str, str]]:
    """Split a query into its parameters; what readers could read differently is refused."""
    if len(raw) > QUERY_LIMIT:
        raise BadRequest(414, "the query is too long")
    if not _RAW.fullmatch(raw) or _BAD_ESCAPE.search(raw) or ";" in raw or "#" in raw:
        raise BadRequest(400, "the query is malformed")
    found = []
    for pair in raw.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            found.append((_text(name), _text(value)))
    return found


def safe_target(target: str) -> str:
    """Return a request's target for a tape or a log: without the credentials that a query can carry."""
    path, mark, query = target.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    return path + mark + "&".join(name + ("=-" if equals and _is_secret(name) else equals + value)
                                  for name, equals, value in pairs)  # fmt: skip


def read_fields(text: str) -> FieldsMask | None:
    """Read a fields mask: "a,b/c,d(e,f/g)". None where it asks for all. Raises BadRequest."""
    if len(text) > FIELDS_LIMIT:
        raise BadRequest(400, "the fields mask is too long")
    if not text:
        return None
    members, at = _members(text, 0, 0)
    if at != len(text):
        raise BadRequest(400, "the fields mask is malformed")
    return FieldsMask(text, members)


def _members(text: str, at: int, depth: int) -> tuple[tuple[tuple[str, FieldsMask], ...], int]:
    """Read members up to the end or a bracket that closes."""
    found = []
    while True:
        member, at = _member(text, at, depth)
        found.append(member)
        if text[at : at + 1] != ",":
            return tuple(found), at
        at += 1


def _member(text: str, at: int, depth: int) -> tuple[tuple[str, FieldsMask], int]:
    word = _WORD.match(text, at)
    if word is None or depth > FIELDS_DEPTH_LIMIT:
        raise BadRequest(400, "the fields mask is malformed")
    at = word.end()
    start = at
    inner: tuple[tuple[str, FieldsMask], ...] = ()
    mark = text[at : at + 1]
    if mark and mark in "/.":
        one, at = _member(text, at + 1, depth + 1)
        inner = (one,)
    elif mark == "(":
        inner, at = _members(text, at + 1, depth + 1)
        if text[at : at + 1] != ")":
            raise BadRequest(400, "the fields mask is malformed")
        at += 1
    return (word[0], FieldsMask(text[start:at], inner)), at


def _typed(name: str, value: str, kind: str) -> str:
    if kind == "b":
        found = _BOOLEANS.get(value.lower())
        if found is None:
            raise BadRequest(400, f"the parameter {name} is true or false")
        return found
    if kind == "i" and not _INTEGER.fullmatch(value):
        raise BadRequest(400, f"the parameter {name} is no number")
    return value


def _text(raw: str) -> str:
    try:
        return unquote_to_bytes(raw.replace("+", " ")).decode()
    except UnicodeDecodeError as error:
        raise BadRequest(400, "the query is not UTF-8") from error


def _is_secret(name: str) -> bool:
    plain = unquote_to_bytes(name).decode("latin-1").strip().lower().lstrip("$")
    return plain in _SECRET
