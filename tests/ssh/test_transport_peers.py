"""The transport with real clients and a real sshd at its ends: nothing is lost, reordered or unbounded."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import paramiko
import pytest

from tests.peers.ssh import (
    KeyPair,
    SshServer,
    askpass,
    certify,
    client_environment,
    make_key,
    program,
    resident_bytes,
    ssh_server,
    write_config,
)
from tests.ssh.legs import Answers, RunningRelay, relaying

pytestmark = pytest.mark.peer

MEGABYTES = 24  # enough for 24 new keys at RekeyLimit 1M
SECONDS = 60.0
DEPRECATED = pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes256-ctr",
)
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512", "hmac-sha1")


@pytest.fixture(scope="module")
def server() -> Iterator[SshServer]:
    with ssh_server() as running:
        yield running


@dataclass
class Bench:
    """A client's folder and its way through the relay."""

    folder: Path
    server: SshServer
    key: KeyPair
    host_key: KeyPair
    answers: Answers = field(default_factory=Answers)

    def arguments(self, relay: RunningRelay, *options: str, key: bool = True) -> list[str]:
        known = self.folder / "known_hosts"
        known.write_text(f"[127.0.0.1]:{relay.port} {self.host_key.line}\n")
        host: dict[str, object] = {
            "HostName": "127.0.0.1",
            "Port": relay.port,
            "User": "somebody",
            "UserKnownHostsFile": known,
        }
        if key:
            host["IdentityFile"] = self.key.file
        config = write_config(self.folder / "config", {"box": host})
        return [program("ssh", "openssh-client"), "-F", str(config), *options, "box"]

    def ssh(
        self, relay: RunningRelay, command: str, *options: str, data: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        stdin = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(
            [*self.arguments(relay, *options), command],
            env=client_environment(self.folder),
            capture_output=True,
            timeout=SECONDS,
            **stdin,  # type: ignore[call-overload]  # one of two
        )
        assert not check or done.returncode == 0, (done.stderr, relay.errors)
        return done


@pytest.fixture
def bench(server: SshServer, tmp_path: Path) -> Bench:
    key = make_key(tmp_path, "user_key")
    bench = Bench(tmp_path, server, key, make_key(tmp_path, "relay_key"))
    bench.answers.blobs = (asyncssh.read_public_key(str(key.public)).public_data,)
    return bench


def fingerprint(key: KeyPair) -> str:
    return subprocess.check_output([program("ssh-keygen"), "-lf", str(key.public)], text=True).split()[1]


def pattern(megabytes: int) -> bytes:
    """Bytes of which no two blocks are alike, so that a swap of messages shows."""
    return b"".join(hashlib.sha256(b"%d" % number).digest() * 32 for number in range(megabytes * 1024))


def both_ways(bench: Bench, relay: RunningRelay, *options: str, megabytes: int = MEGABYTES) -> None:
    """Send data and get it back, at the same time."""
    data = pattern(megabytes)
    done = bench.ssh(relay, "cat", *options, data=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_exec_and_what_the_legs_know(bench: Bench) -> None:
    bench.answers.banner = "Welcome, it is recorded here.\n"
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        done = bench.ssh(relay, "echo out; echo err >&2; exit 7", "-o", "LogLevel=INFO", check=False)
        relay.wait(lambda its: its.ended == 1)
    assert (done.returncode, done.stdout) == (7, b"out\n")
    assert b"err\n" in done.stderr and b"Welcome, it is recorded here." in done.stderr
    assert bench.answers.proofs == [("somebody", "publickey", bench.answers.blobs[0])]
    user, target = relay.infos
    assert user["username"] == "somebody" and user["client_version"].startswith("SSH-2.0-OpenSSH")
    assert user["server_version"] == "SSH-2.0-gatecast"
    assert user["send_cipher"] == user["recv_cipher"] == "aes128-gcm@openssh.com", "the hold-back of KEXINIT failed"
    assert target["send_cipher"] == "aes128-gcm@openssh.com" and target["kex"] == "curve25519-sha256"
    assert user["host_key"] in subprocess.check_output(["ssh-keygen", "-lf", str(bench.host_key.public)]).decode()
    assert (
        target["host_key"] in subprocess.check_output(["ssh-keygen", "-lf", str(bench.server.host_key.public)]).decode()
    )
    assert len(user["session_id"]) == len(target["session_id"]) == 64 and user["session_id"] != target["session_id"]
    assert relay.errors == []


@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_cipher(bench: Bench, cipher: str) -> None:
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        both_ways(bench, relay, "-c", cipher, megabytes=4)
    assert relay.infos[0]["recv_cipher"] == cipher


@pytest.mark.parametrize("mac", MACS)
def test_every_mac(bench: Bench, mac: str) -> None:
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        both_ways(bench, relay, "-c", "aes128-ctr", "-m", mac, megabytes=2)


@pytest.mark.parametrize(
    "kex",
    [
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "ecdh-sha2-nistp256",
        "ecdh-sha2-nistp521",
        # cryptography announces the end of these; then they fall out of algorithms.KEX by themselves.
        pytest.param("diffie-hellman-group14-sha256", marks=DEPRECATED),
        pytest.param("diffie-hellman-group16-sha512", marks=DEPRECATED),
    ],
)
def test_every_key_exchange(bench: Bench, kex: str) -> None:
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        assert bench.ssh(relay, "echo ok", "-o", f"KexAlgorithms={kex}").stdout == b"ok\n"
    assert relay.infos[0]["kex"] == kex


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr"])
def test_the_user_rekeys_in_the_middle(bench: Bench, cipher: str) -> None:
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        both_ways(bench, relay, "-c", cipher, "-o", "RekeyLimit=1M", megabytes=12)
    assert relay.errors == []


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"])
def test_the_gate_rekeys_in_the_middle(bench: Bench, cipher: str) -> None:
    with relaying(bench.server, bench.host_key, bench.answers, rekey_bytes=1 << 20) as relay:
        both_ways(bench, relay, "-c", cipher, "-v", megabytes=12)
    assert relay.errors == []


def test_new_keys_are_made(bench: Bench) -> None:
    """The two before would pass if nobody rekeyed at all."""
    with relaying(bench.server, bench.host_key, bench.answers, rekey_bytes=1 << 20) as relay:
        done = bench.ssh(relay, "cat > /dev/null", "-v", "-o", "LogLevel=DEBUG1", data=pattern(8))
    # One at the start; then what is on its way while keys are exchanged, up to a window of 2 MiB, is of the old key.
    assert done.stderr.count(b"SSH2_MSG_NEWKEYS received") >= 4


def test_both_rekey_and_the_target_too(bench: Bench, tmp_path: Path) -> None:
    with (
        ssh_server({"RekeyLimit": "1M"}) as server,
        relaying(server, bench.host_key, bench.answers, rekey_bytes=3 << 19) as relay,
    ):
        both_ways(bench, relay, "-o", "RekeyLimit=1M")
    assert relay.errors == []


def test_compression_asked_for(bench: Bench) -> None:
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        both_ways(bench, relay, "-C", megabytes=1)


def test_many_channels_of_one_connection(bench: Bench) -> None:
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        control = bench.folder / "control"
        arguments = bench.arguments(relay, "-o", f"ControlPath={control}")
        environment = client_environment(bench.folder)
        master = subprocess.Popen([*arguments[:-1], "-M", "-N", "box"], env=environment, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + SECONDS
        while not control.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        running = [
            subprocess.Popen([*arguments, f"head -c 1000000 /dev/zero; echo {number}"], env=environment, stdout=-1)
            for number in range(8)
        ]
        for number, each in enumerate(running):
            out, _ = each.communicate(timeout=SECONDS)
            assert out == bytes(1000000) + b"%d\n" % number
        # Not by a signal: OpenSSH 9.2 may miss one that comes just before its poll().
        subprocess.run([*arguments[:-1], "-O", "exit", "box"], env=environment, check=True, capture_output=True)
        master.wait(SECONDS)
        relay.wait(lambda its: its.ended == 1)
    assert len(relay.infos) == 2


# -- logging in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["password", "keyboard-interactive"])
def test_a_token(bench: Bench, method: str) -> None:
    options = ("-o", f"PreferredAuthentications={method}", "-o", "BatchMode=no")
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        arguments = bench.arguments(relay, *options, key=False)
        environment = client_environment(bench.folder) | askpass(bench.folder, "open sesame")
        done = subprocess.run([*arguments, "echo in"], env=environment, capture_output=True, timeout=SECONDS)
    assert done.stdout == b"in\n", done.stderr
    assert bench.answers.proofs == [("somebody", method, None)]
    assert ("password", "somebody", "open sesame") in bench.answers.asked


def test_wrong_tokens(bench: Bench) -> None:
    options = ("-o", "PreferredAuthentications=password", "-o", "BatchMode=no", "-o", "NumberOfPasswordPrompts=20")
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        environment = client_environment(bench.folder) | askpass(bench.folder, "wrong")
        arguments = bench.arguments(relay, *options, key=False)
        done = subprocess.run([*arguments, "echo in"], env=environment, capture_output=True, timeout=SECONDS)
        relay.wait(lambda its: its.ended == 1)
    assert done.returncode == 255 and b"in" not in done.stdout
    assert len([each for each in bench.answers.asked if each[0] == "password"]) == 6
    assert bench.answers.proofs == []
    assert relay.errors == ["LoginRefused: 6 wrong attempts to log in"]


def test_an_agent_with_many_keys(bench: Bench) -> None:
    """Asking about a key is no failure: sshd counts it as one, and users with many keys cannot get in there."""
    keys = [make_key(bench.folder, f"other{number}") for number in range(15)]
    options = [part for key in keys for part in ("-i", str(key.file))]
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        arguments = bench.arguments(relay, *options, "-i", str(bench.key.file), key=False)
        environment = client_environment(bench.folder)
        done = subprocess.run([*arguments, "echo in"], env=environment, capture_output=True, timeout=SECONDS)
    assert done.stdout == b"in\n", done.stderr
    assert len([each for each in bench.answers.asked if each[0] == "key"]) == 17  # and once more with the signature


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_kinds_of_user_keys_and_certificates(bench: Bench, kind: str) -> None:
    key = make_key(bench.folder, f"my_{kind}", kind)
    certificate = certify(make_key(bench.folder, f"ca_{kind}"), key, ["somebody"])
    blobs = [
        asyncssh.read_public_key(str(key.public)).public_data,
        asyncssh.read_certificate(str(certificate)).public_data,
    ]
    for blob in blobs:
        bench.answers.blobs = (blob,)
        bench.answers.proofs.clear()
        with relaying(bench.server, bench.host_key, bench.answers) as relay:
            arguments = bench.arguments(relay, "-i", str(key.file), key=False)
            environment = client_environment(bench.folder)
            done = subprocess.run([*arguments, "echo in"], env=environment, capture_output=True, timeout=SECONDS)
            assert done.stdout == b"in\n", (done.stderr, relay.errors)
        assert bench.answers.proofs == [("somebody", "publickey", blob)]


def test_refused_after_the_proof(bench: Bench) -> None:
    bench.answers.refuse = "your access has ended"
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        done = bench.ssh(relay, "echo in", check=False)
        relay.wait(lambda its: its.ended == 1)
    assert done.returncode == 255 and b"your access has ended" in done.stderr and done.stdout == b""
    assert relay.errors == ["LoginRefused: your access has ended"]


def test_a_scan_of_host_keys(bench: Bench) -> None:
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        command = [program("ssh-keyscan", "openssh-client"), "-p", str(relay.port), "-T", "10", "127.0.0.1"]
        done = subprocess.run(command, capture_output=True, timeout=SECONDS)
        relay.wait(lambda its: its.ended >= 1)
    assert bench.host_key.line.encode() in done.stdout, done.stderr
    assert bench.answers.asked == []


# -- other clients ----------------------------------------------------------------------------------------


def test_dropbear(bench: Bench) -> None:
    converted = bench.folder / "dropbear_key"
    subprocess.run(
        [program("dropbearconvert", "dropbear-bin"), "openssh", "dropbear", str(_pem(bench)), str(converted)],
        check=True,
        capture_output=True,
    )
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        command = [program("dbclient", "dropbear-bin"), "-y", "-y", "-i", str(converted), "-p", str(relay.port)]
        environment = client_environment(bench.folder)
        data = pattern(4)
        done = subprocess.run(
            [*command, "somebody@127.0.0.1", "cat"], env=environment, input=data, capture_output=True, timeout=SECONDS
        )
    assert done.stdout == data, done.stderr[-500:]
    assert relay.infos[0]["recv_cipher"] in ("chacha20-poly1305@openssh.com", "aes128-ctr", "aes256-ctr")


def _pem(bench: Bench) -> Path:
    return bench.key.file


def test_paramiko(bench: Bench) -> None:
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        client.connect("127.0.0.1", relay.port, "somebody", key_filename=str(bench.key.file), allow_agent=False)
        try:
            stdin, stdout, _ = client.exec_command("cat")
            data = pattern(2)
            sender = threading.Thread(target=lambda: (stdin.write(data), stdin.channel.shutdown_write()))
            sender.start()
            assert stdout.read() == data
            sender.join()
        finally:
            client.close()
        relay.wait(lambda its: its.ended == 1)
    assert relay.errors in ([], ["UserPeerError: the user's connection failed"])  # it does not say goodbye


# -- slow and broken ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"])
def test_a_user_who_does_not_read(bench: Bench, cipher: str) -> None:
    """The client itself stops, so that no window of SSH bounds what is sent to it by the kernel."""
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        arguments = bench.arguments(relay, "-c", cipher, "-o", "ProxyUseFdpass=no")
        client = subprocess.Popen(
            [*arguments, "cat /dev/zero"], env=client_environment(bench.folder), stdout=subprocess.PIPE, stderr=-3
        )
        assert client.stdout is not None
        assert client.stdout.read(1 << 20)
        client.send_signal(signal.SIGSTOP)
        before = resident_bytes(os.getpid())
        time.sleep(1.0)
        assert resident_bytes(os.getpid()) - before < 8 << 20
        client.send_signal(signal.SIGCONT)
        assert client.stdout.read(32 << 20) == bytes(32 << 20)
        assert resident_bytes(os.getpid()) - before < 96 << 20  # what this test has read is part of it
        client.kill()
        client.wait()
        client.stdout.close()
        relay.wait(lambda its: its.ended == 1)


def test_a_user_who_vanishes_while_nobody_reads_it(bench: Bench) -> None:
    """gone() notices although the user's side is paused: the target takes nothing any more."""
    with relaying(bench.server, bench.host_key, bench.answers) as relay:
        arguments = bench.arguments(relay)
        client = subprocess.Popen(
            # Told when to stop sshd: by itself it might do so before sshd has passed "up" on.
            [*arguments, "echo up; read -r go; kill -STOP $PPID; sleep 60"],
            env=client_environment(bench.folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client.stdout is not None and client.stdin is not None
        assert client.stdout.readline() == b"up\n"
        client.stdin.write(b"go\n")
        client.stdin.flush()
        client.kill()
        client.wait()
        for stream in (client.stdin, client.stdout):
            stream.close()
        relay.wait(lambda its: its.ended == 1)


@pytest.mark.parametrize("at", [10, 700, 1500, 2500, 3500, 5000, 20_000, 300_000, 2_000_000])
def test_a_connection_that_is_cut(bench: Bench, at: int) -> None:
    """Cut after so many bytes towards the target, from version exchange to bulk data; it ends, and says why."""
    with relaying(bench.server, bench.host_key, bench.answers) as relay, _cutter(relay.port, at) as port:
        through = RunningRelay(port, bench.answers)
        done = bench.ssh(through, "cat", data=pattern(4), check=False)
        relay.wait(lambda its: its.ended == 1)
    assert done.returncode == 255
    assert all(error.startswith(("EOFError", "UserPeerError")) for error in relay.errors), relay.errors


def _cutter(port: int, at: int) -> Any:
    """Forward one connection to a port, and reset it after so many bytes."""
    import contextlib

    @contextlib.contextmanager
    def run() -> Iterator[int]:
        listening = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            user, _ = listening.accept()
            with user, socket.create_connection(("127.0.0.1", port)) as gate:

                def back() -> None:
                    with contextlib.suppress(OSError):
                        while data := gate.recv(65536):
                            user.sendall(data)

                backward = threading.Thread(target=back, daemon=True)
                backward.start()
                left = at
                with contextlib.suppress(OSError):
                    while left and (data := user.recv(min(left, 65536))):
                        gate.sendall(data)
                        left -= len(data)
                for each in (user, gate):
                    with contextlib.suppress(OSError):
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        each.shutdown(socket.SHUT_RDWR)
                backward.join(5)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join(10)
            listening.close()

    return run()
