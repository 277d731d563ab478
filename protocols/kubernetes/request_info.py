"""What a path asks for, by the rules of the API server's own RequestInfo: the verb, the resource, the object's name.

The server decides by the decoded path and the query; this reads them as it does, and what two readers could read
differently is refused (400) before anybody decides on it: separators in encoded form, dots, doubled slashes, parameters
that come twice. The bytes that were judged are the bytes that are forwarded.

Left out: the deprecated prefixes ``watch/`` and ``proxy/`` of a resource's path, which are refused.

Source: k8s.io/apiserver/pkg/endpoints/request/requestinfo.go, k8s.io/apimachinery/pkg/fields/selector.go (1.32),
net/url of Go; kubernetes note 2.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from proxy.core.http.heads import BadRequest

PATH_LIMIT: Final = 8192  # bytes; names are 253 at most, and only a proxied path is longer than a few of them; ours
PAIRS_LIMIT: Final = 10_000  # parameters of a query: net/url's own limit

# The method says the verb of a resource's request. Source: requestinfo.go, NewRequestInfo.
VERB_OF_METHOD: Final = {
    "POST": "create",
    "GET": "get",
    "HEAD": "get",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
_OTHER_METHODS: Final = frozenset({"OPTIONS"})  # of paths that are no resources
_NAMESPACE_SUBRESOURCES: Final = frozenset({"status", "finalize"})
_REPEATED: Final = frozenset({"command", "dryRun", "ports"})  # parameters that may come more than once
_NO_SEPARATOR: Final = re.compile(r"%(?:2[fF]|5[cC])|[\\;#]|//")
_RAW: Final = re.compile(r"[!-~]*")  # visible ASCII: all else comes encoded
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request line, read. verb is RequestInfo's own: of a resource get, list, ...; else the method in lower case.

    parts: the segments from the resource on (of no resource: all). path is decoded; raw is path and query as they came,
    the path's bytes to be forwarded. namespace is also that of a request for the namespace itself, as in RBAC.
    """

    verb: str
    is_resource: bool
    path: str
    raw: str
    query: tuple[tuple[str, str], ...] = ()
    api_group: str = ""
    api_version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    parts: tuple[str, ...] = ()

    @property
    def resource_name(self) -> str:
        """The resource with its group: "pods", "deployments.apps"."""
        return f"{self.resource}.{self.api_group}" if self.api_group else self.resource

    @property
    def raw_path(self) -> str:
        """The path as it came."""
        return self.raw.partition("?")[0]

    def get(self, name: str) -> str | None:
        """Return the first value of a parameter, None if there is none."""
        return next((value for found, value in self.query if found == name), None)

    def values(self, name: str) -> tuple[str, ...]:
        """Return all values of a parameter, in order."""
        return tuple(value for found, value in self.query if found == name)

    def flag(self, name: str) -> bool:
        """Return a parameter that is true or false: false where it is absent, "0" or "false"."""
        value = self.get(name)
        return value is not None and is_true(value)


def is_true(value: str) -> bool:
    """Read a boolean as the API server does. Source: k8s.io/apimachinery/pkg/runtime/conversion.go."""
    return value != "0" and value.lower() != "false"


def read_path(target: str, method: str) -> RequestInfo:
    """Read what follows ``/k8s/<target>`` in a request line: path and query. Raises BadRequest."""
    raw_path, _, raw_query = target.partition("?")
    path = _path(raw_path)
    query = parse_query(raw_query)
    parts = tuple(segment for segment in path.strip("/").split("/") if segment)
    if parts and parts[0] not in ("api", "apis") and parts[0].lower() in ("api", "apis"):
        raise BadRequest(400, f'"/{parts[0]}" is written in lower case')
    rest = _resource_part(parts)
    if rest is None:
        if method not in VERB_OF_METHOD and method not in _OTHER_METHODS:
            raise BadRequest(405, f"the method {method} is not served here")
        return RequestInfo(method.lower(), False, path, target, query, parts=parts)
    group = parts[1] if parts[0] == "apis" else ""
    return _resource(method, path, target, query, group, rest)


def parse_query(raw: str) -> tuple[tuple[str, str], ...]:
    """Split a query as Go's net/url does; what Go would silently skip (escapes, semicolons) is refused."""
    if not _RAW.fullmatch(raw) or ";" in raw or "#" in raw or _BAD_ESCAPE.search(raw):
        raise BadRequest(400, "the query is malformed")
    pairs = raw.split("&")
    if len(pairs) > PAIRS_LIMIT:
        raise BadRequest(400, "the query has too many parameters")
    found = []
    for pair in pairs:
        if pair:
            key, _, value = pair.partition("=")
            found.append((_text(key.replace("+", " ")), _text(value.replace("+", " "))))
    return tuple(found)


def _path(raw: str) -> str:
    """Decode a path, once; refuse what another reader might take for another path."""
    if len(raw) > PATH_LIMIT:
        raise BadRequest(414, "the path is too long")
    if not raw.startswith("/") or not _RAW.fullmatch(raw) or _NO_SEPARATOR.search(raw) or _BAD_ESCAPE.search(raw):
        raise BadRequest(400, "the path is malformed, or has an encoded or doubled separator")
    path = _text(raw)
    if not path.isprintable():
        raise BadRequest(400, "the path has a character that cannot be printed")
    if any(segment in (".", "..") for segment in path.split("/")):
        raise BadRequest(400, "the path has a segment of dots")
    return path


def _text(raw: str) -> str:
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise BadRequest(400, "the path or the query is not UTF-8") from error


def _resource_part(parts: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the version and what follows it, None where the path is no resource's."""
    if len(parts) >= 3 and parts[0] == "api":
        return parts[1:]
    if len(parts) >= 4 and parts[0] == "apis":
        return parts[2:]
    return None


def _resource(
    method: str, path: str, raw: str, query: tuple[tuple[str, str], ...], group: str, rest: tuple[str, ...]
) -> RequestInfo:
    version, *parts = rest
    verb = VERB_OF_METHOD.get(method)
    if verb is None:
        raise BadRequest(405, f"the method {method} is not served here")
    if parts[0] in ("watch", "proxy"):
        raise BadRequest(400, f'the deprecated form "{parts[0]}/" of a path is not served; use a query or subresource')
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 1:
        namespace = parts[1]
        if len(parts) > 2 and parts[2] not in _NAMESPACE_SUBRESOURCES:
            parts = parts[2:]
    resource, name, subresource = (*parts[:3], "", "")[:3]
    # No name may have one (IsValidPathSegmentName); whoever decodes twice would see another path. What is proxied may.
    if subresource != "proxy" and any("%" in part for part in (group, version, namespace, *parts)):
        raise BadRequest(400, "the path has an escape within an escape")
    if subresource != "proxy":
        _single(query)
    if not name and verb == "get":
        # The server forgets the selector, and so the name, where another option cannot be read, and then refuses.
        for option in ("limit", "timeoutSeconds"):
            if not _INTEGER.fullmatch(_first(query, option, "0")):
                raise BadRequest(400, f"the parameter {option} is no number")
        verb = "watch" if is_true(_first(query, "watch", "false")) else "list"
        name = _selected_name(_first(query, "fieldSelector", ""))
    elif not name and verb == "delete":
        verb = "deletecollection"
    return RequestInfo(
        verb, True, path, raw, query, group, version, resource, subresource, namespace, name, tuple(parts)
    )


def _single(query: tuple[tuple[str, str], ...]) -> None:
    """Refuse parameters that come twice: Go takes the first, other readers the last."""
    counts = Counter(name for name, _ in query)
    twice = next((name for name, count in counts.items() if count > 1 and name not in _REPEATED), None)
    if twice is not None:
        raise BadRequest(400, f"the parameter {twice[:40]!r} comes twice")


def _first(query: tuple[tuple[str, str], ...], name: str, default: str) -> str:
    return next((value for found, value in query if found == name), default)


def _selected_name(selector: str) -> str:
    """Return the name that a field selector asks for: a list of one object. What Go cannot parse is refused."""
    names = set()
    for term in _terms(selector):
        field, operator, value = _operands(term)
        if field == "metadata.name" and operator != "!=":
            names.add(_unescape(value))
    if len(names) > 1:
        raise BadRequest(400, "the field selector asks for two names")
    name = names.pop() if names else ""
    return "" if name in (".", "..") or "/" in name or "%" in name else name


def _terms(selector: str) -> list[str]:
    """Cut a field selector at its commas, but for those behind a backslash."""
    found = re.findall(r"(?:\\.|[^\\,])+\\?|\\", selector, re.DOTALL)
    return [term for term in found if term]


def _operands(term: str) -> tuple[str, str, str]:
    found = re.search(r"!=|==|=", term)
    if found is None:
        raise BadRequest(400, "the field selector is malformed")
    return term[: found.start()], found[0], term[found.end() :]


def _unescape(value: str) -> str:
    if not re.fullmatch(r"(?:\\[\\,=]|[^\\,=])*", value, re.DOTALL):
        raise BadRequest(400, "the field selector has a malformed value")
    return re.sub(r"\\(.)", r"\1", value)
