"""Scenarios of plain requests: reading, writing, watching, logs, questions about oneself."""

from __future__ import annotations

import base64
import json
import subprocess

from tests.kubernetes.running import Runner, lines_of, scenario
from tests.ssh.running import until


def _manifest(run: Runner, name: str, **data: str) -> str:
    file = run.folder / f"{name}.json"
    metadata = {"name": name, "namespace": "default"}
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}))
    return str(file)


@scenario(every=True)
def get(run: Runner) -> None:
    """As a table, of one namespace and of all; by label; one object in every form."""
    lines = run.ok("get", "pods").splitlines()
    assert lines[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert {line.split()[0] for line in lines[1:]} >= {"web-0", "web-1"}
    assert "prod " in run.ok("get", "pods", "-A") + " "
    assert run.ok("get", "pods", "-n", "prod", "-l", "app=db", "-o", "name").split() == ["pod/db-0"]
    assert run.json("get", "pod", "web-0")["metadata"]["name"] == "web-0"
    assert "name: web-0\n" in run.ok("get", "pod", "web-0", "-o", "yaml")
    assert run.ok("get", "secret", "web-0-db", "-o", "jsonpath={.data.username}") == base64.b64encode(b"app").decode()
    assert run.ok("get", "deploy,cm", "-o", "name").split()[0] == "deployment.apps/web"
    assert run.ok("get", "--raw", f"{run.prefix}/api/v1/namespaces/default/pods/web-0").startswith("{")


@scenario(every=True)
def what_there_is_not(run: Runner) -> None:
    """Errors of the target come as its own."""
    done = run.do("get", "pod", "nobody")
    assert (done.returncode, done.stderr) == (1, b'Error from server (NotFound): pods "nobody" not found\n')
    done = run.do("get", "unicorns")
    assert done.returncode == 1
    assert b"the server doesn't have a resource type" in done.stderr


@scenario(every=True)
def describe(run: Runner) -> None:
    text = run.ok("describe", "pod", "web-0")
    assert "Node:" in text
    assert "DB_HOST:" in text
    assert "sidecar:" in text


@scenario(every=True)
def watch(run: Runner) -> None:
    """What is made while somebody watches is seen at once, as is its end."""
    name = run.name("watched")
    with run.started(*run.argv("get", "configmaps", "--watch")) as process:
        lines_of(process.stdout, lambda line: line.startswith("app "))
        run.ok("create", "configmap", name, "--from-literal=a=1")
        seen = lines_of(process.stdout, lambda line: line.startswith(name))
        assert seen[-1].split()[:2] == [name, "1"]
        run.ok("patch", "configmap", name, "-p", '{"data": {"b": "2"}}')
        assert lines_of(process.stdout, lambda line: line.startswith(name))[-1].split()[1] == "2"
        run.ok("delete", "configmap", name)
        assert lines_of(process.stdout, lambda line: line.startswith(name))[-1].startswith(name)


@scenario(every=True)
def create(run: Runner) -> None:
    """In protobuf, which kubectl sends for these; read back as it was meant."""
    name = run.name("made")
    assert run.ok("create", "secret", "generic", name, "--from-literal=password=hunter2") == f"secret/{name} created\n"
    data = run.json("get", "secret", name)["data"]
    assert base64.b64decode(data["password"]) == b"hunter2"
    done = run.do("create", "secret", "generic", name, "--from-literal=a=b")
    assert b"(AlreadyExists)" in done.stderr or b"already exists" in done.stderr
    run.ok("create", "configmap", name, f"--from-file=f={_manifest(run, name)}")
    run.ok("delete", "secret,configmap", name)


@scenario(every=True)
def apply(run: Runner) -> None:
    """By the client and by the server: created, configured, unchanged."""
    name = run.name("applied")
    assert run.ok("apply", "-f", _manifest(run, name, x="1")) == f"configmap/{name} created\n"
    assert run.ok("apply", "-f", _manifest(run, name, x="2")) == f"configmap/{name} configured\n"
    assert run.ok("apply", "-f", _manifest(run, name, x="2")) == f"configmap/{name} unchanged\n"
    assert run.json("get", "cm", name)["data"] == {"x": "2"}
    for value in ("3", "4"):
        said = run.ok("apply", "--server-side", "--force-conflicts", "-f", _manifest(run, name, x=value))
        assert said == f"configmap/{name} serverside-applied\n"
    assert run.json("get", "cm", name)["data"] == {"x": "4"}
    assert run.ok("apply", "--dry-run=server", "-f", _manifest(run, name, x="5")).endswith("(server dry run)\n")
    assert run.json("get", "cm", name)["data"] == {"x": "4"}
    assert run.ok("delete", "-f", _manifest(run, name)).startswith(f'configmap "{name}" deleted')


@scenario(every=True)
def change(run: Runner) -> None:
    """The patches of kubectl, labels, annotations, scale, replace, and the end."""
    name = run.name("changed")
    run.ok("create", "configmap", name, "--from-literal=a=1", "--from-literal=b=2")
    run.ok("patch", "cm", name, "-p", '{"data": {"a": "strategic"}}')
    run.ok("patch", "cm", name, "--type=merge", "-p", '{"data": {"b": null}}')
    run.ok("patch", "cm", name, "--type=json", "-p", '[{"op": "add", "path": "/data/c", "value": "json"}]')
    run.ok("label", "cm", name, "tier=gold")
    run.ok("annotate", "cm", name, "example.com/why=because")
    found = run.json("get", "cm", name)
    assert found["data"] == {"a": "strategic", "c": "json"}
    assert found["metadata"]["labels"] == {"tier": "gold"}
    assert found["metadata"]["annotations"] == {"example.com/why": "because"}
    found["data"] = {"only": "this"}
    run.ok("replace", "-f", "-", input=json.dumps(found).encode())
    assert run.json("get", "cm", name)["data"] == {"only": "this"}
    run.ok("scale", "deployment/web", "--replicas=4")
    assert run.json("get", "deployment", "web")["spec"]["replicas"] == 4
    run.ok("delete", "cm", "-l", "tier=gold")
    assert run.do("get", "cm", name).returncode == 1


@scenario(every=True)
def logs(run: Runner) -> None:
    """What there is, and what comes while it is followed."""
    until(lambda: run.ok("logs", "web-0", "-c", "main", "--tail=3").count("\n") == 3, "lines")
    with run.started(*run.argv("logs", "-f", "web-0", "-c", "main", "--tail=1")) as process:
        lines = lines_of(process.stdout, lambda line: line.startswith("line "))
        first = int(lines[-1].split()[1])
        assert lines_of(process.stdout, lambda line: line == f"line {first + 3}\n") == [
            f"line {first + more}\n" for more in (1, 2, 3)
        ]
    done = run.do("logs", "web-0", "-c", "nobody")
    assert b"container nobody is not valid for pod web-0" in done.stderr


@scenario(every=True)
def about_itself(run: Runner) -> None:
    """Discovery, explanations, versions."""
    assert "SHORTNAMES" in run.ok("api-resources").replace(" ", "")
    assert "rbac.authorization.k8s.io/v1" in run.ok("api-versions")
    assert "A group of containers." in run.ok("explain", "pods")
    assert "v1.32.4-standin" in run.ok("version", "-o", "json")
    assert run.ok("get", "--raw", f"{run.prefix}/healthz") == "ok"


@scenario(every=True)
def who_am_i(run: Runner) -> None:
    """Questions in the form of objects, in protobuf."""
    assert run.ok("auth", "can-i", "create", "pods") == "yes\n"
    if run.version >= (1, 27):
        assert "Username" in run.ok("auth", "whoami")


@scenario(every=True)
def a_wrong_token(run: Runner) -> None:
    done = run.do("get", "pods", "--token=wrong")
    assert done.returncode == 1
    assert b"You must be logged in to the server" in done.stderr


@scenario()
def pages(run: Runner) -> None:
    """A list in pieces, and a large one: more than a server compresses."""
    name = run.name("big")
    file = run.folder / "big"
    file.write_bytes(b"x" * 900_000)
    run.ok("create", "configmap", name, f"--from-file=big={file}")
    try:
        assert len(run.json("get", "cm", name)["data"]["big"]) == 900_000
        found = run.ok("get", "pods", "--all-namespaces", "--chunk-size=1", "-o", "name").split()
        assert {"pod/web-0", "pod/web-1", "pod/db-0"} <= set(found)
    finally:
        run.ok("delete", "configmap", name)


@scenario()
def too_large(run: Runner) -> None:
    """A body beyond the API server's limit is an error and no hang."""
    file = run.folder / "huge"
    file.write_bytes(b"x" * 4_000_000)
    done = run.do("create", "configmap", run.name("huge"), f"--from-file=huge={file}")
    assert done.returncode == 1
    assert b"large" in done.stderr.lower() or b"limit" in done.stderr.lower(), done.stderr


@scenario()
def curl(run: Runner) -> None:
    """No kubectl at all: a program that speaks HTTP."""
    argv = ["curl", "-sS", "--cacert", str(run.authority), "-H", f"Authorization: Bearer {run.token}"]
    url = f"{run.url}/api/v1/namespaces/default/configmaps"
    listed = json.loads(subprocess.run([*argv, url], check=True, capture_output=True, timeout=30).stdout)
    assert listed["kind"] == "ConfigMapList"
    name = run.name("curled")
    body = json.dumps({"metadata": {"name": name}, "data": {"a": "b" * 100_000}})
    posted = [*argv, "-H", "Content-Type: application/json", "-H", "Transfer-Encoding: chunked", "--data-binary", "@-"]
    made = subprocess.run([*posted, url], input=body.encode(), check=True, capture_output=True, timeout=30).stdout
    assert json.loads(made)["data"]["a"] == "b" * 100_000
    gone = subprocess.run([*argv, "-X", "DELETE", f"{url}/{name}"], check=True, capture_output=True, timeout=30)
    assert json.loads(gone.stdout)["status"] == "Success"
