"""Canaries in SSH: the target's secrets, the user's token, masked values and hidden input are in no byte that is left.

One real gateway with everything on: masks, an original track for an auditor, encryption, two workers, index, JSON log
with stacks. Real OpenSSH clients make it handle what must not be kept in every way that they have: exec, terminals,
stderr, values cut into single bytes, file names that a shell completes, a password asked for on a terminal. Then it is
killed, so that its write-ahead logs stay. What is searched: the state directory, each block of tapes and logs decrypted
and inflated, the databases, logs, temporary files, the processes' environments, what every command prints and exports.

The same search with the mask taken out must find the value at each of these places: a search that finds nothing may
just be blind.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncssh
import pytest

from proxy import cli
from recorder.cipher import AuditorKey
from recorder.format import KEYS_SUFFIX
from recorder.reader import TapeReader
from tests.peers.ssh import SshServer, program, ssh_server
from tests.ssh.gateway import ALL_KINDS, GatewayProcess
from tests.ssh.running import Runner, until
from tests.ssh.scenarios_forwards import shared
from tests.ssh.terminal import terminal
from tests.test_canary_psql import Search, blocks, family, search_files
from tests.test_kill_ssh import Place, way

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]

VALUE: Final = b"kanarienvogel@voliere.example"
NUMBER: Final = b"KV-kanarienvogel-471199"  # what a shell completes without a backslash in it
PART: Final = b"kanarienvogel"
HIDDEN: Final = b"verborgener-zeisig-7"
PASSPHRASE: Final = b"stieglitz-passphrase-5"
PASSWORD: Final = b"goldammer-password-3"
WRONG: Final = b"gct_dompfaff-is-no-token"
FORMATS: Final = ("asciicast-v2", "asciicast-v3", "txt", "jsonl", "html", "sql", "raw", "svg")
EVERYTHING: Final = f"""\
rules:
  - {{name: all, who: {{groups: [dev]}}, commands: {{kinds: {ALL_KINDS}, opaque: true}}, allow: true}}
  - {{name: no-removal, commands: {{objects: [rm]}}, deny: {{reason: nothing is removed here}}}}
  - {{name: ask, who: {{groups: [dev]}}, commands: {{verbs: [exec, line], objects: [touch]}},
     hold: {{approvers: ["local:{getpass.getuser()}"], timeout: 1s}}}}
"""
MASK: Final = "  - {name: addresses, mask: [{detectors: [email, ring], action: redact}]}\n"
BY_BYTE: Final = f"""\
#!{sys.executable}
import sys, time
stream = getattr(sys, sys.argv[1]).buffer
for byte in open(sys.argv[2], "rb").read():
    stream.write(bytes((byte,)))
    stream.flush()
    time.sleep(0.001)
"""


# -- a target that asks for a password ------------------------------------------------------------------


class _Asking(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return password.encode() == PASSWORD


@contextlib.contextmanager
def asking_server(host_key: Path) -> Iterator[int]:
    """A server that lets in by a password, and answers every command with the value; yields its port."""

    async def answer(process: asyncssh.SSHServerProcess[bytes]) -> None:
        process.stdout.write(b"this is " + VALUE + b"\n")
        process.exit(0)

    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(
        asyncssh.create_server(
            _Asking, "127.0.0.1", 0, server_host_keys=[str(host_key)], process_factory=answer, encoding=None
        )
    )
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield listening.get_port()
    finally:
        loop.call_soon_threadsafe(listening.close)
        asyncio.run_coroutine_threadsafe(listening.wait_closed(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


# -- the gateway and its clients -------------------------------------------------------------------------


@dataclass(slots=True)
class World:
    """A gateway's folder and what its clients do."""

    place: Place
    reader: AuditorKey
    auditor: AuditorKey
    seen: dict[str, bytes] = field(default_factory=dict)  # what clients showed, by what they did

    @property
    def folder(self) -> Path:
        return self.place.folder

    def use(self, gateway: GatewayProcess, target: str) -> None:
        """Have the value printed in every way."""
        with way(gateway, target) as run:
            self.prepare(run.remote)
            commands = {
                "out": f"cat {run.remote}/data",
                "err": f"cat {run.remote}/data >&2",
                "bytes": f"{run.remote}/by_byte stdout {run.remote}/data",
                "err bytes": f"{run.remote}/by_byte stderr {run.remote}/data",
                "error text": f"cd {run.remote}/names; cat *",
                "denied": f"cd {run.remote}/names; rm -r K*",
                "held": f"cd {run.remote}/names; touch K*",
            }
            with shared(run) as path:
                for name, command in commands.items():
                    for options in ((), ("-tt",)):
                        done = run.ssh(command, "-S", path, *options)
                        self.seen[f"{target} {name} {options}"] = done.stdout + done.stderr
            self.log_in(run)
            self.type(run)

    def prepare(self, remote: Path) -> None:
        (remote / "data").write_bytes(
            b"id " + NUMBER + b" mail " + VALUE + b" end\n" + b"x" * 200 + b" " + VALUE + b"\n"
        )
        (remote / "by_byte").write_text(BY_BYTE)
        (remote / "by_byte").chmod(0o700)
        (remote / "names").mkdir()
        (remote / "names" / NUMBER.decode()).mkdir()

    def log_in(self, run: Runner) -> None:
        """Log in by the token in each way, and try a wrong one."""
        by_token = run.write("by_token", self.place.token)
        for method in ("password", "keyboard-interactive"):
            done = run.ssh("true", "-o", f"PreferredAuthentications={method}", config=by_token)
            assert done.returncode == 0, done.stderr
        wrong = run.write("wrong", WRONG.decode())
        for method in ("password", "keyboard-interactive"):
            done = run.ssh(
                "true", "-o", f"PreferredAuthentications={method}", "-o", "NumberOfPasswordPrompts=1", config=wrong
            )
            assert done.returncode == 255
            self.seen[f"{run.target} wrong {method}"] = done.stdout + done.stderr

    def type(self, run: Runner) -> None:
        """Work on a terminal: print the value, have the shell complete it, answer a prompt that does not echo."""
        with terminal(run, "box") as seat:
            until(lambda: seat.screen().strip(), "prompt")
            seat.line(f"cd {run.remote}/names; cat ../data | cut -c -60; echo se''en")
            seat.until_line("seen")
            for count, line in enumerate(("ls -d ", "touch ", "rm ")):
                seat.type(line)
                seat.press("Tab", "Enter")
                if line.startswith("touch"):
                    seat.until("held by rule")
                    seat.until("in time")  # nobody approves it
                until(lambda: seat.screen().rstrip().endswith("#"), "prompt")
                seat.line(f"echo co''mpleted {count}")
                seat.until_line(f"completed {count}")
            seat.line("read -s -p 'Password: ' word; echo; test -n \"$word\" && echo wo''rd")
            seat.until_line("Password:")
            seat.line(HIDDEN.decode())
            seat.until_line("word")
            self.seen[f"{run.target} terminal"] = seat.screen().encode()
            seat.line("exit")
            seat.until("ENDED")

    def jump(self, gateway: GatewayProcess) -> None:
        """Log in at the gateway as a jump host, by the token."""
        with way(gateway, "watched") as plain:
            run = Runner("jump", plain.server, gateway, plain.folder, plain.remote, target="watched")
            self.prepare(run.remote)
            done = run.ssh(f"cat {run.remote}/data", config=run.write("by_token", self.place.token))
            assert done.returncode == 0, done.stderr
            self.seen["jump"] = done.stdout + done.stderr

    @contextlib.contextmanager
    def hanging(self, run: Runner) -> Iterator[None]:
        """A session that is open when the gateway is killed."""
        self.prepare(run.remote)
        with run.started(*run.argv("-tt", run.host, f"cat {run.remote}/data; sleep 60")) as process:
            assert process.stdout is not None
            while b"xxxx" not in process.stdout.readline():
                pass
            yield


def make_world(folder: Path, secrets: Path, server: SshServer, asking_port: int, rules: str) -> World:
    world = World(
        Place(folder, server), AuditorKey.generate(folder / "reader.key"), AuditorKey.generate(folder / "auditor.key")
    )
    (folder / "target_key").unlink()
    (folder / "reader.pub").write_bytes(world.reader.public_pem())
    (folder / "auditor.pub").write_bytes(world.auditor.public_pem())
    for name in ("tmp", "exports"):
        (folder / name).mkdir()
    key, passphrase, password = secrets / "target_key", secrets / "passphrase", secrets / "password"
    key.write_bytes(server.login.file.read_bytes())
    passphrase.write_bytes(PASSPHRASE + b"\n")
    password.write_bytes(PASSWORD + b"\n")
    for path in (key, passphrase, password):
        path.chmod(0o600)
    keygen = [program("ssh-keygen"), "-q", "-p", "-P", "", "-N", PASSPHRASE.decode(), "-f", str(key)]
    subprocess.run(keygen, check=True, capture_output=True, timeout=60)
    by_key = {"credential": {"user": server.user, "key_file": str(key), "passphrase_file": str(passphrase)}}
    world.place.configure(
        rules,
        workers=2,
        targets={
            "watched": {**by_key, "original_to": ["auditor.pub"]},
            "locked": {**by_key, "recording": "strict", "encrypt_to": ["reader.pub"]},
            "asking": {"port": asking_port, "credential": {"user": server.user, "password_file": str(password)}},
            "asking-wrongly": {
                "port": asking_port,
                "credential": {"user": server.user, "password_file": str(passphrase)},
            },
        },
        recorder={"index": True},
        more={"masking": {"detectors": [{"name": "ring", "regex": r"KV-[a-z]+-\d{6}"}]}},
    )
    world.place.register(world.place.user_key)
    return world


# -- the search ------------------------------------------------------------------------------------------


def commands_output(
    world: World, capfdbinary: pytest.CaptureFixture[bytes], exports: bool
) -> Iterator[tuple[str, bytes]]:
    """Run every command that shows or exports sessions; yield its name and what it printed, its errors too."""
    identity = str(world.folder / "reader.key")
    sids = dict.fromkeys(path.name[:26] for path in sorted((world.folder / "state" / "tapes").rglob("*.000.gct")))
    lines: list[tuple[str, list[str]]] = [
        ("sessions reindex", ["sessions", "reindex"]),
        ("sessions list", ["sessions", "list", "--json"]),
        ("verify", ["verify", "--json", "--identity", identity]),
        ("approvals", ["approvals", "list", "--all", "--json"]),
        ("token list", ["token", "list", "--json"]),
        ("key list", ["ssh", "key", "list", "--json"]),
        ("config", ["config", "check"]),
    ]
    lines += [("sessions search", ["sessions", "search", word, "--json"]) for word in ("cat", "read", "kan*", "kv*")]
    for sid in sids:
        lines.append(("sessions show", ["sessions", "show", sid, "--json", "--identity", identity]))
        lines.append(("replay", ["replay", sid, "--plain", "--raw", "--identity", identity]))
        lines.append(("replay", ["replay", sid, "--plain", "--identity", identity]))
        for form in FORMATS if exports else ():
            out = world.folder / "exports" / f"{sid}.{form}"
            more = ["--keys", "--raw"] if "cast" in form else ["--direction", "all"] if form == "raw" else []
            lines.append((form, ["export", sid, "--format", form, "-o", str(out), "--identity", identity, *more]))
    capfdbinary.readouterr()
    for name, line in lines:
        with contextlib.suppress(SystemExit):
            assert cli.main(line) in (0, 1, 2), line
        said = capfdbinary.readouterr()
        yield name, said.out + said.err


def run_world(
    world: World, search: Search, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Use a gateway, kill it, and look everywhere; start it again, and look once more."""
    folder, keys = world.folder, [world.reader]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    more = {"TMPDIR": str(folder / "tmp"), "GATECAST_DEBUG": "1"}
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(world.place.serving("log-1", more))
        for target in ("watched", "locked"):
            world.use(gateway, target)
        world.jump(gateway)
        for target in ("asking", "asking-wrongly"):
            with way(gateway, target) as run:
                done = run.ssh("anything", "-o", "LogLevel=INFO")
                assert (done.returncode == 0) == (target == "asking"), done.stderr
                world.seen[target] = done.stdout + done.stderr
        for target in ("watched", "locked"):
            run = stack.enter_context(way(gateway, target))
            stack.enter_context(world.hanging(run))
        for pid in family(gateway.process.pid):
            search.look("environment", Path(f"/proc/{pid}/environ").read_bytes())
            search.look("environment", Path(f"/proc/{pid}/cmdline").read_bytes())
        for line in (("status",), ("sessions", "live"), ("approvals", "list")):
            search.look("admin", gateway.gatecast(*line, "--json").stdout.encode())
        for pid in reversed(family(gateway.process.pid)):
            os.kill(pid, signal.SIGKILL)
        gateway.process.wait(30)
    for name, said in world.seen.items():
        search.look(f"client: {name}", said)
    assert list((folder / "state").rglob("*.wal"))
    search_files(search, folder, keys)
    for name, said in commands_output(world, capfdbinary, exports=False):
        search.look(name, said)
    with world.place.serving("log-2", more):
        pass  # recovers
    for name, said in commands_output(world, capfdbinary, exports=True):
        search.look(name, said)
    search_files(search, folder, keys)


@pytest.fixture(scope="module")
def sshd() -> Iterator[SshServer]:
    with ssh_server() as server:
        yield server


@pytest.fixture(scope="module")
def asking(sshd: SshServer) -> Iterator[int]:
    with asking_server(sshd.host_key.file) as port:
        yield port


def test_nothing_that_is_masked_or_secret_is_anywhere(
    tmp_path: Path,
    sshd: SshServer,
    asking: int,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    (tmp_path / "gw").mkdir()
    (tmp_path / "own").mkdir()
    world = make_world(tmp_path / "gw", tmp_path / "own", sshd, asking, EVERYTHING + MASK)
    token = world.place.token.encode()
    lines = [
        line for file in (sshd.login.file, tmp_path / "own" / "target_key")
        for line in file.read_bytes().splitlines()[2:-1] if len(line) >= 40
    ]  # fmt: skip
    assert len(lines) > 5
    search = Search((PART, VALUE, HIDDEN, PASSPHRASE, PASSWORD, WRONG, token, token[-24:], *lines))
    run_world(world, search, monkeypatch, capfdbinary)
    assert search.found == set()
    for place in ("tape, inside", "wal, inside", "state", "log-1", "export", "replay", "sessions search", "admin"):
        assert search.searched.get(place, 0) > 100, (place, search.searched)

    originals = sorted((world.folder / "state" / "tapes").rglob("*.original.000.gct"))
    assert originals
    found = b""
    for path in originals:
        data, keys_file = path.read_bytes(), path.with_name(f"{path.name[:26]}.original{KEYS_SUFFIX}").read_bytes()
        assert b"".join(blocks(data, keys_file, [world.auditor])), path
        found += b"".join(record.payload for record in TapeReader(path, [world.auditor]).records())
    assert found.count(VALUE) > 10
    assert found.count(NUMBER) > 10
    for secret in (HIDDEN, PASSPHRASE, PASSWORD, WRONG, token, *lines):
        assert secret not in found


@pytest.mark.nightly  # the other one checks that each place was looked at
def test_the_search_sees_a_mask_that_is_missing(
    tmp_path: Path,
    sshd: SshServer,
    asking: int,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    (tmp_path / "gw").mkdir()
    (tmp_path / "own").mkdir()
    world = make_world(tmp_path / "gw", tmp_path / "own", sshd, asking, EVERYTHING)
    search = Search((PART, HIDDEN))
    run_world(world, search, monkeypatch, capfdbinary)
    places = {place for place, canary, _ in search.found if canary == PART}
    assert {"tape, inside", "wal, inside", "export", "replay"} <= places, places
    assert {place for place in places if place.startswith("client: ")} >= {"client: watched terminal", "client: jump"}
    assert not [place for place, canary, _ in search.found if canary == HIDDEN]
