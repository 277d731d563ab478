# ruff: noqa: E501  # rows of tables
"""Paths against the rules of the API server's RequestInfo, and what is refused because it could be read in two ways.

When it was written, the table and 60,000 random paths were checked against the server's own code (RequestInfoFactory of
k8s.io/apiserver v0.32.0): what was not refused was read alike.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.kubernetes import request_info
from protocols.kubernetes.request_info import PAIRS_LIMIT, PATH_LIMIT, is_true, parse_query, read_path
from protocols.kubernetes.verbs import KIND_OF, VERBS, is_cluster_scoped, is_plumbing, kind_of, object_of, verb_of
from proxy.core.http.heads import BadRequest

NS = "/api/v1/namespaces/pay"
APPS = "/apis/apps/v1/namespaces/pay"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
CRD = "/apis/example.com/v1beta1"

# method, path -> verb of RequestInfo, group, version, namespace, resource, subresource, name | our verb, kind, object
RESOURCES = """
GET /api/v1/pods                                  list - v1 - pods - -                | list read */pods/*
GET /api/v1/pods/                                 list - v1 - pods - -                | list read */pods/*
HEAD /api/v1/pods                                 list - v1 - pods - -                | list read */pods/*
GET {NS}/pods                                     list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods/                                    list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods/web                                 get - v1 pay pods - web             | get read pay/pods/web
HEAD {NS}/pods/web                                get - v1 pay pods - web             | get read pay/pods/web
POST {NS}/pods                                    create - v1 pay pods - -            | create write pay/pods/*
PUT {NS}/pods/web                                 update - v1 pay pods - web          | update write pay/pods/web
PATCH {NS}/pods/web                               patch - v1 pay pods - web           | patch write pay/pods/web
DELETE {NS}/pods/web                              delete - v1 pay pods - web          | delete delete pay/pods/web
DELETE {NS}/pods                                  deletecollection - v1 pay pods - -  | deletecollection delete pay/pods/*
DELETE /api/v1/nodes                              deletecollection - v1 - nodes - -   | deletecollection delete -/nodes/*
POST /api/v1/pods                                 create - v1 - pods - -              | create write */pods/*
POST {NS}/pods/web                                create - v1 pay pods - web          | create write pay/pods/web
GET {NS}/pods?watch=true                          watch - v1 pay pods - -             | watch read pay/pods/*
GET {NS}/pods?watch=1                             watch - v1 pay pods - -             | watch read pay/pods/*
GET {NS}/pods?watch                               watch - v1 pay pods - -             | watch read pay/pods/*
GET {NS}/pods?watch=                              watch - v1 pay pods - -             | watch read pay/pods/*
GET {NS}/pods?watch=no                            watch - v1 pay pods - -             | watch read pay/pods/*
GET {NS}/pods?watch=00                            watch - v1 pay pods - -             | watch read pay/pods/*
GET {NS}/pods?watch=0                             list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?watch=false                         list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?watch=FALSE                         list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?watch=False                         list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?Watch=true                          list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?%77atch=true                        watch - v1 pay pods - -             | watch read pay/pods/*
GET {NS}/pods?limit=500&watch=t                   watch - v1 pay pods - -             | watch read pay/pods/*
GET {NS}/pods/web?watch=true                      get - v1 pay pods - web             | get read pay/pods/web
POST {NS}/pods?watch=true                         create - v1 pay pods - -            | create write pay/pods/*
DELETE {NS}/pods?watch=true                       deletecollection - v1 pay pods - -  | deletecollection delete pay/pods/*
GET /api/v1/pods?watch=true                       watch - v1 - pods - -               | watch read */pods/*
GET {NS}/pods?fieldSelector=metadata.name%3Dweb   list - v1 pay pods - web            | list read pay/pods/web
GET {NS}/pods?fieldSelector=metadata.name=web     list - v1 pay pods - web            | list read pay/pods/web
GET {NS}/pods?fieldSelector=metadata.name==web    list - v1 pay pods - web            | list read pay/pods/web
GET {NS}/pods?fieldSelector=metadata.name!=web    list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?fieldSelector=metadata.name=        list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?fieldSelector=                      list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?fieldSelector=,                     list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?fieldSelector=a=b,metadata.name=web list - v1 pay pods - web            | list read pay/pods/web
GET {NS}/pods?fieldSelector=metadata.name=web,    list - v1 pay pods - web            | list read pay/pods/web
GET {NS}/pods?fieldSelector=metadata.name%3D%5C%3Dx list - v1 pay pods - =x           | list read pay/pods/=x
GET {NS}/pods?fieldSelector=status.phase%3DRunning list - v1 pay pods - -             | list read pay/pods/*
GET {NS}/pods?fieldSelector=metadata.namE=web     list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?fieldSelector=xmetadata.name=web    list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?fieldSelector=+metadata.name=web    list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?fieldSelector=metadata.name=a%2Fb   list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?fieldSelector=metadata.name=..      list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?fieldSelector=metadata.name=a%25b   list - v1 pay pods - -              | list read pay/pods/*
GET {NS}/pods?fieldSelector=metadata.name=*       list - v1 pay pods - *              | list read pay/pods/*
GET {NS}/pods?watch=1&fieldSelector=metadata.name=web watch - v1 pay pods - web       | watch read pay/pods/web
GET {NS}/pods?fieldselector=metadata.name=web     list - v1 pay pods - -              | list read pay/pods/*
DELETE {NS}/pods?fieldSelector=metadata.name=web  deletecollection - v1 pay pods - -  | deletecollection delete pay/pods/*
GET {NS}/pods/web?fieldSelector=metadata.name=x   get - v1 pay pods - web             | get read pay/pods/web
GET {NS}/pods/web/log                             get - v1 pay pods log web           | log read pay/pods/web
GET {NS}/pods/web/log?follow=true                 get - v1 pay pods log web           | log read pay/pods/web
POST {NS}/pods/web/log                            create - v1 pay pods log web        | create write pay/pods/web
GET {NS}/pods/web/exec?command=id                 get - v1 pay pods exec web          | exec execute pay/pods/web
POST {NS}/pods/web/exec?command=id                create - v1 pay pods exec web       | exec execute pay/pods/web
PUT {NS}/pods/web/exec                            update - v1 pay pods exec web       | exec execute pay/pods/web
GET {NS}/pods/web/attach?stdin=true               get - v1 pay pods attach web        | attach execute pay/pods/web
POST {NS}/pods/web/attach                         create - v1 pay pods attach web     | attach execute pay/pods/web
GET {NS}/pods/web/portforward                     get - v1 pay pods portforward web   | portforward session pay/pods/web
POST {NS}/pods/web/portforward                    create - v1 pay pods portforward web | portforward session pay/pods/web
GET {NS}/pods/web/proxy                           get - v1 pay pods proxy web         | proxy admin pay/pods/web
GET {NS}/pods/web:80/proxy/a/b                    get - v1 pay pods proxy web:80      | proxy admin pay/pods/web:80
POST {NS}/services/https:web:443/proxy/x          create - v1 pay services proxy https:web:443 | proxy admin pay/services/https:web:443
GET /api/v1/nodes/n1/proxy/run                    get - v1 - nodes proxy n1           | proxy admin -/nodes/n1
GET /api/v1/nodes/n1/proxy/exec/a?command=id      get - v1 - nodes proxy n1           | proxy admin -/nodes/n1
DELETE {NS}/services/web/proxy                    delete - v1 pay services proxy web  | proxy admin pay/services/web
GET /apis/other.io/v1/namespaces/pay/pods/web/exec get other.io v1 pay pods exec web  | exec execute pay/pods.other.io/web
GET {NS}/pods/web/status                          get - v1 pay pods status web        | get read pay/pods/web
PATCH {NS}/pods/web/status                        patch - v1 pay pods status web      | patch write pay/pods/web
POST {NS}/pods/web/eviction                       create - v1 pay pods eviction web   | create delete pay/pods/web
POST {NS}/pods/web/binding                        create - v1 pay pods binding web    | create write pay/pods/web
PATCH {NS}/pods/web/ephemeralcontainers           patch - v1 pay pods ephemeralcontainers web | debug execute pay/pods/web
PUT {NS}/pods/web/ephemeralcontainers             update - v1 pay pods ephemeralcontainers web | debug execute pay/pods/web
GET {NS}/pods/web/ephemeralcontainers             get - v1 pay pods ephemeralcontainers web | get read pay/pods/web
PATCH {NS}/pods/web/resize                        patch - v1 pay pods resize web      | patch write pay/pods/web
GET {NS}/pods/web/log/extra                       get - v1 pay pods log web           | log read pay/pods/web
GET /api/v1/namespaces                            list - v1 - namespaces - -          | list read -/namespaces/*
GET /api/v1/namespaces/                           list - v1 - namespaces - -          | list read -/namespaces/*
POST /api/v1/namespaces                           create - v1 - namespaces - -        | create write -/namespaces/*
GET {NS}                                          get - v1 pay namespaces - pay       | get read -/namespaces/pay
GET {NS}/                                         get - v1 pay namespaces - pay       | get read -/namespaces/pay
PATCH {NS}                                        patch - v1 pay namespaces - pay     | patch write -/namespaces/pay
DELETE {NS}                                       delete - v1 pay namespaces - pay    | delete delete -/namespaces/pay
DELETE /api/v1/namespaces                         deletecollection - v1 - namespaces - - | deletecollection delete -/namespaces/*
GET {NS}/status                                   get - v1 pay namespaces status pay  | get read -/namespaces/pay
PUT {NS}/status                                   update - v1 pay namespaces status pay | update write -/namespaces/pay
PUT {NS}/finalize                                 update - v1 pay namespaces finalize pay | update write -/namespaces/pay
GET {NS}/namespaces                               list - v1 pay namespaces - -        | list read -/namespaces/*
GET {NS}/secrets                                  list - v1 pay secrets - -           | list read pay/secrets/*
GET {NS}/secrets/db                               get - v1 pay secrets - db           | get read pay/secrets/db
GET /api/v1/secrets                               list - v1 - secrets - -             | list read */secrets/*
GET /api/v1/secrets/db                            get - v1 - secrets - db             | get read */secrets/db
GET {NS}/configmaps/a.b-c                         get - v1 pay configmaps - a.b-c     | get read pay/configmaps/a.b-c
GET {NS}/configmaps/kube%2Droot                   get - v1 pay configmaps - kube-root | get read pay/configmaps/kube-root
GET {NS}/%73ecrets/db                             get - v1 pay secrets - db           | get read pay/secrets/db
GET /%61pi/v1/namespaces/pay/secrets/db           get - v1 pay secrets - db           | get read pay/secrets/db
GET {NS}/Secrets/db                               get - v1 pay Secrets - db           | get read pay/Secrets/db
GET {NS}/serviceaccounts/sa                       get - v1 pay serviceaccounts - sa   | get read pay/serviceaccounts/sa
POST {NS}/serviceaccounts/sa/token                create - v1 pay serviceaccounts token sa | create admin pay/serviceaccounts/sa
GET {NS}/replicationcontrollers/rc/scale          get - v1 pay replicationcontrollers scale rc | get read pay/replicationcontrollers/rc
POST {NS}/bindings                                create - v1 pay bindings - -        | create write pay/bindings/*
GET /api/v1/nodes                                 list - v1 - nodes - -               | list read -/nodes/*
GET /api/v1/nodes/n1                              get - v1 - nodes - n1               | get read -/nodes/n1
PATCH /api/v1/nodes/n1                            patch - v1 - nodes - n1             | patch admin -/nodes/n1
PUT /api/v1/nodes/n1/status                       update - v1 - nodes status n1       | update admin -/nodes/n1
DELETE /api/v1/nodes/n1                           delete - v1 - nodes - n1            | delete delete -/nodes/n1
GET /api/v1/persistentvolumes/pv                  get - v1 - persistentvolumes - pv   | get read -/persistentvolumes/pv
GET /api/v1/componentstatuses                     list - v1 - componentstatuses - -   | list read -/componentstatuses/*
GET {APPS}/deployments                            list apps v1 pay deployments - -    | list read pay/deployments.apps/*
GET {APPS}/deployments/api                        get apps v1 pay deployments - api   | get read pay/deployments.apps/api
PATCH {APPS}/deployments/api                      patch apps v1 pay deployments - api | patch write pay/deployments.apps/api
PUT {APPS}/deployments/api/scale                  update apps v1 pay deployments scale api | update write pay/deployments.apps/api
GET {APPS}/deployments/api/status                 get apps v1 pay deployments status api | get read pay/deployments.apps/api
GET /apis/apps/v1/deployments                     list apps v1 - deployments - -      | list read */deployments.apps/*
GET /apis/apps/v1/deployments?watch=1             watch apps v1 - deployments - -     | watch read */deployments.apps/*
DELETE /apis/apps/v1/deployments                  deletecollection apps v1 - deployments - - | deletecollection delete */deployments.apps/*
GET /apis/apps/v1/namespaces/pay                  get apps v1 pay namespaces - pay    | get read pay/namespaces.apps/pay
GET /apis/batch/v1/namespaces/pay/jobs            list batch v1 pay jobs - -          | list read pay/jobs.batch/*
POST /apis/batch/v1/namespaces/pay/cronjobs       create batch v1 pay cronjobs - -    | create write pay/cronjobs.batch/*
GET /apis/policy/v1/namespaces/pay/poddisruptionbudgets list policy v1 pay poddisruptionbudgets - - | list read pay/poddisruptionbudgets.policy/*
POST {RBAC}/namespaces/pay/roles                  create rbac.authorization.k8s.io v1 pay roles - - | create admin pay/roles.rbac.authorization.k8s.io/*
PATCH {RBAC}/namespaces/pay/rolebindings/rb       patch rbac.authorization.k8s.io v1 pay rolebindings - rb | patch admin pay/rolebindings.rbac.authorization.k8s.io/rb
POST {RBAC}/clusterroles                          create rbac.authorization.k8s.io v1 - clusterroles - - | create admin -/clusterroles.rbac.authorization.k8s.io/*
PUT {RBAC}/clusterrolebindings/x                  update rbac.authorization.k8s.io v1 - clusterrolebindings - x | update admin -/clusterrolebindings.rbac.authorization.k8s.io/x
GET {RBAC}/clusterroles/system:node               get rbac.authorization.k8s.io v1 - clusterroles - system:node | get read -/clusterroles.rbac.authorization.k8s.io/system:node
GET {RBAC}/clusterroles/system%3Anode             get rbac.authorization.k8s.io v1 - clusterroles - system:node | get read -/clusterroles.rbac.authorization.k8s.io/system:node
DELETE {RBAC}/namespaces/pay/rolebindings/rb      delete rbac.authorization.k8s.io v1 pay rolebindings - rb | delete delete pay/rolebindings.rbac.authorization.k8s.io/rb
POST /apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations create admissionregistration.k8s.io v1 - validatingwebhookconfigurations - - | create admin -/validatingwebhookconfigurations.admissionregistration.k8s.io/*
PATCH /apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/x patch admissionregistration.k8s.io v1 - mutatingwebhookconfigurations - x | patch admin -/mutatingwebhookconfigurations.admissionregistration.k8s.io/x
POST /apis/apiextensions.k8s.io/v1/customresourcedefinitions create apiextensions.k8s.io v1 - customresourcedefinitions - - | create admin -/customresourcedefinitions.apiextensions.k8s.io/*
PUT /apis/apiregistration.k8s.io/v1/apiservices/v1.x update apiregistration.k8s.io v1 - apiservices - v1.x | update admin -/apiservices.apiregistration.k8s.io/v1.x
POST /apis/certificates.k8s.io/v1/certificatesigningrequests create certificates.k8s.io v1 - certificatesigningrequests - - | create admin -/certificatesigningrequests.certificates.k8s.io/*
PUT /apis/certificates.k8s.io/v1/certificatesigningrequests/c/approval update certificates.k8s.io v1 - certificatesigningrequests approval c | update admin -/certificatesigningrequests.certificates.k8s.io/c
PUT {CRD}/namespaces/pay/things/t/approval        update example.com v1beta1 pay things approval t | update admin pay/things.example.com/t
POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews create authorization.k8s.io v1 - selfsubjectaccessreviews - - | create read -/selfsubjectaccessreviews.authorization.k8s.io/*
POST /apis/authentication.k8s.io/v1/selfsubjectreviews create authentication.k8s.io v1 - selfsubjectreviews - - | create read -/selfsubjectreviews.authentication.k8s.io/*
POST {CRD}/reviews                                create example.com v1beta1 - reviews - - | create write -/reviews.example.com/*
GET {CRD}/things                                  list example.com v1beta1 - things - - | list read */things.example.com/*
GET {CRD}/things/t                                get example.com v1beta1 - things - t | get read -/things.example.com/t
POST {CRD}/things                                 create example.com v1beta1 - things - - | create write -/things.example.com/*
DELETE {CRD}/things                               deletecollection example.com v1beta1 - things - - | deletecollection delete */things.example.com/*
GET {CRD}/things?fieldSelector=metadata.name=t    list example.com v1beta1 - things - t | list read */things.example.com/t
GET {CRD}/namespaces/pay/things/t/sub             get example.com v1beta1 pay things sub t | get read pay/things.example.com/t
GET {CRD}/namespaces/pay/things/t/sub/more        get example.com v1beta1 pay things sub t | get read pay/things.example.com/t
GET {CRD}/namespaces/pay/watch                    list example.com v1beta1 pay watch - - | list read pay/watch.example.com/*
GET {CRD}/namespaces/pay/things?watch=yes         watch example.com v1beta1 pay things - - | watch read pay/things.example.com/*
GET /apis/metrics.k8s.io/v1beta1/nodes            list metrics.k8s.io v1beta1 - nodes - - | list read -/nodes.metrics.k8s.io/*
GET /apis/metrics.k8s.io/v1beta1/namespaces/pay/pods list metrics.k8s.io v1beta1 pay pods - - | list read pay/pods.metrics.k8s.io/*
GET /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1 get coordination.k8s.io v1 kube-node-lease leases - n1 | get read kube-node-lease/leases.coordination.k8s.io/n1
GET /apis/storage.k8s.io/v1/storageclasses        list storage.k8s.io v1 - storageclasses - - | list read -/storageclasses.storage.k8s.io/*
GET /api/v2/namespaces/pay/pods                   list - v2 pay pods - -              | list read pay/pods/*
GET /api/v1/namespaces/namespaces/pods            list - v1 namespaces pods - -       | list read namespaces/pods/*
GET /api/v1/namespaces/pods                       get - v1 pods namespaces - pods     | get read -/namespaces/pods
GET /api/v1/namespaces/finalize/status            get - v1 finalize namespaces status finalize | get read -/namespaces/finalize
GET /api/v1/namespaces/pay/status/x               get - v1 pay namespaces status pay  | get read -/namespaces/pay
"""

# method, path -> our verb, kind
OTHERS = """
GET /                            get-path read
GET /version                     discover read
GET /version/                    discover read
HEAD /version                    discover read
GET /version?timeout=5s          discover read
POST /version                    path admin
GET /version/x                   get-path read
GET /api                         discover read
GET /api/                        discover read
GET /api/v1                      discover read
GET /api/v1/                     discover read
DELETE /api/v1                   path admin
GET /apis                        discover read
GET /apis/apps                   discover read
GET /apis/apps/v1                discover read
GET /apis/apps/v1/               discover read
POST /apis/apps/v1               path admin
OPTIONS /apis                    path admin
GET /openapi/v2                  discover read
GET /openapi/v3                  discover read
GET /openapi/v3/apis/apps/v1     discover read
GET /openapi/v4                  get-path read
GET /openapi                     get-path read
GET /healthz                     discover read
GET /readyz                      discover read
GET /livez                       discover read
GET /livez/ping                  discover read
GET /readyz?verbose              discover read
PUT /healthz                     path admin
GET /metrics                     get-path read
GET /metrics/cadvisor            get-path read
GET /logs/kubelet.log            get-path read
GET /debug/pprof/profile         get-path read
POST /debug/flags/v              path admin
PUT /debug/flags/v               path admin
GET /.well-known/openid-configuration get-path read
GET /openid/v1/jwks              get-path read
GET /notapi/v1/pods              get-path read
GET /v1/pods                     get-path read
"""


def table(text: str) -> list[list[str]]:
    """The rows of a table above, with its names filled in."""
    filled = text.replace("{NS}", NS).replace("{APPS}", APPS).replace("{RBAC}", RBAC).replace("{CRD}", CRD)
    return [line.split() for line in filled.strip().splitlines()]


def test_the_tables_are_large() -> None:
    assert len(table(RESOURCES)) + len(table(OTHERS)) >= 150


def test_paths_of_resources_are_read_as_the_server_reads_them() -> None:
    for method, path, verb, group, version, namespace, resource, subresource, name, _, ours, kind, place in table(
        RESOURCES
    ):
        info = read_path(path, method)
        expected = tuple("" if word == "-" else word for word in (group, version, namespace, resource, subresource))
        found = (info.api_group, info.api_version, info.namespace, info.resource, info.subresource)
        assert info.is_resource, path
        assert (info.verb, *found, info.name) == (verb, *expected, "" if name == "-" else name), (method, path)
        assert (verb_of(info), kind_of(info, verb_of(info)), object_of(info)) == (ours, kind, place), (method, path)
        assert info.raw == path


def test_paths_of_no_resource() -> None:
    for method, path, ours, kind in table(OTHERS):
        info = read_path(path, method)
        assert not info.is_resource, path
        assert info.verb == method.lower()
        assert (verb_of(info), kind_of(info, verb_of(info))) == (ours, kind), (method, path)
        assert is_plumbing(info) == (ours == "discover")
        assert object_of(info) == info.path == path.partition("?")[0]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/namespaces/pay/secrets%2Fdb",
        "/api/v1/namespaces/pay/secrets%2fdb",
        "/api/v1/namespaces/pay%5Csecrets",
        "/api/v1/namespaces/pay%5csecrets",
        "/api/v1/namespaces\\pay/secrets",
        "/api/v1/namespaces/pay/pods;x=1",
        "/api/v1//namespaces/pay/pods",
        "//api/v1/pods",
        "/api/v1/pods//",
        "/api/v1/./pods",
        "/api/v1/namespaces/dev/../pay/secrets",
        "/api/v1/namespaces/dev/%2e%2e/pay/secrets",
        "/api/v1/namespaces/dev/%2E./pay/secrets",
        "/api/v1/namespaces/dev/.%2e",
        "/api/v1/namespaces/pay/pods/.",
        "/api/v1/namespaces/pay/pods/%00",
        "/api/v1/namespaces/pay/pods/a%0ab",
        "/api/v1/namespaces/pay/pods/a%7fb",
        "/api/v1/namespaces/pay/pods/a%C2%85b",
        "/api/v1/namespaces/pay/pods/a%E2%80%AEb",
        "/api/v1/namespaces/pay/pods/%ff",
        "/api/v1/namespaces/pay/pods/%c0%af",
        "/api/v1/namespaces/pay/pods/%",
        "/api/v1/namespaces/pay/pods/%2",
        "/api/v1/namespaces/pay/pods/%zz",
        "/api/v1/namespaces/pay/pods/%u0041",
        "/api/v1/namespaces/pay/pods/a%252Fb",
        "/api/v1/namespaces/pay/%2573ecrets/db",
        "/api/v1/namespaces/pay/pods/a b",
        "/api/v1/namespaces/pay/pods/\u00e4",
        "/api/v1/namespaces/pay/pods#x",
        "/api/v1/namespaces/pay/pods?a#x",
        "api/v1/pods",
        "",
        "http://other/api/v1/pods",
        "*",
        "/API/v1/namespaces/pay/secrets",
        "/Apis/apps/v1/deployments",
        "/api/v1/watch/pods",
        "/api/v1/watch/namespaces/pay/secrets",
        "/api/v1/watch",
        "/apis/apps/v1/watch/deployments",
        "/api/v1/proxy/namespaces/pay/pods/web",
        "/api/v1/proxy",
        "/api/v1/pods?watch=true&watch=false",
        "/api/v1/pods?watch=false&%77atch=true",
        "/api/v1/pods?fieldSelector=metadata.name=a&fieldSelector=metadata.name=b",
        "/api/v1/pods?fieldSelector=metadata.name=a,metadata.name=b",
        "/api/v1/pods?fieldSelector=metadata.name=a,foo",
        "/api/v1/pods?fieldSelector=metadata.name",
        "/api/v1/pods?fieldSelector=metadata.name=a=b",
        "/api/v1/pods?fieldSelector=metadata.name=a%5C",
        "/api/v1/pods?fieldSelector=metadata.name=a%5Cx",
        "/api/v1/pods?fieldSelector=metadata.name=a&limit=abc",
        "/api/v1/pods?fieldSelector=metadata.name=a&timeoutSeconds=",
        "/api/v1/pods?a=1;watch=true",
        "/api/v1/pods?watch=%zz",
        "/api/v1/pods?watch=%ff",
        "/api/v1/pods?wat ch=1",
        "/api/v1/namespaces/pay/pods/web/exec?container=a&container=b&command=id",
        "/api/v1/namespaces/pay/pods/web/exec?stdin=false&stdin=true&command=id",
        "/api/v1/namespaces/pay/pods?dryRun=All&limit=1&limit=2",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(path: str) -> None:
    with pytest.raises(BadRequest) as raised:
        read_path(path, "GET")
    assert raised.value.status == 400


def test_methods() -> None:
    for method in ("TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get", ""):
        with pytest.raises(BadRequest) as raised:
            read_path(f"{NS}/pods", method)
        assert raised.value.status == 405
    for method in ("TRACE", "CONNECT", "get"):
        with pytest.raises(BadRequest) as raised:
            read_path("/version", method)
        assert raised.value.status == 405


def test_the_path_has_a_limit() -> None:
    assert read_path("/" + "a" * (PATH_LIMIT - 1), "GET").path
    with pytest.raises(BadRequest) as raised:
        read_path("/" + "a" * PATH_LIMIT, "GET")
    assert raised.value.status == 414


def test_the_query_has_a_limit() -> None:
    assert len(parse_query("&".join(["a=1"] * PAIRS_LIMIT))) == PAIRS_LIMIT
    with pytest.raises(BadRequest):
        parse_query("&".join(["a=1"] * (PAIRS_LIMIT + 1)))


def test_a_proxied_path_keeps_its_escapes_and_parameters() -> None:
    info = read_path(f"{NS}/pods/web/proxy/a%20b/%25x?a=1&a=2", "GET")
    assert info.path == f"{NS}/pods/web/proxy/a b/%x"
    assert info.values("a") == ("1", "2")
    assert info.parts == ("pods", "web", "proxy", "a b", "%x")
    assert info.raw_path == f"{NS}/pods/web/proxy/a%20b/%25x"


def test_the_query_is_read_as_go_reads_it() -> None:
    assert parse_query("") == ()
    assert parse_query("a=1&b&=c&&d=e=f&x+y=%2B+%3D") == (
        ("a", "1"), ("b", ""), ("", "c"), ("d", "e=f"), ("x y", "+ ="),
    )  # fmt: skip
    info = read_path(f"{NS}/pods/web/exec?command=sh&command=-c&command=echo+%26&tty&stdin=0", "GET")
    assert info.values("command") == ("sh", "-c", "echo &")
    assert (info.flag("tty"), info.flag("stdin"), info.flag("stdout")) == (True, False, False)


def test_booleans() -> None:
    for value, truth in {
        "0": False,
        "false": False,
        "FALSE": False,
        "": True,
        "1": True,
        "no": True,
        " 0": True,
    }.items():
        assert is_true(value) is truth, value


def test_scopes() -> None:
    assert is_cluster_scoped(read_path(f"{CRD}/things", "GET")) is None
    assert is_cluster_scoped(read_path(f"{CRD}/things?fieldSelector=metadata.name=t", "GET")) is None
    assert is_cluster_scoped(read_path(f"{CRD}/things/t", "GET")) is True
    assert is_cluster_scoped(read_path(f"{CRD}/namespaces/pay/things", "GET")) is False
    assert is_cluster_scoped(read_path("/api/v1/pods", "GET")) is False
    assert is_cluster_scoped(read_path(NS, "DELETE")) is True


def test_every_verb_has_a_kind() -> None:
    assert {row[10] for row in table(RESOURCES)} | {row[2] for row in table(OTHERS)} <= VERBS
    assert set(KIND_OF) == VERBS


@given(st.text(max_size=60), st.sampled_from(["GET", "POST", "DELETE", "HEAD", "OPTIONS", "BREW"]))
def test_garbage_is_a_path_or_a_bad_request(text: str, method: str) -> None:
    for target in (text, f"/{text}", f"{NS}/{text}", f"{NS}/pods?{text}", f"{NS}/pods?fieldSelector={text}"):
        try:
            info = read_path(target, method)
        except BadRequest as bad:
            assert bad.status in (400, 405, 414)
        else:
            assert verb_of(info) in VERBS
            assert info.path.isprintable()


SEGMENTS = st.sampled_from(
    ["api", "apis", "v1", "apps", "namespaces", "pods", "watch", "proxy", "status", "finalize", "exec", "a", "%41", ""]
)


@given(st.lists(SEGMENTS, max_size=8), st.sampled_from(["GET", "PUT", "DELETE"]))
def test_the_name_and_the_resource_are_segments_of_the_path(segments: list[str], method: str) -> None:
    target = "/" + "/".join(segments)
    try:
        info = read_path(target, method)
    except BadRequest:
        return
    decoded = [segment.replace("%41", "A") for segment in segments]
    for part in (info.resource, info.name, info.namespace, info.subresource):
        assert part == "" or part in decoded
    assert info.is_resource == (
        bool(info.resource) and request_info._resource_part(tuple(filter(None, decoded))) is not None
    )
