"""The stand-in's API of objects: get, list, create, update, patch, delete, as JSON, protobuf or Table."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import uuid
from dataclasses import dataclass
from typing import Any, Final

import yaml

from tests.peers.kube import protobuf
from tests.peers.kube.backend import Backend, Place
from tests.peers.kube.discovery import Resource
from tests.peers.kube.http import ApiError, Connection, Request, not_found
from tests.peers.kube.seed import ended, running
from tests.peers.kube.store import Store, base64_text, patched
from tests.peers.kube.tables import Object, table

SUPERVISE_SECONDS: Final = 0.2  # how often a pod that may end is looked at
CONTAINER_FIELDS: Final = ("containers", "ephemeralContainers", "initContainers")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request is about."""

    group_version: str
    resource: Resource
    namespace: str
    name: str
    subresource: str


def decode_body(request: Request) -> Any:
    """Read a body by its media type. Raises ApiError."""
    if not request.body:
        return {}
    media = request.headers.get("content-type", "")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "UnsupportedMediaType", "the body of the request is compressed")
    try:
        if media.startswith(protobuf.MEDIA_TYPE):
            return protobuf.decode_object(request.body)
        return yaml.safe_load(request.body) if "yaml" in media else json.loads(request.body)
    except KeyError as error:
        raise ApiError(415, "UnsupportedMediaType", f"the stand-in reads no protobuf of {error}") from error
    except (ValueError, IndexError, yaml.YAMLError) as error:
        raise ApiError(400, "BadRequest", f"the body does not parse: {error}") from error


class ObjectsApi:
    """The verbs on objects. group: what looks after pods that end by themselves runs in it."""

    def __init__(self, store: Store, backend: Backend, group: asyncio.TaskGroup) -> None:
        self.store = store
        self.backend = backend
        self._group = group

    async def serve(self, connection: Connection, request: Request, asked: Asked) -> bool:
        """Answer a request. Raises ApiError."""
        if not asked.name:
            match request.method:
                case "GET" | "HEAD":
                    return await self._list(connection, request, asked)
                case "POST":
                    return await self._create(connection, request, asked, decode_body(request))
                case "DELETE":
                    return await self._delete_all(connection, request, asked)
        else:
            match request.method:
                case "GET" | "HEAD":
                    return await self._say(connection, request, asked, self.find(asked))
                case "PUT" | "PATCH":
                    return await self._change(connection, request, asked)
                case "DELETE":
                    return await self._delete(connection, request, asked)
                case "POST" if asked.subresource == "eviction":
                    await self._remove(self.find(asked), "pods")
                    return await connection.answer(request, 201, _done(asked.name, "pods"))
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")

    def find(self, asked: Asked) -> Object:
        """Return the object. Raises ApiError."""
        plural = asked.resource.plural.partition("/")[0]
        # A namespace's own path names it twice.
        namespace = asked.namespace if asked.resource.namespaced else ""
        found = self.store.objects.get((plural, namespace, asked.name))
        if found is None:
            raise not_found(plural, asked.name)
        return found

    def place(self, pod: Object, container: str) -> Place:
        """Return a container of a pod, the only one where none is named. Raises ApiError."""
        specs = [each for field in CONTAINER_FIELDS for each in pod["spec"].get(field) or []]
        if not container:
            names = [each["name"] for each in pod["spec"]["containers"]]
            if len(names) != 1:
                text = f"a container name must be specified for pod {pod['metadata']['name']}, choose one of: {names}"
                raise ApiError(400, "BadRequest", text)
            container = names[0]
        spec = next((each for each in specs if each["name"] == container), None)
        if spec is None:
            text = f"container {container} is not valid for pod {pod['metadata']['name']}"
            raise ApiError(400, "BadRequest", text)
        return Place(pod, spec, self._environment(pod, spec))

    def _environment(self, pod: Object, spec: Object) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in spec.get("env") or []:
            value = each.get("value")
            reference = (each.get("valueFrom") or {}).get("secretKeyRef")
            if reference is not None:
                secret = self.store.objects.get(("secrets", pod["metadata"]["namespace"], reference["name"]), {})
                encoded = (secret.get("data") or {}).get(reference["key"], "")
                value = base64.b64decode(encoded).decode()
            found[each["name"]] = value or ""
        return found

    async def _say(self, connection: Connection, request: Request, asked: Asked, item: Object, code: int = 200) -> bool:
        if "as=Table" in request.accept:
            return await connection.answer(request, code, self.table(request, asked, [item]))
        if "as=PartialObjectMetadata" in request.accept:
            partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}
            return await connection.answer(request, code, partial)
        return await connection.answer(request, code, item)

    def table(self, request: Request, asked: Asked, items: list[Object], *, head: bool = True) -> Object:
        """The Table of some objects, as the request wants it."""
        include = request.one("includeObject", "Metadata") or "Metadata"
        return table(asked.resource.plural, items, str(self.store.version), include, head=head)

    async def _list(self, connection: Connection, request: Request, asked: Asked) -> bool:
        fields, labels = request.one("fieldSelector"), request.one("labelSelector")
        items = list(self.store.select(asked.resource.plural, asked.namespace, fields, labels))
        limit = int(request.one("limit", "0") or 0)
        start = int(request.one("continue", "0") or 0)
        part = items[start : start + limit] if limit else items[start:]
        rest = len(items) - start - len(part)
        metadata: dict[str, Any] = {"resourceVersion": str(self.store.version)}
        if rest:
            metadata |= {"continue": str(start + len(part)), "remainingItemCount": rest}
        if "as=Table" in request.accept:
            answer = self.table(request, asked, part)
            answer["metadata"] = metadata
            return await connection.answer(request, 200, answer)
        answer = {
            "kind": asked.resource.kind + "List", "apiVersion": asked.group_version, "metadata": metadata,
            "items": [{key: each[key] for key in each if key not in ("kind", "apiVersion")} for each in part],
        }  # fmt: skip
        return await connection.answer(request, 200, answer)

    async def _create(self, connection: Connection, request: Request, asked: Asked, item: Any) -> bool:
        if not isinstance(item, dict):
            raise ApiError(400, "BadRequest", "the body is no object")
        kind = {"kind": asked.resource.kind, "apiVersion": asked.group_version}
        given = item.get("metadata") or {}
        metadata = {
            key: value for key, value in given.items() if value not in ("", None) and key != "creationTimestamp"
        }
        if asked.resource.namespaced:
            metadata["namespace"] = asked.namespace  # protobuf bodies carry namespace ""
        if metadata.get("generateName") and not metadata.get("name"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        if asked.name:
            metadata["name"] = asked.name
        if not metadata.get("name"):
            raise ApiError(422, "Invalid", "metadata.name: Required value: name or generateName is required")
        item = {**kind, **item, "metadata": metadata}
        plural, name = asked.resource.plural, str(metadata["name"])
        if (plural, metadata.get("namespace", ""), name) in self.store.objects:
            raise ApiError(409, "AlreadyExists", f'{plural} "{name}" already exists', {"name": name, "kind": plural})
        if plural == "secrets":
            for key, value in (item.pop("stringData", None) or {}).items():
                item["data"] = {**(item.get("data") or {}), key: base64_text(value)}
            item.setdefault("type", "Opaque")
        if plural == "pods":
            item = running(item)
        if "dryRun" not in request.query:
            self.store.put(plural, item, "ADDED")
            await self.store.announce()
            if plural == "pods":
                await self._start(item)
                if item["spec"].get("restartPolicy") == "Never":
                    self._group.create_task(self._supervise(item))
        return await self._say(connection, request, asked, item, 201)

    async def _start(self, pod: Object) -> None:
        for field in CONTAINER_FIELDS:
            for each in pod["spec"].get(field) or []:
                await self.backend.start(self.place(pod, each["name"]))

    async def _supervise(self, pod: Object) -> None:
        """Notice the end of a pod's first container."""
        place = self.place(pod, pod["spec"]["containers"][0]["name"])
        key = ("pods", *place.key[:2])
        while key in self.store.objects:
            code = await self.backend.exit_code(place)
            if code is not None and key in self.store.objects:
                self.store.put("pods", ended(copy.deepcopy(self.store.objects[key]), code), "MODIFIED")
                await self.store.announce()
                return
            await asyncio.sleep(SUPERVISE_SECONDS)

    async def _change(self, connection: Connection, request: Request, asked: Asked) -> bool:
        value, media = decode_body(request), request.headers.get("content-type", "")
        if request.method == "PATCH" and media.startswith("application/apply-patch"):
            try:
                self.find(asked)
            except ApiError:
                return await self._create(connection, request, asked, value)
        old = self.find(asked)
        plural = asked.resource.plural.partition("/")[0]
        if request.method == "PUT" and value.get("kind", asked.resource.kind) != asked.resource.kind:
            raise ApiError(
                400, "BadRequest", f"{value['kind']} in version v1 cannot be handled as {asked.resource.kind}"
            )
        new = patched(old, value, media) if request.method == "PATCH" else value
        if asked.subresource == "scale":
            return await self._scale(connection, request, old, value)
        version = (new.get("metadata") or {}).get("resourceVersion")
        if version and version != old["metadata"]["resourceVersion"]:
            text = f'Operation cannot be fulfilled on {plural} "{asked.name}": the object has been modified'
            raise ApiError(409, "Conflict", text, {"name": asked.name, "kind": plural})
        new["metadata"] = {**new["metadata"], "uid": old["metadata"]["uid"]}
        new["metadata"]["creationTimestamp"] = old["metadata"]["creationTimestamp"]
        if plural == "pods":
            new = running(new)
        if "dryRun" not in request.query:
            if plural == "pods" and asked.subresource == "ephemeralcontainers":
                await self._start(new)
            self.store.put(plural, new, "MODIFIED")
            await self.store.announce()
        return await self._say(connection, request, asked, new)

    async def _scale(self, connection: Connection, request: Request, item: Object, value: Any) -> bool:
        item = copy.deepcopy(item)
        item["spec"]["replicas"] = value["spec"]["replicas"]
        self.store.put("deployments", item, "MODIFIED")
        await self.store.announce()
        scale = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": item["metadata"], "spec": value["spec"]}
        return await connection.answer(request, 200, scale)

    async def _remove(self, item: Object, plural: str) -> None:
        if plural == "pods":
            await self.backend.stop(item)
        self.store.put(plural, item, "DELETED")
        await self.store.announce()

    async def _delete(self, connection: Connection, request: Request, asked: Asked) -> bool:
        item, plural = self.find(asked), asked.resource.plural
        if "dryRun" not in request.query and not (decode_options(request).get("dryRun")):
            await asyncio.shield(self._remove(item, plural))
        if plural == "pods":  # kube-apiserver answers with the object where it ends gracefully
            return await self._say(connection, request, asked, item)
        return await connection.answer(request, 200, _done(asked.name, plural, item["metadata"]["uid"]))

    async def _delete_all(self, connection: Connection, request: Request, asked: Asked) -> bool:
        plural = asked.resource.plural
        fields, labels = request.one("fieldSelector"), request.one("labelSelector")
        items = list(self.store.select(plural, asked.namespace, fields, labels))
        for item in items:
            await asyncio.shield(self._remove(item, plural))
        answer = {"kind": asked.resource.kind + "List", "apiVersion": asked.group_version, "items": items}
        return await connection.answer(request, 200, {**answer, "metadata": {}})


def decode_options(request: Request) -> dict[str, Any]:
    """The DeleteOptions of a body; those in protobuf are taken as empty."""
    if request.headers.get("content-type", "").startswith(protobuf.MEDIA_TYPE):
        return {}
    found = decode_body(request)
    return found if isinstance(found, dict) else {}


def _done(name: str, plural: str, uid: str = "") -> Object:
    details = {"name": name, "kind": plural, "uid": uid}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
