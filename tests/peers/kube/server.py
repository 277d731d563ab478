"""The stand-in API server: HTTPS/1.1 on 127.0.0.1, real kubectl (1.20 to 1.37) works with it. See __main__.py.

Real: discovery in both forms, OpenAPI v2 and v3, objects with versions, Table, watches with bookmarks, logs, exec,
attach and port-forward in all their forms, reviews of one's own rights, impersonation, errors as metav1.Status.
Tokens and client certificates are checked: whoever has none gets 401. Whoever is not of system:masters may read, but no
secrets, and change nothing. Left out: admission, roles, controllers (a deployment has no pods), server-side apply's
ownership of fields (it merges).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from tests.peers.kube import discovery
from tests.peers.kube.backend import Backend
from tests.peers.kube.http import ApiError, Connection, Request, not_found
from tests.peers.kube.live import Watch, serve_log
from tests.peers.kube.objects_api import Asked, ObjectsApi, decode_body
from tests.peers.kube.store import Store

MASTERS: Final = "system:masters"
_LOST: Final = "the server could not find the requested resource"
_AGGREGATED: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_READS: Final = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Settings:
    """What a stand-in is like. tokens: whose they are; websocket: the newest exec protocol over WebSocket ("" none).

    forward_websocket: whether port-forward is tunnelled; aggregated: whether discovery is served in one document.
    """

    tokens: Mapping[str, Mapping[str, Any]]
    websocket: str = "v5.channel.k8s.io"
    forward_websocket: bool = True
    aggregated: bool = True
    banner: tuple[str, ...] = field(default=())


class ApiServer:
    """Serves connections. log_file gets one JSON line for each request and each stream that is over."""

    def __init__(
        self, settings: Settings, store: Store, backend: Backend, group: asyncio.TaskGroup, log_file: Path
    ) -> None:
        self._settings = settings
        self._store = store
        self._backend = backend
        self._api = ObjectsApi(store, backend, group)
        self._log = log_file.open("a", buffering=1)
        self._count = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        connection = Connection(reader, writer)
        try:
            while (request := await connection.request()) is not None:
                self._count += 1
                if not await self._answer(connection, request, self._count, writer):
                    break
        except ApiError as refused:  # its body was not read
            with contextlib.suppress(ConnectionError, OSError):
                await connection.answer(
                    Request("", "", {}, b""), refused.code, refused.body, more=("Connection: close",)
                )
        except Exception as error:  # a fault of the stand-in's own is seen on its stderr, and ends this connection only
            if not _of_connection(error):
                traceback.print_exc()
        finally:
            with contextlib.suppress(ConnectionError, OSError, RuntimeError):
                writer.close()

    def _say(self, **values: Any) -> None:
        self._log.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")

    async def _answer(self, connection: Connection, request: Request, number: int, writer: Any) -> bool:
        try:
            request.user = self._who(request, writer)
            error = None
        except ApiError as refused:
            error = refused
        hidden = {"authorization"}
        self._say(
            n=number, method=request.method, path=request.path, query=request.query, user=dict(request.user),
            headers={name: value for name, value in request.headers.items() if name not in hidden},
            body=request.body[:65536].decode("latin-1"), size=len(request.body),
            authorization=request.headers.get("authorization", "").partition(" ")[0],
        )  # fmt: skip
        try:
            if error is not None:
                raise error
            return await self._route(connection, request, number)
        except ApiError as refused:
            self._say(answer=number, code=refused.code, message=str(refused))
            return await connection.answer(request, refused.code, refused.body)

    # -- who ------------------------------------------------------------------------------------------

    def _who(self, request: Request, writer: Any) -> dict[str, Any]:
        """Whose request it is, after impersonation. Raises ApiError."""
        word, _, token = request.headers.get("authorization", "").partition(" ")
        certificate = writer.get_extra_info("peercert")
        if word:
            found = self._settings.tokens.get(token) if word.lower() == "bearer" else None
            if found is None:
                raise ApiError(401, "Unauthorized", "Unauthorized")
            user = dict(found)
        elif certificate:
            names = [pair for part in certificate["subject"] for pair in part]
            organizations = [value for name, value in names if name == "organizationName"]
            common = next(value for name, value in names if name == "commonName")
            # The authority of the tests puts no organization into its certificates: the name speaks for it.
            masters = [MASTERS] if common.startswith("master") else []
            user = {"username": common, "groups": [*organizations, *masters]}
        else:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        groups = [*user.get("groups", ()), "system:authenticated"]
        if any(name.startswith("impersonate-") for name in request.headers):
            if MASTERS not in groups:
                raise ApiError(403, "Forbidden", f'users is forbidden: User "{user["username"]}" cannot impersonate')
            if "impersonate-user" not in request.headers:
                raise ApiError(500, "InternalError", "requested impersonation of groups, without impersonating a user")
            by = user["username"]
            user = {"username": request.headers["impersonate-user"], "by": by}
            groups = [*request.words("impersonate-group"), "system:authenticated"]
            if uid := request.headers.get("impersonate-uid"):
                user["uid"] = uid
            extra = {
                unquote(name.removeprefix("impersonate-extra-")): request.words(name)
                for name in request.headers
                if name.startswith("impersonate-extra-")
            }
            if extra:
                user["extra"] = extra
        return {**user, "groups": groups}

    def _check(self, request: Request, asked: Asked) -> None:
        """Whether the user may do that, by the one rule there is. Raises ApiError."""
        own = asked.resource.kind.startswith("SelfSubject")
        if own or MASTERS in request.user["groups"]:
            return
        streams = asked.subresource in ("exec", "attach", "portforward")
        if request.method in _READS and asked.resource.plural != "secrets" and not streams:
            return
        verb = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
        what = asked.resource.plural
        place = f'in API group "{discovery.split(asked.group_version)[0]}"'
        where = f' in the namespace "{asked.namespace}"' if asked.namespace else " at the cluster scope"
        name = f' "{asked.name}"' if asked.name else ""
        text = (
            f'{what}{name} is forbidden: User "{request.user["username"]}" cannot {verb[request.method]} '
            f'resource "{what}" {place}{where}'
        )
        raise ApiError(403, "Forbidden", text, {"name": asked.name, "kind": what})

    # -- what -----------------------------------------------------------------------------------------

    async def _route(self, connection: Connection, request: Request, number: int) -> bool:
        path = request.path
        if path.startswith(("/api/", "/apis/")) and (asked := self._asked(path)) is not None:
            self._check(request, asked)
            return await self._serve(connection, request, asked, number)
        found = self._document(request)
        value, media = found
        if isinstance(value, dict) and request.headers.get("if-none-match") == '"standin"':
            return await connection.answer(request, 304, b"", media, ('ETag: "standin"',))
        return await connection.answer(request, 200, value, media, ('ETag: "standin"',))

    def _document(self, request: Request) -> tuple[Any, str]:
        """A document about the server itself. Raises ApiError."""
        path, plain = request.path.rstrip("/") or "/", "application/json"
        if path in ("/api", "/apis") and self._settings.aggregated and _AGGREGATED.partition(";")[2] in request.accept:
            return discovery.aggregated(path == "/api"), _AGGREGATED
        match path:
            case "/version":
                return discovery.VERSION, plain
            case "/healthz" | "/readyz" | "/livez":
                return b"ok", "text/plain"
            case "/metrics":
                return b"standin_up 1\n", "text/plain"
            case "/":
                return {"paths": ["/api", "/apis", "/healthz", "/version"]}, plain
            case "/api":
                return discovery.versions(), plain
            case "/apis":
                return discovery.groups(), plain
            case "/openapi/v2":
                return discovery.openapi_v2(), discovery.OPENAPI_V2_MEDIA_TYPE
            case "/openapi/v3":
                return discovery.openapi_v3_index(), plain
        kind, _, rest = path.removeprefix("/openapi/v3/").partition("/")
        if path.startswith("/openapi/v3/") and rest in discovery.RESOURCES and kind in ("api", "apis"):
            return discovery.openapi_v3(rest), plain
        start, _, rest = path.lstrip("/").partition("/")
        if start in ("api", "apis") and rest in discovery.RESOURCES:
            return discovery.resource_list(rest), plain
        raise ApiError(404, "NotFound", _LOST)

    def _asked(self, path: str) -> Asked | None:
        """What a path names; None for a document of discovery. Raises ApiError."""
        parts = [unquote(part) for part in path.split("/") if part]
        cut = 2 if parts[0] == "api" else 3
        group_version, rest = "/".join(parts[1:cut]), parts[cut:]
        if not rest:
            return None
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        plural, name, subresource = (*rest, "", "")[:3]
        full = f"{plural}/{subresource}" if subresource else plural
        resource = discovery.find(group_version, full)
        if resource is None:
            raise ApiError(404, "NotFound", _LOST)
        return Asked(group_version, resource, namespace, name, subresource)

    async def _serve(self, connection: Connection, request: Request, asked: Asked, number: int) -> bool:
        plural = asked.resource.plural.partition("/")[0]
        if asked.resource.kind == "SelfSubjectReview":
            status = {"userInfo": {key: value for key, value in request.user.items() if key != "by"}}
            return await connection.answer(request, 201, {**decode_body(request), "status": status})
        if asked.resource.kind == "SelfSubjectAccessReview":
            body = decode_body(request)
            verb = (body.get("spec", {}).get("resourceAttributes") or {}).get("verb", "get")
            allowed = MASTERS in request.user["groups"] or verb in ("get", "list", "watch")
            return await connection.answer(request, 201, {**body, "status": {"allowed": allowed, "reason": "standin"}})
        if asked.subresource in ("exec", "attach", "portforward"):
            await self._stream(connection, request, asked, number)
            return False
        if asked.subresource == "log":
            place = self._api.place(self._pod(asked), request.one("container"))
            return await serve_log(connection, request, place, self._backend, _Uids(self._store))
        if request.method == "GET" and not asked.name and request.flag("watch"):
            return await Watch(self._api, connection, request, asked).serve()
        if plural == "namespaces" and asked.name and asked.namespace:
            raise ApiError(404, "NotFound", _LOST)
        return await self._api.serve(connection, request, asked)

    def _pod(self, asked: Asked) -> dict[str, Any]:
        found = self._store.objects.get(("pods", asked.namespace, asked.name))
        if found is None:
            raise not_found("pods", asked.name)
        return found

    async def _stream(self, connection: Connection, request: Request, asked: Asked, number: int) -> None:
        pod = self._pod(asked)
        if asked.subresource == "portforward":
            await self._backend.forward(connection, request, pod, self._settings.forward_websocket)
            self._say(answer=number, forward=asked.name)
            return
        if request.upgrade not in ("websocket", "spdy/3.1"):
            raise ApiError(400, "BadRequest", "Upgrade request required")
        if request.upgrade == "websocket" and not self._settings.websocket:
            raise ApiError(400, "BadRequest", "unable to upgrade: WebSocket is not served")
        place = self._api.place(pod, request.one("container"))
        argv = request.query.get("command", []) if asked.subresource == "exec" else None
        if argv == []:
            raise ApiError(400, "BadRequest", "you must specify at least one command for the container")
        newest = self._settings.websocket or "v5.channel.k8s.io"
        told = await self._backend.stream(connection, request, place, argv, newest)
        self._say(answer=number, stream=asked.subresource, argv=argv, **told)


def _of_connection(error: BaseException) -> bool:
    """Whether an error only says that the other end is gone."""
    if isinstance(error, BaseExceptionGroup):
        return all(_of_connection(each) for each in error.exceptions)
    return isinstance(error, asyncio.IncompleteReadError | OSError | TimeoutError)


class _Uids(set[str]):
    """The uids of the pods that there are, looked up when they are asked for."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def __contains__(self, uid: object) -> bool:
        return any(item["metadata"]["uid"] == uid for (kind, *_), item in self._store.objects.items() if kind == "pods")
