"""Real SSH for tests: the system's OpenSSH server on a free port of 127.0.0.1, keys, certificates, client files.

The server runs as whoever runs the tests and lets that user in by one key; no account is made. As root it wants
/run/sshd to exist, which is made where it is missing. Everything that it needs lies in one folder under the system's
temporary directory; what is logged in finds its HOME there, so that nobody's own files are read or written. The
listener ends by its own pid, after the processes of its connections.

Left out: PAM, password logins (they need an account), X11.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.peers.postgres import PeerMissing, need

START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 10.0
PRIVILEGE_FOLDER: Final = Path("/run/sshd")  # compiled into Debian's sshd
SFTP_SERVERS: Final = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server")
# What stays of the machine's environment for a client: nothing of an agent, of git's or of ours.
KEPT: Final = ("PATH", "LANG", "TMPDIR", "TZ")


def program(name: str, package: str = "") -> str:
    """Return the path of a program; without it the test fails in CI and is skipped elsewhere."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        need(PeerMissing(f"{name} is missing: apt-get install {package or name}"))
        raise AssertionError  # need() does not return
    return found


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key in a file, and its public half beside it."""

    file: Path

    @property
    def public(self) -> Path:
        """The public key's file."""
        return self.file.with_name(self.file.name + ".pub")

    @property
    def line(self) -> str:
        """The public key without a comment: what known_hosts and authorized_keys hold."""
        return " ".join(self.public.read_text().split()[:2])

    @property
    def certificate(self) -> Path:
        """Where ssh-keygen puts a certificate of this key."""
        return self.file.with_name(self.file.name + "-cert.pub")


def make_key(folder: Path, name: str, kind: str = "ed25519", bits: int | None = None) -> KeyPair:
    """Make a key with ssh-keygen, without a passphrase."""
    file = folder / name
    size = ("-b", str(bits)) if bits else ()
    command = [program("ssh-keygen", "openssh-client"), "-q", "-t", kind, *size, "-N", "", "-C", name, "-f", str(file)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    return KeyPair(file)


def certify(
    authority: KeyPair,
    key: KeyPair,
    names: Sequence[str],
    *,
    host: bool = False,
    key_id: str = "test",
    valid: str = "-5m:+1h",
    options: Sequence[str] = (),
) -> Path:
    """Sign a key with ssh-keygen -s. names: the principals of a user, the names of a host. Returns the certificate."""
    wanted = [part for option in options for part in ("-O", option)]
    command = [
        program("ssh-keygen", "openssh-client"), "-q", "-s", str(authority.file), "-I", key_id,
        *(["-h"] if host else []), "-n", ",".join(names), "-V", valid, "-z", "7", *wanted, str(key.public),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    return key.certificate


@dataclass(slots=True)
class SshServer:
    """A running sshd. login: the key that it lets in; home: the HOME of whoever logged in."""

    port: int
    folder: Path
    home: Path
    user: str
    host_key: KeyPair
    host_authority: KeyPair
    user_authority: KeyPair
    login: KeyPair
    process: subprocess.Popen[bytes]
    host: str = "127.0.0.1"

    @property
    def log(self) -> str:
        """What sshd has logged so far."""
        return (self.folder / "log").read_text(errors="replace")

    def known_hosts(self, *names: str) -> str:
        """A line of known_hosts that pins this server's key."""
        return f"{','.join(names) or f'[{self.host}]:{self.port}'} {self.host_key.line}\n"

    def connections(self) -> list[int]:
        """The pids of the processes that serve its connections."""
        return children(self.process.pid)


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """Return the pids of everything below a process, the nearest first."""
    found = children(pid)
    return found + [each for child in found for each in descendants(child)]


def ended(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def resident_bytes(pid: int) -> int:
    """Return how much memory a process holds now (VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")


@contextlib.contextmanager
def ssh_server(settings: Mapping[str, str] | None = None, *, internal_sftp: bool = False) -> Iterator[SshServer]:
    """Run an sshd of its own. settings: lines of sshd_config that replace ours. Fails or skips where it is missing."""
    sshd = program("sshd", "openssh-server")
    if os.geteuid() == 0 and not PRIVILEGE_FOLDER.exists():
        PRIVILEGE_FOLDER.mkdir(mode=0o755)
    folder = Path(tempfile.mkdtemp(prefix="gatecast-sshd-"))
    try:
        home = folder / "home"
        home.mkdir(mode=0o700)
        host_key, login = make_key(folder, "host_key"), make_key(folder, "login_key")
        host_authority, user_authority = make_key(folder, "host_ca"), make_key(folder, "user_ca")
        certify(host_authority, host_key, ["box", "localhost", "127.0.0.1"], host=True)
        (folder / "authorized_keys").write_text(login.line + "\n")
        values = _settings(folder, home, internal_sftp) | dict(settings or {})
        (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in values.items()))
        process, port = _start(sshd, folder)
        try:
            yield SshServer(
                port, folder, home, getpass.getuser(), host_key, host_authority, user_authority, login, process
            )
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settings(folder: Path, home: Path, internal_sftp: bool) -> dict[str, str]:
    sftp = "internal-sftp" if internal_sftp else next(name for name in SFTP_SERVERS if Path(name).exists())
    return {
        "ListenAddress": "127.0.0.1",
        "HostKey": str(folder / "host_key"),
        "HostCertificate": str(folder / "host_key-cert.pub"),
        "AuthorizedKeysFile": str(folder / "authorized_keys"),
        "TrustedUserCAKeys": str(folder / "user_ca.pub"),
        "PidFile": "none",
        "UsePAM": "no",
        "UseDNS": "no",
        "StrictModes": "no",  # the folder is below /tmp
        "PermitRootLogin": "yes",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitUserEnvironment": "no",
        "AcceptEnv": "*",
        "SetEnv": f"HOME={home} HISTFILE=/dev/null",
        "PrintMotd": "no",
        "PrintLastLog": "no",
        "AllowAgentForwarding": "yes",
        "AllowTcpForwarding": "yes",
        "AllowStreamLocalForwarding": "yes",
        "StreamLocalBindUnlink": "yes",
        "GatewayPorts": "no",
        "X11Forwarding": "no",
        "PermitTunnel": "no",
        "Compression": "yes",
        "MaxSessions": "1000",
        "MaxStartups": "1000",
        "LoginGraceTime": "60",
        "LogLevel": "VERBOSE",
        "Subsystem": f"sftp {sftp}",
    }


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(sshd: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    for _ in range(5):  # another process may take the free port first
        port = free_port()
        command = [sshd, "-D", "-e", "-f", str(folder / "sshd_config"), "-p", str(port)]
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if "Server listening" in (folder / "log").read_text(errors="replace"):
                return process, port
            time.sleep(0.02)
        process.kill()
        process.wait()
    raise RuntimeError(f"sshd did not start: {(folder / 'log').read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    left = descendants(process.pid)
    process.terminate()
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def write_config(path: Path, hosts: Mapping[str, Mapping[str, object]]) -> Path:
    """Write a file for ``ssh -F``: what every host has in common first, which keeps a person's own files out."""
    common: dict[str, object] = {
        "BatchMode": "yes",
        "LogLevel": "ERROR",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ConnectTimeout": "30",
        "CanonicalizeHostname": "no",
    }
    lines: list[str] = []
    for name, options in [*hosts.items(), ("*", common)]:  # the first value counts
        lines.append(f"Host {name}")
        lines += [f"  {option} {value}" for option, value in options.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def client_environment(folder: Path) -> dict[str, str]:
    """Return the environment for a client whose HOME is the folder."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "HOME": str(folder), "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}


def askpass(folder: Path, secret: str) -> dict[str, str]:
    """Return what makes OpenSSH read a password from us: a program that prints it, and no terminal asked."""
    words = folder / "askpass-secret"
    words.write_text(secret + "\n")
    words.chmod(0o600)
    script = folder / "askpass"
    script.write_text(f"#!/bin/sh\nexec cat '{words}'\n")
    script.chmod(0o700)
    return {"SSH_ASKPASS": str(script), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ""}
