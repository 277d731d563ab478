"""The discovery document that the gate answers: the target's own, with every address made the gate's.

bq fetches it on every run and goes where it says; so nothing in it may lead past the gate: rootUrl, baseUrl and
mtlsRootUrl are the gate's, regional endpoints and icons are left out, and so are the methods that the gate would
refuse. It is given without a token: it says what everyone may read.

The rest is the target's: new parameters and members of bodies show in it before the gate knows them; they are then
refused with their name.

Source: "Google API Discovery Service", RestDescription; bigquery note 2 and 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from protocols.bigquery.methods import METHODS

DOCUMENT_LIMIT: Final = 8 * 1024 * 1024  # bytes of one that is fetched; that of revision 20261009 has 0.5 MB; ours
_DEPTH_LIMIT: Final = 16  # of resources within resources; BigQuery's have one level
_PATHS: Final = frozenset({"/$discovery/rest", "/discovery/v1/apis/bigquery/v2/rest"})
_ADDRESSES: Final = ("rootUrl", "mtlsRootUrl")
_DROPPED: Final = frozenset({"endpoints", "icons", "batchPath", "etag"})
_SERVICE_PATH: Final = "bigquery/v2/"
# A method's path below the service's, or that of an upload: no address of its own, and no way up.
_PATH: Final = re.compile(
    r"/?(?:(?:resumable/)?upload/bigquery/v2/)?(?:projects|\{\+resource\}(?::[A-Za-z]+)?)(?:/(?!\.\.)[A-Za-z0-9_.+{}-]+(?::[A-Za-z]+)?)*"
)


def is_discovery(http: str, target: str) -> bool:
    """Tell whether a request asks for the discovery document: bq does so at the root of the host, with "?version=v2".

    The other parameters say nothing here, as nothing of the request goes on.
    """
    path, _, query = target.partition("?")
    if http not in ("GET", "HEAD") or unquote(path) not in _PATHS:
        return False
    versions = [unquote(pair.partition("=")[2]) for pair in query.split("&") if pair.partition("=")[0] == "version"]
    return versions in ([], ["v2"])


def rewritten(document: Mapping[str, Any], root: str) -> dict[str, Any]:
    """Return a discovery document for users of the gate. root: its address, with a path where targets go by path.

    Raises ValueError where the document is not BigQuery's v2, or has not the shape of one. Any: it is JSON.
    """
    if (document.get("name"), document.get("version")) != ("bigquery", "v2"):
        raise ValueError("the discovery document is not that of BigQuery v2")
    root = root.rstrip("/") + "/"
    found = {key: value for key, value in document.items() if key not in _DROPPED}
    found |= dict.fromkeys(_ADDRESSES, root)
    found |= {"baseUrl": root + _SERVICE_PATH, "servicePath": _SERVICE_PATH, "basePath": f"/{_SERVICE_PATH}"}
    found["resources"] = {
        name: _resource(each, 0) for name, each in _mapping(document.get("resources"), "resources").items()
    }
    found.pop("methods", None)  # the service has none outside of resources
    return found


def encoded(document: Mapping[str, Any]) -> bytes:
    """Return a document as it is sent."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _resource(resource: Any, depth: int) -> dict[str, Any]:
    """Return a resource with the methods that the gate has. Any: see rewritten()."""
    found = dict(_mapping(resource, "a resource"))
    if depth > _DEPTH_LIMIT:
        raise ValueError("the discovery document is nested too deeply")
    if "methods" in found:
        found["methods"] = {
            name: method for name, method in _mapping(found["methods"], "methods").items() if _is_served(method)
        }
    if "resources" in found:
        inner = _mapping(found["resources"], "resources")
        found["resources"] = {name: _resource(each, depth + 1) for name, each in inner.items()}
    return found


def _is_served(method: Any) -> bool:
    """Tell whether a method is one of the gate's, at an address of the gate's: clients take whole addresses as such."""
    found = _mapping(method, "a method")
    name = found.get("id")
    upload = _mapping(found.get("mediaUpload", {}), "mediaUpload")
    uploads = _mapping(upload.get("protocols", {}), "the protocols of an upload").values()
    paths = [found[key] for key in ("path", "flatPath") if key in found]
    paths += [_mapping(each, "a protocol").get("path") for each in uploads]
    plain = all(isinstance(path, str) and _PATH.fullmatch(path) for path in paths)
    return isinstance(name, str) and name.removeprefix("bigquery.") in METHODS and plain


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} of the discovery document is no object")
    return value
