"""The demo's gateway: its files, written as an operator would write them, and ``gatecast serve`` on them.

The folder is all there is: gatecast.yaml, rules.yaml, a certificate, the target's password (0600), two tokens, and
the gateway's state. Every process of the demo runs in it, so that what is shown can be typed again. There are two
listeners for psql: one with TLS, and one without, on loopback, for a psql that was built without TLS; and one for ssh,
if there is a machine (box.py). An SSH client finds what it needs in ssh_config and agent.key.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import proxy
from proxy.certificates import self_signed
from proxy.demo.box import LOGIN, Box, make_key
from proxy.demo.shop import DATABASE, ROLE, DemoError, Shop
from proxy.identity.commands import DATABASE_NAME, token_issue
from proxy.services import SOCKET_NAME, prepare_state

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.05
TLS_PORT: Final = 6432  # where they are free; any other does as well
PLAIN_PORT: Final = 6433
SSH_PORT: Final = 2222
AGENT: Final = "shop-agent"
OWNER: Final = "ana@example.com"
APPROVER: Final = "mia@example.com"

CONFIG: Final = """\
state: state
listeners:
  - name: tls
    protocol: postgres
    address: localhost:{tls_port}
    tls: {{cert: tls.crt, key: tls.key}}
  - name: plain                      # loopback only: for a psql that was built without TLS
    protocol: postgres
    address: 127.0.0.1:{plain_port}
    plain: true
targets:
  - name: shop
    host: 127.0.0.1
    port: {target_port}
    database: {database}
    credential: {{user: {role}, password_file: shop.password}}   # its users never see it
    labels: {{env: demo}}
limits: {{drain_seconds: 0.5}}
rules_file: rules.yaml
"""

SSH_LISTENER: Final = """\
  - name: ssh
    protocol: ssh
    address: localhost:{ssh_port}
    ssh: {{names: [localhost]}}        # our host CA certifies the gateway's key for it
"""
SSH_TARGET: Final = """\
  - name: box
    protocol: ssh
    host: 127.0.0.1
    port: {box_port}
    credential: {{user: {login}, key_file: box.key}}
    ssh:
      host_keys: {host_key}
      exec_only: true                # single commands and files, no shells
    labels: {{env: demo}}
"""

SSH_CONFIG: Final = """\
Host box
    HostName localhost
    Port {ssh_port}
    User {login}:box
    IdentityFile "{folder}/agent.key"
    IdentitiesOnly yes
    UserKnownHostsFile "{folder}/known_hosts"
    GlobalKnownHostsFile /dev/null
    BatchMode yes
"""

RULES: Final = """\
# What no rule allows is denied. All rules that match count: deny over hold over allow; masks add up.
rules:
  - name: agents-read
    who: {groups: [agents]}
    on: {targets: [shop]}
    commands: {kinds: [read], objects: ["public.*", "pg_catalog.*", "information_schema.*"]}
    allow: true

  - name: no-personal-data
    on: {targets: [shop]}
    mask:
      - {columns: [public.customers.email], action: redact}
      - {detectors: [email, card], action: partial, keep: 4}

  - name: changes-need-a-human
    who: {groups: [agents]}
    on: {targets: [shop]}
    commands: {kinds: [write], objects: ["public.*"]}
    hold: {approvers: ["group:oncall"], timeout: 5m, reason: "an agent changes data"}

  - name: no-ddl
    on: {targets: [shop]}
    commands: {kinds: [define, delete, admin]}
    deny: {reason: "agents change no tables; ask for a migration"}
"""

SSH_RULES: Final = """\

  - name: agents-look
    who: {groups: [agents]}
    on: {targets: [box], logins: [deploy]}
    commands: {verbs: [exec], objects: [ls, cat, head, tail, wc, uptime]}
    when: shell.writes.size() == 0
    allow: true

  - name: agents-sftp
    who: {groups: [agents]}
    on: {targets: [box]}
    commands: {verbs: [subsystem], objects: [sftp]}
    allow: true

  - name: agents-fetch
    who: {groups: [agents]}
    on: {targets: [box]}
    commands: {verbs: [file-read, file-list, file-stat], objects: [/, /reports, "/reports/*"]}
    allow: true

  - name: no-removal
    on: {targets: [box]}
    commands: {verbs: [exec], objects: [rm, rmdir, shred], opaque: false}
    deny: {reason: "nothing is removed by an agent"}
"""


@dataclass(slots=True)
class House:
    """A running gateway in its folder, and how to talk to it; process is another one after restart().

    ssh_port: 0 where there is no machine.
    """

    folder: Path
    tls_port: int
    plain_port: int
    agent_token: str
    approver_token: str
    process: subprocess.Popen[bytes]
    ssh_port: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every command of the demo: ``gatecast`` is this one, and the agent's token is set."""
        return {**_environment(self.folder), "PGPASSWORD": self.agent_token}

    @property
    def log(self) -> str:
        """What the gateway has logged so far."""
        return (self.folder / "gateway.log").read_text(errors="replace")


@contextlib.contextmanager
def open_house(folder: Path, shop: Shop, box: Box | None = None) -> Iterator[House]:
    """Write the files into the folder and run the gateway on them. Raises DemoError."""
    if _in_use(folder / "state" / SOCKET_NAME):
        raise DemoError(f"a demo is running in {folder} already; stop it with Ctrl-C in its terminal")
    agent, approver = _write(folder, shop, box)
    (folder / "gateway.log").write_bytes(b"")
    house = House(folder, 0, 0, agent, approver, _serve(folder))
    try:
        ports = _ports(
            house.process, folder / "gateway.log", 0, {"tls", "plain"} | ({"ssh"} if box is not None else set())
        )
        house.tls_port, house.plain_port, house.ssh_port = ports["tls"], ports["plain"], ports.get("ssh", 0)
        if box is not None:
            text = SSH_CONFIG.format(folder=folder, ssh_port=house.ssh_port, login=LOGIN)
            (folder / "ssh_config").write_text(text)
            authority = (folder / "state" / "ssh" / "host_ca.pub").read_text()
            (folder / "known_hosts").write_text(f"@cert-authority localhost {authority}")
        yield house
    finally:
        stop(house.process)


def kill(house: House) -> None:
    """End the gateway as a power supply would: without a word. Its ports are written down for the next start."""
    house.process.kill()
    house.process.wait(STOP_SECONDS)
    config = house.folder / "gatecast.yaml"
    text = config.read_text()
    for name, port in (("tls", house.tls_port), ("plain", house.plain_port), ("ssh", house.ssh_port)):
        text = re.sub(rf"(- name: {name}\b[^-]*?    address: [\w.]+):0\n", rf"\g<1>:{port}\n", text)
    config.write_text(text)


def restart(house: House) -> None:
    """Start a gateway in the place of the one that is gone. Raises DemoError."""
    began = (house.folder / "gateway.log").stat().st_size
    house.process = _serve(house.folder)
    _ports(
        house.process, house.folder / "gateway.log", began, {"tls", "plain"} | ({"ssh"} if house.ssh_port else set())
    )


def _serve(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "gateway.log").open("ab") as log:
        return subprocess.Popen(  # ourselves
            [sys.executable, "-m", "proxy", "serve", "-c", "gatecast.yaml", "--log-json"],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the demo, which stops the gateway itself
        )


def stop(process: subprocess.Popen[bytes]) -> int:
    """Stop a gateway as an operator would, and return its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
    return int(process.returncode)


def _write(folder: Path, shop: Shop, box: Box | None) -> tuple[str, str]:
    """Write all files; returns the agent's and the approver's token."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    state = folder / "state"
    prepare_state(state)
    if not (folder / "tls.crt").exists():
        self_signed(folder, ["localhost", "127.0.0.1", "::1"])
    _secret(folder / "shop.password", shop.password + "\n")
    ports = {"tls_port": _free(TLS_PORT), "plain_port": _free(PLAIN_PORT), "target_port": shop.port}
    config = CONFIG.format(database=DATABASE, role=ROLE, **ports)
    if box is not None:
        listener = SSH_LISTENER.format(ssh_port=_free(SSH_PORT))
        target = SSH_TARGET.format(box_port=box.port, host_key=box.host_key, login=LOGIN)
        config = config.replace("targets:\n", f"{listener}targets:\n").replace("limits:", f"{target}limits:")
        _secret(folder / "box.key", box.key)
        make_key(folder / "agent.key")
    (folder / "rules.yaml").write_text(RULES if box is None else RULES + SSH_RULES)
    (folder / "gatecast.yaml").write_text(config)
    (folder / "bin").mkdir(exist_ok=True)
    client = f"proxy.demo.client {shlex.quote(str(folder / 'ssh_config'))}"
    for name, module in (("gatecast", "proxy"), ("demo-ssh", client)):
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\n{_path_line()}exec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        command.chmod(0o755)
    database = state / DATABASE_NAME
    agent = token_issue(database, OWNER, groups=["agents"], agents=[AGENT], seconds=86_400, note="the demo's agent")
    approver = token_issue(database, APPROVER, groups=["oncall"], seconds=86_400, note="the demo's approver")
    return str(agent["token"]), str(approver["token"])


def write_env(house: House, parameters: Mapping[str, str]) -> None:
    """Write the file ``env`` for a shell: gatecast in PATH, the tokens, and libpq's parameters as PG* variables."""
    # As libpq names them in the environment (docs 34.15).
    special = {"dbname": "PGDATABASE"}
    values = {special.get(name, f"PG{name.upper()}"): value for name, value in parameters.items()}
    values |= {"PGPASSWORD": house.agent_token, "APPROVER": house.approver_token}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in values.items()]
    path = f'export PATH={shlex.quote(str(house.folder / "bin"))}:"$PATH"\n'
    _secret(house.folder / "env", path + "unset GATECAST_CONFIG GATECAST_TOKEN\n" + "".join(lines))


def _secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


def _path_line() -> str:
    """How ``python -m proxy`` finds us where we are not installed."""
    parent = Path(proxy.__file__).parents[1]
    return "" if parent.name.endswith("-packages") else f"export PYTHONPATH={shlex.quote(str(parent))}\n"


def _environment(folder: Path) -> dict[str, str]:
    # Nobody's own settings may change what is shown.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "GATECAST_", "PSQL"))}
    parent = Path(proxy.__file__).parents[1]
    found: Mapping[str, str] = {} if parent.name.endswith("-packages") else {"PYTHONPATH": str(parent)}
    path = f"{folder / 'bin'}:{kept.get('PATH', '/usr/bin:/bin')}"
    return {**kept, **found, "PATH": path, "PSQL_PAGER": "", "LC_MESSAGES": "C", "PYTHONUNBUFFERED": "1"}


def _free(port: int) -> int:
    """The port where nobody listens there on either loopback address; else 0, any."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError:
            if family == socket.AF_INET:
                return 0
            with contextlib.suppress(OSError), socket.create_connection((host, port), 0.2):
                return 0
    return port


def _in_use(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _ports(process: subprocess.Popen[bytes], log: Path, began: int, wanted: set[str]) -> dict[str, int]:
    """Wait until the log, from began on, says where each listener is. Raises DemoError with what it says instead."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        found = dict(_listening(log.read_bytes()[began:].decode("utf-8", "replace")))
        if wanted <= found.keys():
            return found
        time.sleep(POLL_SECONDS)
    said = log.read_text(errors="replace").strip()[-1000:]
    raise DemoError(f"the gateway did not start: {said or 'it said nothing'}")


def _listening(log: str) -> Iterator[tuple[str, int]]:
    for line in log.splitlines():
        with contextlib.suppress(ValueError):  # the last line may be half written
            entry = json.loads(line)
            if entry.get("event") == "listening":
                yield str(entry.get("listener")), int(str(entry["address"]).rpartition(":")[2])
