"""Scenarios of exec, attach, debug and cp: streams, exit codes, terminals."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import threading
import time

from tests.kubernetes.running import Runner, lines_of, scenario
from tests.ssh.running import noise, sha256, until


@scenario(every=True, switched=True)
def streams(run: Runner) -> None:
    """Output and errors apart, and the exit code."""
    done = run.sh("echo out; echo err >&2; exit 7")
    assert done.returncode == 7
    assert done.stdout == b"out\n"
    assert done.stderr.startswith(b"err\n")
    assert run.sh("true").returncode == 0
    done = run.sh("exit 255")
    assert done.returncode == 255
    assert b"exit code 255" in done.stderr


@scenario(every=True, switched=True)
def piped_input(run: Runner) -> None:
    """stdin goes to its end, of every byte, and what follows it comes back."""
    data = bytes(range(256)) * 4096  # 1 MiB
    done = run.sh("sha256sum; echo after", "-i", input=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split() == [hashlib.sha256(data).hexdigest(), "-", "after"]
    assert run.sh("cat", "-i", input=b"").stdout == b""
    assert run.sh("wc -c").stdout.strip() == b"0"  # nobody asked for stdin


@scenario(every=True, switched=True)
def what_does_not_start(run: Runner) -> None:
    done = run.do("exec", "web-0", "-c", "main", "--", "no-such-program")
    assert done.returncode != 0
    assert b"no-such-program" in done.stderr
    done = run.do("exec", "nobody", "--", "true")
    assert b'(NotFound): pods "nobody" not found' in done.stderr
    done = run.do("exec", "web-0", "-c", "nobody", "--", "true")
    assert done.returncode != 0
    assert b"nobody" in done.stderr


@scenario(every=True, switched=True)
def terminal(run: Runner) -> None:
    """A person at a shell: sizes, ^C, editing, and the exit code."""
    with run.terminal("exec", "-it", "web-0", "-c", "main", "--", "sh", columns=91, rows=27) as seat:
        until(lambda: seat.screen().strip(), "prompt")
        seat.line("stty size")
        seat.until_line("27 91")
        seat.size(103, 31)
        until(lambda: _sized(seat), "new size")
        seat.line("echo go; cat")
        seat.until_line("go")
        until(lambda: _through(seat), "the cat")
        seat.press("C-c")
        until(lambda: seat.screen().rstrip().endswith("#"), "prompt")  # the shell drops what is typed before it
        seat.line("echo code=$?")
        seat.until_line("code=130")
        seat.line("exit 9")
        seat.until("ENDED 9")


def _through(seat: object) -> bool:
    from tests.ssh.terminal import Terminal

    assert isinstance(seat, Terminal)
    seat.line("through the cat")
    time.sleep(0.2)  # typed again until it is there: a busybox shell that still starts cat drops what is typed
    return "through the cat\nthrough the cat\n" in seat.screen()


def _sized(seat: object) -> bool:
    from tests.ssh.terminal import Terminal

    assert isinstance(seat, Terminal)
    seat.line("clear; stty size")
    time.sleep(0.1)  # the shell's answer; asked again until it is right
    return "31 103" in seat.screen()


@scenario(every=True)
def terminal_end(run: Runner) -> None:
    """^D ends a shell."""
    with run.terminal("exec", "-it", "web-1", "-c", "main", "--", "sh") as seat:
        until(lambda: seat.screen().strip(), "prompt")
        seat.press("C-d")
        seat.until("ENDED 0")


@scenario(every=True, switched=True)
def copy(run: Runner) -> None:
    """kubectl cp both ways, a file and a folder with odd names."""
    far = run.scratch()
    assert run.sh(f"mkdir -p {far}").returncode == 0
    file = noise(run.folder / "a file", 1_000_000)
    run.ok("cp", file, f"web-0:{far}/copied", "-c", "main")
    assert run.sh(f"sha256sum < {far}/copied").stdout.split()[0].decode() == sha256(file)
    run.ok("cp", f"web-0:{far}/copied", "back", "-c", "main")
    assert sha256(run.folder / "back") == sha256(file)
    tree = run.folder / "tree" / "sub"
    tree.mkdir(parents=True)
    for name in ("plain", "with space", "ümläut"):
        (tree / name).write_text(name)
    run.ok("cp", "tree", f"web-0:{far}/tree", "-c", "main")
    run.ok("cp", f"web-0:{far}/tree", "home", "-c", "main")
    found = {path.name: path.read_text() for path in (run.folder / "home" / "sub").iterdir()}
    assert found == {name: name for name in ("plain", "with space", "ümläut")}
    run.sh(f"rm -r {far}")


@scenario(every=True, switched=True)
def attach(run: Runner) -> None:
    """What a container says, and what it is told."""
    with run.started(*run.argv("attach", "-i", "web-0", "-c", "main")) as process:
        assert process.stdin is not None
        lines_of(process.stdout, lambda line: line.startswith("line "))
        said = run.name("hello")
        process.stdin.write(said.encode() + b"\n")
        process.stdin.flush()
        assert lines_of(process.stdout, lambda line: line == f"attached: {said}\n")[-1] == f"attached: {said}\n"


@scenario()
def debug(run: Runner) -> None:
    """An ephemeral container beside the others, attached to at once."""
    pod = run.name("debugged")
    run.ok("run", pod, "--image=busybox", "--restart=Never", "--", "sleep", "300")
    try:
        options = ["--profile=general", "--image=busybox", "-c", "dbg"]
        with run.terminal("debug", "-it", pod, *options, "--", "sh") as seat:
            # The prompt may have come before kubectl attached: it says that another Enter may be needed.
            until(lambda: "enter" in seat.screen() or "# " in seat.screen(), "kubectl's hint")
            seat.press("Enter")
            seat.line("echo in-$((40+2))-out")
            seat.until_line("in-42-out")
            seat.line("exit")
            seat.until("ENDED")
        names = run.json("get", "pod", pod)["spec"]["ephemeralContainers"]
        assert [each["name"] for each in names] == ["dbg"]
    finally:
        run.ok("delete", "pod", pod, "--now", "--wait=false")


@scenario()
def run_and_delete(run: Runner) -> None:
    """kubectl run -i --rm: create, wait, attach or logs, delete."""
    pod = run.name("once")
    options = ["-i", "--rm", "--image=busybox", "--restart=Never"]
    done = run.do("run", pod, *options, "--", "sh", "-c", "read -r x; echo got $x; sleep 1", input=b"word\n")
    assert b"got word" in done.stdout, done
    assert run.do("get", "pod", pod).returncode == 1


@scenario(every=True, switched=True)
def killed(run: Runner) -> None:
    """A pod that dies in mid-exec ends the exec, and does not hang it."""
    pod = run.name("killed")
    run.ok("run", pod, "--image=busybox", "--restart=Never", "--", "sleep", "300")
    with run.started(*run.argv("exec", pod, "--", "sh", "-c", "echo begun; exec sleep 300")) as process:
        lines_of(process.stdout, lambda line: line == "begun\n")
        run.ok("delete", "pod", pod, "--now", "--wait=false")
        assert process.wait(20) != 0


@scenario(every=True, switched=True)
def interrupted(run: Runner) -> None:
    """kubectl that is interrupted leaves; other execs go on."""
    with run.started(*run.argv("exec", "web-0", "-c", "main", "--", "sh", "-c", "echo begun; sleep 300")) as process:
        lines_of(process.stdout, lambda line: line == "begun\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    assert run.sh("echo on").stdout == b"on\n"


@scenario()
def both_ways_at_once(run: Runner) -> None:
    """cat of 4 MiB, with stdin and stdout full at the same time."""
    data = b"0123456789abcdef" * (1 << 18)
    done = run.sh("cat", "-i", input=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


@scenario()
def no_reader(run: Runner) -> None:
    """A user that reads nothing for a while stops the command, not the gateway; nothing is lost."""
    script = "head -c 50000000 /dev/zero; echo end >&2"
    with run.started(*run.argv("exec", "web-0", "-c", "main", "--", "sh", "-c", script)) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(1)) == 1
        assert run.sh("echo another").stdout == b"another\n"  # while the first one is stuck
        assert process.poll() is None
        rest = 0
        while piece := process.stdout.read(1 << 20):
            rest += len(piece)
        assert rest == 50_000_000 - 1
        assert process.wait(20) == 0


@scenario()
def quiet(run: Runner) -> None:
    """An exec that says nothing for longer than kubectl's ping (5 s) lives."""
    done = run.sh("sleep 7; echo awake")
    assert done.stdout == b"awake\n"


@scenario()
def several_at_once(run: Runner) -> None:
    """Twenty execs at the same time, each with its own streams."""
    results: dict[int, subprocess.CompletedProcess[bytes]] = {}

    def one(number: int) -> None:
        results[number] = run.sh(f"cat; exit {number}", "-i", input=b"%d" % number * 1000)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(20):
        assert results[number].returncode == number, results[number].stderr
        assert results[number].stdout == b"%d" % number * 1000
