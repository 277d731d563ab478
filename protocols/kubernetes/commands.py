"""One exchange with the API server: the user's request -> Command, the head for the target, and how the answer is read.

facts of a Command, absent where they do not apply: api_group, api_version, resource, subresource, namespace, name,
cluster_scoped (True, False, None: not known), path (of no resource), dry_run, field_manager, label_selector,
field_selector, content_type; of streams: container, argv, shell, stdin, tty, transfer ("in", "out"), transfer_path; of
what is written: images, privileges, opaque_body (some of it could not be read), fields_written (see written.py); opaque
(nobody here can say what it does); of logs: container.

To the target go only fields that are chosen here, and the query of a stream only as it was read. Where masks are on the
permit, the answer is asked for as JSON and without compression.

Source: kubernetes note 2, 6 and 7; RFC 9110 7.6.1; k8s.io/apiserver/pkg/authentication/request/websocket.
"""

from __future__ import annotations

import base64
import binascii
import re
import shlex
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode

from protocols.kubernetes import status
from protocols.kubernetes.bodies import Body, at, media_type, read_body, text_at
from protocols.kubernetes.kubectl_text import kubectl_line
from protocols.kubernetes.pods import read_pods
from protocols.kubernetes.request_info import RequestInfo
from protocols.kubernetes.tables import error_of, read_answer, rows_of
from protocols.kubernetes.verbs import KIND_OF as KIND_OF
from protocols.kubernetes.verbs import (
    OPAQUE,
    UNREAD,
    UPGRADED,
    is_cluster_scoped,
    kind_of,
    object_of,
    verb_of,
)
from protocols.kubernetes.verbs import VERBS as VERBS
from protocols.kubernetes.written import fields_written
from proxy.core.errors import Refused
from proxy.core.events import Command, Result
from proxy.core.gate import ShellReader
from proxy.core.http.heads import (
    BadRequest,
    Fields,
    RequestHead,
    ResponseHead,
    encode_request,
    values,
    words,
)
from proxy.core.parties import Target

TOKEN_PROTOCOL: Final = "base64url.bearer.authorization.k8s.io."  # noqa: S105  # a name, from the API server
_WRITES: Final = frozenset({"create", "update", "patch", "debug"})

# What a user may say to the target. Everything else is the gate's to say, or stays here.
_PASSED: Final = frozenset({
    "accept", "content-type", "user-agent", "if-none-match", "if-match", "audit-id", "accept-encoding",
})  # fmt: skip
_PASSED_PROXY: Final = frozenset({"range", "if-range", "if-modified-since", "accept-language", "cache-control"})
_ONCE: Final = ("authorization", "content-type", "content-encoding", "host")
_CONNECTION_WORDS: Final = frozenset({"close", "keep-alive", "upgrade", "te", "trailers", "http2-settings"})
_STREAM_FLAGS: Final = ("stdin", "stdout", "stderr", "tty")
_TAR_IN: Final = (("tar", "-xmf", "-"), ("tar", "--no-same-permissions", "--no-same-owner", "-xmf", "-"))
_JSON: Final = "application/json"
_TEXT: Final = re.compile(r"text/|application/(?:openmetrics-text|javascript|xml)\b")


@dataclass(frozen=True, slots=True)
class BadGateway:
    """An answer that cannot be passed on."""

    text: str


# "pass": bytes as they are; "text": a stream through the masks of streams; "lines": one JSON object a line (a watch);
# "document": one JSON document.
Treatment = Literal["pass", "text", "lines", "document"] | BadGateway


class Conversation:
    """One exchange, or the handshake of one stream. See the module."""

    def __init__(self, target: Target, flow: int, shell: ShellReader) -> None:
        self._target = target
        self._flow = flow
        self._shell = shell
        self._verb = "UNKNOWN"
        self._method = ""
        self._everywhere = False  # no namespace is named
        self._framing: Fields = ()

    # -- towards the target ---------------------------------------------------------------------------

    def from_user(self, head: RequestHead, info: RequestInfo, body: bytes | None) -> Command:
        """Read a request. body: whole; None: the caller passes it on piece by piece (UNREAD). Raises BadRequest."""
        check_fields(head)
        verb = verb_of(info)
        if head.upgrade and verb not in UPGRADED:
            raise BadRequest(400, f"a connection cannot be upgraded for {verb}")
        if verb == "UNKNOWN":
            raise BadRequest(405, "nothing is known of such a request")
        if verb == "portforward" and info.get("ports") is not None:
            raise BadRequest(400, "the old form of a port-forward, with ports in the query, is not served")
        content = self._content(head, info, verb, body)
        facts = _facts(info, verb, head, content)
        if verb in ("exec", "attach"):
            facts |= self._stream_facts(info, verb)
            verb = {"in": "copy-in", "out": "copy-out"}.get(facts.get("transfer", ""), verb)
        self._verb, self._method = verb, head.method
        self._everywhere = not facts.get("namespace")
        self._framing = _framing(head, body, verb)
        name = facts.get("name", "")
        return Command(
            protocol="kubernetes",
            verb=verb,
            kind=kind_of(info, verb),
            text=kubectl_line(info, verb, head.method, facts, content),
            objects=(object_of(info, name or _generated(content)),),
            facts=facts,
            flow=self._flow,
            data=b"" if head.upgrade else self._taped(head, info, body or b""),
        )

    def upstream(
        self, head: RequestHead, info: RequestInfo, masked: bool, extra: Fields = ()
    ) -> tuple[str, str, Fields]:
        """Return method, target and fields of the request for the API server; extra (credential) come last.

        Of an upgrade the fields of the upgrade itself are not here: they are the leg's. from_user comes first.
        """
        fields: list[tuple[str, str]] = [("Host", self._host())]
        # A part of an answer (a range) could be one of a value, which a mask no longer knows.
        passed = _PASSED | _PASSED_PROXY if self._verb == "proxy" and not masked else _PASSED
        if masked and self._verb == "log" and info.get("limitBytes") is not None:
            raise BadRequest(400, "gatecast: masks apply to this log, which cannot be cut in its middle (limitBytes)")
        rewritten = masked and self._verb not in ("proxy", "get-path", "path", "discover")
        for name, value in head.fields:
            lower = name.lower()
            if lower not in passed and not lower.startswith("kubectl-"):
                continue
            if (lower == "accept-encoding" and masked) or (lower == "accept" and rewritten):
                continue
            if lower in ("content-type", "accept-encoding") and head.upgrade:
                continue
            fields.append((name, value))
        if rewritten:
            fields.append(("Accept", json_alternatives(values(head.fields, "accept"))))
        fields += [] if head.upgrade else self._framing
        base = self._target.settings.get("base_path") or ""  # of a server behind another's path
        return head.method, f"{base}{self._path(info)}", (*fields, *extra)

    def refuse(self, refused: Refused) -> tuple[int, bytes]:
        """Return the answer to a request that has no permit."""
        return 403, status.denial(refused)

    def _content(self, head: RequestHead, info: RequestInfo, verb: str, body: bytes | None) -> Body:
        if not body or verb in UNREAD:
            return Body("none")
        if head.method in ("GET", "HEAD") or verb in UPGRADED:
            raise BadRequest(400, f"a body does not belong into a {head.method} of this kind")
        content = read_body(head.get("content-type") or "", body)
        if content.patch != (head.method == "PATCH"):
            raise BadRequest(415, "the type of the body does not go with the method")
        return content

    def _stream_facts(self, info: RequestInfo, verb: str) -> dict[str, Any]:
        facts: dict[str, Any] = {"stdin": info.flag("stdin"), "tty": info.flag("tty")}
        if container := info.get("container"):
            facts["container"] = container
        if verb == "exec":
            argv = info.values("command")
            facts["argv"] = argv
            script = self._shell(shlex.join(argv))
            facts |= {"shell": script, "opaque": script.opaque}
            if not facts["tty"]:
                facts |= _transfer(argv, facts["stdin"])
        return facts

    def _taped(self, head: RequestHead, info: RequestInfo, body: bytes) -> bytes:
        method, _, fields = self.upstream(head, info, masked=False)
        return encode_request(method, self._path(info), fields) + body

    def _path(self, info: RequestInfo) -> str:
        """The path as it came; the query too, but for streams, whose query goes as it was read."""
        if self._verb == "portforward":
            return info.raw_path
        if info.subresource not in ("exec", "attach") or not info.is_resource:
            return info.raw
        query = [(name, "true" if info.flag(name) else "false") for name in _STREAM_FLAGS if info.get(name) is not None]
        if container := info.get("container"):
            query.append(("container", container))
        if info.subresource == "exec":
            query += [("command", word) for word in info.values("command")]
        return f"{info.raw_path}?{urlencode(query, quote_via=quote)}" if query else info.raw_path

    def _host(self) -> str:
        host = f"[{self._target.host}]" if ":" in self._target.host else self._target.host
        return host if self._target.port in (0, 443) else f"{host}:{self._target.port}"

    # -- towards the user -----------------------------------------------------------------------------

    def treatment(self, response: ResponseHead, masked: bool) -> Treatment:
        """Say how the body of an answer goes to the user."""
        if not masked or self._verb == "discover" or self._method == "HEAD":
            return "pass"
        if response.status in (204, 304) or response.length == 0:
            return "pass"
        if response.status == 206:
            return BadGateway("a part of an answer cannot be masked")
        if any(word != "identity" for word in words(response.fields, "content-encoding")):
            return BadGateway("the answer is compressed, and cannot be masked")
        kind = media_type(response.get("content-type") or "")
        if self._verb in ("proxy", "get-path", "path"):
            plain = kind == _JSON or kind.endswith("+json") or _TEXT.match(kind)
            return "text" if plain else BadGateway(f"an answer of the type {kind[:80]!r} cannot be masked")
        if self._verb == "log" and response.status < 400:
            return "text"
        if kind == _JSON:
            return "lines" if self._verb == "watch" and response.status < 400 else "document"
        if kind.startswith("text/"):
            return "text"
        return BadGateway(f"an answer of the type {kind[:80]!r} cannot be masked")

    def result(self, response: ResponseHead, shown: bytes, size_bytes: int, sent: int) -> Result:
        """Say how it ended. shown: the body as the user saw it, as far as it was kept; sent: the request's body."""
        tag = f"{response.status} {response.reason or status.reason_phrase(response.status)}"
        content_type = response.get("content-type") or ""
        details: dict[str, Any] = {"flow": self._flow, "status": response.status, "sent": sent}
        if content_type:
            details["content_type"] = content_type
        if media_type(content_type) != _JSON or len(shown) != size_bytes or self._verb in UNREAD:
            return Result(tag, size_bytes=size_bytes, details=details)
        value = read_answer(shown)
        error = error_of(value)
        if self._verb not in ("get", "list"):
            return Result(tag, size_bytes=size_bytes, error=error, details=details)
        rows = rows_of(value, self._everywhere)
        return Result(tag, rows.columns, rows.rows, rows.count, size_bytes, error, details)


# -- the heads of requests ------------------------------------------------------------------------------


def token_of(head: RequestHead) -> str | None:
    """Return the bearer token of a request: of Authorization, or of a subprotocol of a WebSocket. Raises BadRequest."""
    if len(found := values(head.fields, "authorization")) > 1:
        raise BadRequest(400, "the request has two Authorization fields")
    scheme, _, token = (found[0] if found else "").strip().partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    offered = [each.strip() for value in values(head.fields, "sec-websocket-protocol") for each in value.split(",")]
    tokens = [each for each in offered if each.startswith(TOKEN_PROTOCOL)]
    if not tokens:
        return bearer or None
    if len(tokens) > 1 or len(offered) < 2 or found:
        raise BadRequest(400, "a token as a subprotocol comes once, beside another subprotocol, and alone")
    encoded = tokens[0].removeprefix(TOKEN_PROTOCOL)
    try:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", encoded):
            raise ValueError("no base64url")
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, ValueError) as error:
        raise BadRequest(400, "the token in the subprotocol is malformed") from error


def check_fields(head: RequestHead) -> None:
    """Refuse a head that speaks for somebody else, or that two readers would read differently. Raises BadRequest."""
    for name, _ in head.fields:
        lower = name.lower().replace("_", "-")
        if lower.startswith("impersonate-"):
            raise BadRequest(
                403, "gatecast: impersonation (--as) is the gateway's: it tells the target who you are. Leave it out"
            )
        if lower.startswith("x-remote-"):
            raise BadRequest(403, f"gatecast: the field {name[:40]} is a front proxy's; leave it out")
    for name in _ONCE:
        if len(values(head.fields, name)) > 1:
            raise BadRequest(400, f"the field {name} comes twice")
    nominated = set(words(head.fields, "connection")) - _CONNECTION_WORDS
    if nominated:
        raise BadRequest(400, f"Connection names {min(nominated)[:40]!r}, which is not the connection's")
    if any(word != "identity" for word in words(head.fields, "content-encoding")):
        raise BadRequest(415, "bodies with a Content-Encoding are not served")


def json_alternatives(accepts: list[str]) -> str:
    """Return the alternatives of Accept that are JSON, as a Table too; JSON alone where there is none.

    Source: kubernetes note 7; RFC 9110 12.5.1.
    """
    found = [
        each.strip() for value in accepts for each in value.split(",") if media_type(each) == _JSON and '"' not in each
    ]
    return ", ".join(dict.fromkeys(found)) or _JSON


def _framing(head: RequestHead, body: bytes | None, verb: str) -> Fields:
    """The fields that frame the request's body: of a body that was read, its size."""
    passed_on = body is None or (not body and verb in UNREAD)
    if passed_on and head.length is None:
        return (("Transfer-Encoding", "chunked"),)
    size = (head.length or 0) if passed_on else len(body or b"")
    if not size and head.method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        return ()
    return (("Content-Length", str(size)),)


# -- facts ----------------------------------------------------------------------------------------------


def _facts(info: RequestInfo, verb: str, head: RequestHead, body: Body) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if verb in OPAQUE:
        facts["opaque"] = True
    if not info.is_resource:
        return {**facts, "path": info.path}
    facts |= {
        "api_group": info.api_group,
        "api_version": info.api_version,
        "resource": info.resource,
        "subresource": info.subresource,
        "namespace": info.namespace,
        "name": info.name,
        "cluster_scoped": is_cluster_scoped(info),
    }
    facts |= {
        fact: value
        for fact, name in (("label_selector", "labelSelector"), ("field_selector", "fieldSelector"))
        if (value := info.get(name))
    }
    if verb == "log" and (container := info.get("container")):
        facts["container"] = container
    if verb in _WRITES or verb in ("delete", "deletecollection"):
        facts["dry_run"] = _dry_run(info, body)
        if manager := info.get("fieldManager"):
            facts["field_manager"] = manager
        if content_type := head.get("content-type"):
            facts["content_type"] = media_type(content_type)
    if verb in _WRITES:
        facts |= _written(info, verb, body)
    return facts


def _written(info: RequestInfo, verb: str, body: Body) -> dict[str, Any]:
    """What is known of an object, or a patch."""
    facts: dict[str, Any] = {"fields_written": fields_written(info.resource_name, info.verb, body)}
    if verb == "create" and not info.name:
        facts["name"] = text_at(body.value, "metadata", "name") if isinstance(body.value, dict) else ""
    pods = read_pods(info.resource_name, body)
    if pods.opaque:
        facts["opaque_body"] = True
    return facts | {"images": pods.images, "privileges": pods.privileges}


def _generated(body: Body) -> str:
    """The name of an object that the server completes: its beginning, and a star."""
    if not isinstance(body.value, dict) or body.patch:
        return ""
    prefix = at(body.value, "metadata", "generateName")
    return f"{prefix}*" if isinstance(prefix, str) and prefix else ""


def _dry_run(info: RequestInfo, body: Body) -> bool:
    """Tell whether nothing is to happen. A delete takes its options from the body, where it has one, else the query."""
    if info.verb in ("delete", "deletecollection") and body.form != "none":
        return bool(at(body.value, "dryRun") == ["All"])
    return set(info.values("dryRun")) == {"All"}


def _transfer(argv: tuple[str, ...], stdin: bool) -> dict[str, Any]:
    """Tell an exec of the tar that kubectl cp runs; what is not exactly that stays an exec.

    So does one whose path climbs: a rule for /data/* would take /data/../etc for its own; kubectl sends none.
    Source: kubectl/pkg/cmd/cp/cp.go.
    """
    if argv and ".." in argv[-1].split("/"):
        return {}
    match argv:
        case ["tar", "cf", "-", path] if not stdin and not path.startswith("-"):
            return {"transfer": "out", "transfer_path": path}
        case [*start, "-C", path] if stdin and tuple(start) in _TAR_IN and not path.startswith("-"):
            return {"transfer": "in", "transfer_path": path}
        case _ if stdin and argv in _TAR_IN:
            return {"transfer": "in", "transfer_path": "."}
        case _:
            return {}
