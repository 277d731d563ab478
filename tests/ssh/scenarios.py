"""Scenarios of commands and their streams: what breaks relays, with OpenSSH's own client (ssh note, 5)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
from pathlib import Path
from shlex import quote

from tests.peers.ssh import ended
from tests.ssh.running import Runner, noise, scenario, sha256, still, until

MIB = 1 << 20
BULK_BYTES = 100 * MIB
REKEY_BYTES = 300 * MIB
# What a gateway may add to its memory for one connection: OpenSSH's window is 2 MiB, each leg has buffers, the tape
# a queue. A relay without back-pressure would hold the hundreds of megabytes that are on their way here.
GROWTH_BYTES = 96 * MIB


@scenario(main=True)
def exit_codes(run: Runner) -> None:
    for code in (0, 1, 7, 127, 254, 255):
        assert run.ssh(f"exit {code}").returncode == code


@scenario()
def exit_signal(run: Runner) -> None:
    done = run.ssh("echo before; kill -TERM $$", "-o", "LogLevel=DEBUG1")
    assert (done.returncode, done.stdout) == (255, b"before\n")
    assert b"rtype exit-signal" in done.stderr


@scenario()
def output_after_exit(run: Runner) -> None:
    done = run.ssh("(sleep 0.4; echo late; echo later >&2) & exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"late\n", b"later\n")


@scenario(main=True)
def stderr_is_separate(run: Runner) -> None:
    done = run.ssh("echo out; echo err >&2; head -c 3000000 /dev/zero; head -c 2000000 /dev/zero | tr '\\0' e >&2")
    assert done.stdout == b"out\n" + bytes(3_000_000)
    assert done.stderr == b"err\n" + b"e" * 2_000_000


@scenario()
def stderr_after_stdout_ended(run: Runner) -> None:
    done = run.ssh("echo out; exec 1>&-; sleep 0.2; echo err >&2; exit 4")
    assert (done.returncode, done.stdout, done.stderr) == (4, b"out\n", b"err\n")


@scenario(main=True)
def upload_ends_with_eof(run: Runner) -> None:
    source, there = noise(run.folder / "up", 5 * MIB + 1), run.remote / "up"
    with source.open("rb") as file:
        assert run.ssh(f"cat > {quote(str(there))}; echo after", stdin=file).stdout == b"after\n"
    assert sha256(there) == sha256(source)


@scenario()
def user_ends_first_and_reads_on(run: Runner) -> None:
    done = run.ssh("cat | wc -c; sleep 0.3; head -c 1000000 /dev/zero", input=b"x" * 70_000)
    assert done.stdout == b"70000\n" + bytes(1_000_000)


@scenario()
def target_closes_stdin(run: Runner) -> None:
    done = run.ssh("exec 0<&-; sleep 0.3; echo done; exit 9", input=b"x" * (5 * MIB))
    assert (done.returncode, done.stdout) == (9, b"done\n")


@scenario()
def target_ignores_stdin(run: Runner) -> None:
    done = run.ssh("echo gone; exit 2", input=b"x" * (20 * MIB))
    assert (done.returncode, done.stdout) == (2, b"gone\n")


@scenario()
def nothing_comes(run: Runner) -> None:
    done = run.ssh("true")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = run.ssh("cat", "-n", input=b"never sent")
    assert (done.returncode, done.stdout) == (0, b"")


@scenario()
def goes_to_the_background(run: Runner) -> None:
    seen = run.remote / "seen"
    # Its output must be nobody's pipe: the one in the background would hold it open.
    with (run.folder / "null").open("wb") as out:
        log = run.folder / "f.log"
        done = run.ssh(f"sleep 0.3; echo x > {quote(str(seen))}", "-f", "-E", log, stdout=out)
    assert done.returncode == 0
    until(lambda: seen.exists() and seen.read_text() == "x\n", "file that the command in the background writes")


@scenario(main=True)
def bulk_both_ways(run: Runner) -> None:
    _echo_file(run, BULK_BYTES)


def _echo_file(run: Runner, size_bytes: int, *options: str) -> None:
    source, back = noise(run.folder / "noise", size_bytes), run.folder / "back"
    with source.open("rb") as file, back.open("wb") as out:
        done = run.ssh("cat", *options, stdin=file, stdout=out, timeout=110)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr[-300:]
    assert back.stat().st_size == size_bytes
    assert sha256(back) == sha256(source)
    source.unlink()
    back.unlink()


@scenario()
def rekeys_in_the_middle(run: Runner) -> None:
    _echo_file(run, REKEY_BYTES, "-o", "RekeyLimit=16M")


@scenario(nightly=True, main=True)
def rekeys_in_the_middle_of_a_gigabyte(run: Runner) -> None:
    _echo_file(run, 1024 * MIB, "-o", "RekeyLimit=32M")
    _echo_file(run, 1024 * MIB, "-o", "RekeyLimit=default 5s")


@scenario()
def every_cipher(run: Runner) -> None:
    for cipher in ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "chacha20-poly1305@openssh.com"):
        done = run.ssh("cat", "-c", cipher, "-o", "RekeyLimit=1M", input=bytes(range(256)) * 12_000)
        assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(bytes(range(256)) * 12_000).digest(), cipher


@scenario(main=True)
def all_byte_values(run: Runner) -> None:
    data = bytes(range(256)) * 50 + b"\r\n\0\n\r~.\n~?" + bytes(reversed(range(256)))
    assert run.ssh("cat", input=data).stdout == data
    done = run.ssh("cat >&2", input=data)
    assert done.stderr == data, (len(done.stderr), done.stderr[-300:])


@scenario()
def many_small_writes(run: Runner) -> None:
    script = "import os\nfor i in range(20000): os.write(1 + (i % 5 == 0), b'%d\\n' % i)"
    done = run.ssh(f"python3 -c {quote(script)}")
    assert done.stdout == b"".join(b"%d\n" % i for i in range(20_000) if i % 5)
    assert done.stderr == b"".join(b"%d\n" % i for i in range(20_000) if not i % 5)


@scenario()
def small_pieces_there_and_back(run: Runner) -> None:
    """A thousand turns of one line: nothing waits for more to come."""
    with run.started(*run.argv(run.host, "cat")) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for i in range(1_000):
            process.stdin.write(b"turn %d\n" % i)
            process.stdin.flush()
            assert process.stdout.readline() == b"turn %d\n" % i
        process.stdin.close()
        assert process.wait(20) == 0


@scenario(main=True)
def commands_of_every_form(run: Runner) -> None:
    raw = b"printf '%s' '" + bytes(range(0x80, 0x100)) + b"\xff\xfe\xc3'"
    assert run.ssh(raw).stdout == bytes(range(0x80, 0x100)) + b"\xff\xfe\xc3"
    assert run.ssh("echo one\n\n  echo two # x\nif true; then\n\techo three\nfi\n").stdout == b"one\ntwo\nthree\n"
    assert run.ssh("cat <<'E'\n$HOME `x` \\\nE\necho \"a  b\" 'c;d'").stdout == b"$HOME `x` \\\na  b c;d\n"
    long = "x" * 100_000
    assert run.ssh(f"printf %s {long} | wc -c").stdout == b"100000\n"


@scenario()
def environment(run: Runner) -> None:
    """What the target's list names arrives, and nothing else: behind the gateway LANG, LC_* and GATECAST_*."""
    asked = ["-o", "SetEnv=LC_TEST=yes OTHER_TEST=no LANG=de_AT.UTF-8 LD_PRELOAD=/nowhere.so"]
    done = run.ssh('echo "$LC_TEST|$OTHER_TEST|$LANG|$(env | grep -c ^LD_PRELOAD)"', *asked)
    if run.via == "direct":
        assert done.stdout == b"yes|no|de_AT.UTF-8|1\n"
    else:
        assert (done.returncode, done.stdout) == (0, b"yes||de_AT.UTF-8|0\n")


@scenario()
def terminal_without_a_terminal(run: Runner) -> None:
    done = run.ssh("tty; stty size; echo err >&2; exit 5", "-tt")
    first, size, err = done.stdout.replace(b"\r", b"").splitlines()[:3]
    assert (done.returncode, err, first[:9]) == (5, b"err", b"/dev/pts/")
    assert len(size.split()) == 2
    assert b"err\r\n" in done.stdout


@scenario(main=True)
def a_shell_without_a_terminal(run: Runner) -> None:
    done = run.ssh(None, "-T", input=b"echo from $0\nexit 6\n")
    assert done.returncode == 6
    assert b"from " in done.stdout


@scenario()
def slow_reader(run: Runner) -> None:
    """The user stops reading: the target's program must come to rest, and the gateway must not keep what it wrote."""
    before = run.gateway.resident_bytes if run.gateway else 0
    progress = run.remote / "progress"
    script = (
        "import os,sys\nn=0\nwhile n < 400<<20:\n n += os.write(1, bytes(65536))\n"
        " os.pwrite(f, b'%12d' % n, 0) if n % (1 << 20) < 65536 else 0\n"
    )
    script = f"import os\nf=os.open({str(progress)!r}, os.O_CREAT|os.O_WRONLY)\n{script}"
    with run.started(*run.argv(run.host, f"python3 -c {quote(script)}")) as process:
        until(progress.exists, "output")
        stopped_at = still(lambda: _number(progress), seconds=1.5)
        assert stopped_at < 150 * MIB, f"the target wrote {stopped_at / MIB:.0f} MiB that nobody reads"
        if run.gateway is not None:
            grown = run.gateway.resident_bytes - before
            assert grown < GROWTH_BYTES, f"the gateway holds {grown / MIB:.0f} MiB more"
        assert process.stdout is not None
        size = 0
        while piece := process.stdout.read(MIB):
            size += len(piece)
        assert size >= 400 * MIB  # and nothing was lost
        assert process.wait(30) == 0


def _number(path: Path) -> int:
    return int(path.read_text() or 0)


@scenario()
def slow_target(run: Runner) -> None:
    """The target's program reads nothing for a while: the user is slowed, the gateway keeps no heap of it."""
    before = run.gateway.resident_bytes if run.gateway else 0
    source = noise(run.folder / "noise", 60 * MIB)
    gate = run.remote / "gate"
    command = f"while [ ! -e {quote(str(gate))} ]; do sleep 0.05; done; sha256sum"
    with source.open("rb") as file, run.started(*run.argv(run.host, command), stdin=file) as process:
        at = still(lambda: _read_so_far(process.pid), seconds=1.0)
        assert at < 60 * MIB, "the user's side took everything"
        if run.gateway is not None:
            assert run.gateway.resident_bytes - before < GROWTH_BYTES
        gate.touch()
        assert process.stdout is not None
        assert process.stdout.read().split()[0].decode() == sha256(source)
        assert process.wait(30) == 0


def _read_so_far(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("rchar:"):
                return int(line.split()[1])
    return 0


@scenario(main=True)
def client_is_killed(run: Runner) -> None:
    """The target's program ends when its user is gone, and what it had written until then is no problem."""
    pid_file = run.remote / "pid"
    command = f"echo $$ > {quote(str(pid_file))}; exec sleep 300"
    with run.started(*run.argv("-tt", run.host, command)) as process:
        pid = int(until(lambda: pid_file.exists() and pid_file.read_text(), "the command"))
        os.killpg(process.pid, signal.SIGKILL)
        until(lambda: ended(pid), "end of the command")


@scenario()
def client_is_killed_in_a_transfer(run: Runner) -> None:
    pid_file = run.remote / "pid"
    command = f"echo $$ > {quote(str(pid_file))}; exec cat /dev/zero"
    with run.started(*run.argv(run.host, command), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(3 * MIB)) == 3 * MIB
        pid = int(pid_file.read_text())
        os.killpg(process.pid, signal.SIGKILL)
        until(lambda: ended(pid), "end of the command")
