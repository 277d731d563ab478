"""Rules on SSH with OpenSSH's own clients: denied, held and masked; and what is on the tape afterwards."""

from __future__ import annotations

import getpass
import hashlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.ssh import SshServer, free_port, program
from tests.ssh.gateway import ALL_KINDS, GatewayProcess, Story, ssh_gateway, story
from tests.ssh.running import Argument, Runner, noise, sha256, until
from tests.ssh.scenarios_forwards import shared
from tests.ssh.services import connect, echo, serving, talk
from tests.ssh.terminal import terminal

pytestmark = pytest.mark.peer

PROGRAMS = "[echo, cat, ls, sleep, head, wc, 'true', exit, sha256sum]"
RULES = """\
rules:
  - {name: all, who: {groups: [dev]}, on: {targets: [box, masked, agents, scripts]},
     commands: {kinds: KINDS, opaque: true}, allow: true}
  - {name: mask-addresses, on: {targets: [masked]}, mask: [{detectors: [email], action: redact}]}
  - {name: agents, who: {groups: [dev]}, on: {targets: [agents]},
     commands: {verbs: [auth-agent], opaque: true}, allow: true}
  - {name: harmless, who: {groups: [dev]}, on: {targets: [guarded, reviewed]},
     commands: {verbs: [exec, line], objects: PROGRAMS}, allow: true}
  - {name: shells, who: {groups: [dev]}, on: {targets: [guarded, reviewed]}, commands: {verbs: [shell]}, allow: true}
  - {name: reading, who: {groups: [dev]}, on: {targets: [guarded, reviewed]},
     commands: {verbs: [subsystem, file-read, file-list, file-stat]}, allow: true}
  - {name: no-secrets, on: {targets: [guarded]}, commands: {verbs: [file-read], objects: ["*/secret*"]},
     deny: {reason: secrets stay here}}
  - {name: one-port, who: {groups: [dev]}, on: {targets: [guarded]},
     commands: {verbs: [direct-tcpip], objects: ["127.0.0.1:PORT"]}, allow: true}
  - {name: no-deleting, on: {targets: [guarded]}, commands: {verbs: [exec, line], objects: [rm]},
     deny: {reason: nothing is removed here}}
  - {name: ask, who: {groups: [dev]}, on: {targets: [reviewed]}, commands: {verbs: [exec, line], objects: [touch]},
     hold: {approvers: ["local:USER"], timeout: 1m, reason: it changes something}}
  - {name: ask-files, who: {groups: [dev]}, on: {targets: [reviewed]}, commands: {verbs: [file-write]},
     hold: {approvers: ["local:USER"], timeout: 1m}}
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(echo) as found:
        yield found


@pytest.fixture(scope="module")
def ruled(sshd: SshServer, port: int) -> Iterator[GatewayProcess]:
    rules = RULES.replace("KINDS", ALL_KINDS).replace("PROGRAMS", PROGRAMS)
    rules = rules.replace("PORT", str(port)).replace("USER", getpass.getuser())
    targets: dict[str, dict[str, Any]] = {
        "guarded": {}, "reviewed": {}, "masked": {}, "agents": {}, "scripts": {"ssh": {"exec_only": True}},
    }  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="gatecast-") as folder,
        ssh_gateway(Path(folder) / "gw", sshd, rules, targets=targets) as gateway,
    ):
        yield gateway


@pytest.fixture
def way(request: pytest.FixtureRequest, sshd: SshServer, ruled: GatewayProcess) -> Iterator[Runner]:
    """The way to the target that the test's parameter names."""
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:
        near, far = Path(folder) / "near", Path(folder) / "far"
        near.mkdir(mode=0o700)
        far.mkdir()
        runner = Runner("gateway", sshd, ruled, near, far, target=request.param)
        try:
            yield runner
        finally:
            runner.close()


def to(target: str) -> pytest.MarkDecorator:
    """Name the target of a test's way."""
    return pytest.mark.parametrize("way", [target], indirect=True)


def told(gateway: GatewayProcess) -> Story:
    """The story of the session that began last, once it has ended."""
    return story(gateway.sealed(gateway.tapes()[-1]))


def waiting(gateway: GatewayProcess) -> dict[str, Any]:
    """The one approval that is pending."""
    (row,) = until(lambda: gateway.json("approvals", "list"), "approval")
    assert isinstance(row, dict)
    return row


# -- denied -------------------------------------------------------------------------------------------


@to("guarded")
def test_a_denied_command_says_why_and_exits_126(way: Runner, ruled: GatewayProcess) -> None:
    victim = way.remote / "victim"
    victim.touch()
    done = way.ssh(f"rm {victim}")
    assert (done.returncode, done.stdout) == (126, b"")
    assert b'gatecast: denied by rule "no-deleting": nothing is removed here' in done.stderr
    assert victim.exists()
    found = told(ruled)
    assert [command["text"] for command in found.of("exec")] == [f"rm {victim}"]
    assert [verdict["rule"] for verdict in found.verdicts if verdict["verdict"] == "deny"] == ["no-deleting"]


@to("guarded")
def test_every_program_of_a_line_must_be_allowed(way: Runner) -> None:
    victim = way.remote / "victim"
    victim.touch()
    for line in (f"echo x; rm {victim}", f"ls | xargs rm {victim}", f"echo $(rm {victim})", f"eval rm {victim}",
                 f"cat <(rm {victim})", f"ls & rm {victim}", f"ls\nrm {victim}", f"/bin/rm {victim}", f"r''m {victim}",
                 f"sh -c 'rm {victim}'", f"env rm {victim}"):  # fmt: skip
        done = way.ssh(line)
        assert (done.returncode, victim.exists()) == (126, True), line
        assert b"gatecast: denied by rule" in done.stderr, line
    assert way.ssh("echo x; ls / | head -1").returncode == 0


@to("guarded")
def test_a_shared_connection_outlives_a_denial(way: Runner) -> None:
    with shared(way) as path:
        for i in range(3):
            denied = way.ssh("rm nothing", "-S", path)
            assert (denied.returncode, b"no-deleting" in denied.stderr) == (126, True)
            assert way.ssh(f"echo {i}; exit {i}", "-S", path).stdout == b"%d\n" % i
        denied = way.ssh("rm nothing", "-S", path, "-tt")
        assert denied.returncode == 126
        assert b"no-deleting" in denied.stdout + denied.stderr


@to("guarded")
def test_input_of_a_denied_command_goes_nowhere(way: Runner) -> None:
    done = way.ssh("rm nothing", input=os.urandom(8 << 20))
    assert done.returncode == 126


@to("guarded")
def test_a_denied_file_operation_leaves_the_session_alive(way: Runner) -> None:
    (way.remote / "open").write_bytes(b"open" * 1000)
    (way.remote / "secret.txt").write_bytes(b"secret")
    done = way.sftp(
        f"cd {way.remote}", "-get secret.txt", "-put open new", "-rm open", "-mkdir folder", "-rename open moved",
        "-ln -s open linked", "get open", "ls -l",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (way.folder / "open").read_bytes() == b"open" * 1000
    assert not (way.folder / "secret.txt").exists()
    assert sorted(path.name for path in way.remote.iterdir()) == ["open", "secret.txt"]
    assert done.stderr.lower().count(b"permission denied") >= 5
    assert b"secret.txt" in done.stdout


@to("guarded")
def test_a_secret_is_not_read_through_a_link_or_dots(way: Runner) -> None:
    (way.remote / "secret.txt").write_bytes(b"secret")
    (way.remote / "sub").mkdir()
    (way.remote / "alias").symlink_to("secret.txt")
    (way.remote / "here").symlink_to(".")
    for path in ("secret.txt", "sub/../secret.txt", "alias", "here/alias", "./here/../here/secret.txt"):
        done = way.sftp(f"get {way.remote}/{path} got")
        assert (done.returncode, (way.folder / "got").exists()) == (1, False), path
    for options in ([], ["-O"]):
        done = way.scp(*options, f"box:{way.remote}/secret.txt", "got")
        assert (done.returncode != 0, (way.folder / "got").exists()) == (True, False), options


@to("guarded")
def test_forwards_go_where_a_rule_says(way: Runner, port: int) -> None:
    with serving(echo) as other:
        near, closed = free_port(), free_port()
        options = ["-L", f"{near}:127.0.0.1:{port}", "-L", f"{closed}:127.0.0.1:{other}"]
        with shared(way, *options) as path:
            assert talk(near, b"hello") == b"hello|5"
            with connect(closed) as connection:
                assert connection.recv(10) == b""
            assert talk(near, b"again") == b"again|5"
            denied = way.ssh(None, "-S", path, "-O", "forward", "-R", f"0:127.0.0.1:{port}")
            assert denied.returncode != 0
            assert way.ssh("echo alive", "-S", path).stdout == b"alive\n"
        done = way.ssh(None, "-W", f"127.0.0.1:{other}", "-o", "LogLevel=INFO")
        assert done.returncode == 255
        assert b"administratively prohibited" in done.stderr


@to("scripts")
def test_exec_only_has_no_shells(way: Runner) -> None:
    assert way.ssh("echo exact").stdout == b"exact\n"
    done = way.ssh(None, "-T", input=b"echo from a shell\n")
    assert (done.returncode != 0, b"from a shell" in done.stdout) == (True, False)
    done = way.ssh(None, "-tt", input=b"echo from''a shell\n")
    assert (done.returncode != 0, b"froma shell" in done.stdout) == (True, False)


@to("agents")
def test_an_agent_is_forwarded_by_a_rule_that_names_it(way: Runner) -> None:
    with way.started(program("ssh-agent", "openssh-client"), "-D", "-a", way.folder / "agent"):
        until((way.folder / "agent").exists, "agent")
        where = {"SSH_AUTH_SOCK": str(way.folder / "agent")}
        assert way.run(program("ssh-add"), "-q", str(way.key.file), env=where).returncode == 0
        words = way.argv("-A", "-o", "IdentityAgent=SSH_AUTH_SOCK", way.host, "ssh-add -l")
        done = way.run(*words, env=where)
    assert b"ED25519" in done.stdout, done.stderr


@to("guarded")
def test_a_typed_line_is_denied_and_the_prompt_lives_on(way: Runner) -> None:
    victim = way.remote / "victim"
    victim.touch()
    with terminal(way, "box") as seat:
        until(lambda: seat.screen().strip(), "prompt")
        seat.line("echo fi''rst")
        seat.until_line("first")
        seat.line(f"rm {victim}")
        seat.until("no-deleting")
        seat.line("echo sec''ond")
        seat.until_line("second")
        assert victim.exists()
        seat.line("exit 3")
        seat.until("ENDED 3")


# -- held ---------------------------------------------------------------------------------------------


@to("reviewed")
def test_a_held_command_waits_for_a_yes(way: Runner, ruled: GatewayProcess) -> None:
    made = way.remote / "made"
    with way.started(*way.argv(way.host, f"touch {made}")) as process:
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        row = waiting(ruled)
        assert 'gatecast: held by rule "ask"' in said
        assert row["id"] in said
        assert not made.exists()
        assert ruled.json("approvals", "approve", row["id"])["state"] == "approved"
        assert process.wait(30) == 0
    assert made.exists()
    found = told(ruled)
    assert [entry["state"] for entry in found.approvals] == ["pending", "approved"]


@to("reviewed")
def test_a_held_command_is_refused(way: Runner, ruled: GatewayProcess) -> None:
    made = way.remote / "made"
    with way.started(*way.argv(way.host, f"touch {made}")) as process:
        row = waiting(ruled)
        assert ruled.gatecast("approvals", "deny", row["id"], "--reason", "not today").returncode == 0
        _, err = process.communicate(timeout=30)
    assert (process.returncode, made.exists()) == (126, False)
    assert b"not today" in err


@to("reviewed")
def test_others_go_on_while_one_is_held(way: Runner, ruled: GatewayProcess) -> None:
    made = way.remote / "made"
    with shared(way) as path, way.started(*way.argv("-S", path, way.host, f"touch {made}; cat")) as process:
        assert process.stdin is not None
        process.stdin.write(b"sent while it was held\n")
        process.stdin.close()
        process.stdin = None
        row = waiting(ruled)
        for i in range(3):
            assert way.ssh(f"echo {i}", "-S", path).stdout == b"%d\n" % i
        assert ruled.json("approvals", "approve", row["id"])["state"] == "approved"
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, b"sent while it was held\n")


@to("reviewed")
@pytest.mark.parametrize("pty", [True, False])
def test_ctrl_c_takes_a_held_command_back(way: Runner, ruled: GatewayProcess, pty: bool) -> None:
    made = way.remote / "made"
    if pty:
        with terminal(way, "-t", "box", f"touch {made}") as seat:
            row = waiting(ruled)
            seat.until("held by rule")
            seat.press("C-c")
            seat.until("ENDED")
    else:
        with way.started(*way.argv(way.host, f"touch {made}")) as process:
            row = waiting(ruled)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(30) == 255
    until(lambda: ruled.json("approvals", "show", row["id"])["state"] == "withdrawn", "withdrawal")
    assert not made.exists()


@to("reviewed")
def test_a_held_upload_waits_and_the_session_goes_on(way: Runner, ruled: GatewayProcess) -> None:
    noise(way.folder / "noise", 1_000_000)
    words: list[Argument] = [program("sftp"), "-F", way.config, "-b", "-", way.host]
    with way.started(*words) as process:
        assert process.stdin is not None
        process.stdin.write(f"put noise {way.remote}/up\n-put noise {way.remote}/no\nls {way.remote}\n".encode())
        process.stdin.close()
        process.stdin = None
        first = waiting(ruled)
        assert not (way.remote / "up").exists()
        assert ruled.json("approvals", "approve", first["id"])["state"] == "approved"
        second = until(
            lambda: [row for row in ruled.json("approvals", "list") if row["id"] != first["id"]], "second approval"
        )[0]
        assert ruled.gatecast("approvals", "deny", second["id"]).returncode == 0
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert sha256(way.remote / "up") == sha256(way.folder / "noise")
    assert not (way.remote / "no").exists()
    assert b"permission denied" in err.lower()
    assert f"{way.remote}/up".encode() in out


@to("reviewed")
def test_a_held_line_waits_on_the_screen(way: Runner, ruled: GatewayProcess) -> None:
    made = way.remote / "made"
    with terminal(way, "box") as seat:
        until(lambda: seat.screen().strip(), "prompt")
        seat.line(f"touch {made}")
        seat.until("held by rule")
        row = waiting(ruled)
        assert not made.exists()
        assert ruled.json("approvals", "approve", row["id"])["state"] == "approved"
        until(made.exists, "what the approved line makes")
        seat.line("echo go''on")
        seat.until_line("goon")
        seat.line("exit")
        seat.until("ENDED 0")


# -- masked, and on the tape --------------------------------------------------------------------------


@to("masked")
def test_masked_output_is_exact_around_the_values(way: Runner, ruled: GatewayProcess) -> None:
    lines = [f"{i}\tuser{i}@example.com\t\x00\xff{'x' * (i % 50)}".encode("latin-1") for i in range(3_000)]
    (way.remote / "data").write_bytes(b"\n".join(lines))
    done = way.ssh(f"cat {way.remote}/data; exit 9")
    assert done.returncode == 9
    assert b"@example.com" not in done.stdout
    got = done.stdout.split(b"\n")
    assert len(got) == 3_000
    for line, seen in zip(lines, got, strict=True):
        number, _, rest = line.split(b"\t", 2)
        assert seen.split(b"\t")[0] == number
        assert seen.split(b"\t", 2)[2] == rest
    assert way.ssh(f"cat {way.remote}/data >&2").stderr == done.stdout
    assert b"example.com" not in b"".join(told(ruled).flows.values())


@to("masked")
def test_binary_output_without_values_passes_masks_unchanged(way: Runner) -> None:
    data = os.urandom(3_000_000).replace(b"@", b"A")  # chance makes addresses of noise
    (way.remote / "data").write_bytes(data)
    got = way.ssh(f"cat {way.remote}/data").stdout
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()


@to("masked")
def test_a_terminal_does_not_wait_for_masks(way: Runner) -> None:
    """A prompt without a line break comes though a mask could still want to see what follows."""
    with terminal(way, "-t", "box", "PS1='ana@exam p> ' exec bash --norc --noprofile -i") as seat:
        seat.until("p>")
        seat.line("echo ana@''example.com is w''ho")
        assert "ana@example.com" not in seat.until("is who")


@to("box")
def test_the_tape_holds_the_exact_bytes(way: Runner, ruled: GatewayProcess) -> None:
    data, errors = os.urandom(1_500_000), os.urandom(200_000)
    (way.remote / "errors").write_bytes(errors)
    with shared(way) as path:
        done = way.ssh(f"cat; cat {way.remote}/errors >&2; exit 4", "-S", path, input=data)
        assert (done.returncode, done.stdout, done.stderr) == (4, data, errors)
        assert way.ssh("echo second", "-S", path).stdout == b"second\n"
    found = told(ruled)
    first, second = found.of("exec")
    assert (first["flow"], second["text"]) != (second["flow"], first["text"])
    for stream, expected in (("user", data), ("out", data), ("err", errors)):
        assert found.sha256(first["flow"], stream) == hashlib.sha256(expected).hexdigest(), stream
    assert found.flows[second["flow"], "out"] == b"second\n"
    (result,) = [each for each in found.results if each.get("flow") == first["flow"]]
    assert (result["tag"], result["exit"], result["sent"]) == ("exit 4", 4, len(data))
    assert result["bytes"] == len(data) + len(errors)


@to("box")
def test_the_tape_holds_transfers_by_their_sums(way: Runner, ruled: GatewayProcess) -> None:
    source = noise(way.folder / "noise", 2_000_000)
    for options in ([], ["-O"]):
        assert way.scp(*options, "noise", f"box:{way.remote}/up").returncode == 0
        found = told(ruled)
        (result,) = [each for each in found.results if each.get("direction") == "upload"]
        assert (result["path"], result["sha256"]) == (f"{way.remote}/up", sha256(source))
        assert sum(len(data) for data in found.flows.values()) < 100_000, "the content is on the tape"
        assert f"{way.remote}/up" in found.of("file-write")[0]["objects"]
        assert way.scp(*options, f"box:{way.remote}/up", "back").returncode == 0
        (result,) = [each for each in told(ruled).results if each.get("direction") == "download"]
        assert (result["size"], result["sha256"]) == (2_000_000, sha256(source))


@to("box")
def test_forwards_rsync_and_git_are_on_the_tape(way: Runner, ruled: GatewayProcess, port: int) -> None:
    assert way.ssh(None, "-W", f"127.0.0.1:{port}", input=b"hello").stdout == b"hello|5"
    found = told(ruled)
    (command,) = found.of("direct-tcpip")
    assert list(command["objects"]) == [f"127.0.0.1:{port}"]
    assert found.flows[command["flow"], "out"] == b"hello|5"
    (way.folder / "tree").mkdir()
    (way.folder / "tree" / "file").write_text("x")
    done = way.run(program("rsync"), "-a", "-e", way.shell, "tree/", f"box:{way.remote}/tree/")
    assert done.returncode == 0, done.stderr
    assert [command["kind"] for command in told(ruled).of("exec")] == ["transfer"]


@to("box")
def test_a_session_replays_exports_and_lists(way: Runner, ruled: GatewayProcess) -> None:
    with terminal(way, "-t", "box", "PS1='p> ' exec bash --norc --noprofile -i") as seat:
        seat.until("p>")
        seat.line("echo on''tape")
        seat.until_line("ontape")
        seat.line("exit 5")
        seat.until("ENDED 5")
    found = told(ruled)
    assert "echo on''tape" in [command["text"] for command in found.of("line")]
    listed = ruled.json("sessions", "list")
    sid = max(row["sid"] for row in listed)
    assert "ontape" in ruled.gatecast("replay", sid, "--speed", "64").stdout
    assert ruled.gatecast("export", sid, "--format", "txt").returncode == 0


@to("box")
def test_intent_is_taped_and_not_passed_on(way: Runner, ruled: GatewayProcess) -> None:
    done = way.ssh('echo "[$GATECAST_INTENT]"', "-o", "SetEnv=GATECAST_INTENT=look-after-the-logs")
    assert done.stdout == b"[]\n"
    path = ruled.tapes()[-1]
    ruled.sealed(path)
    sid = path.name.partition(".")[0]
    shown = ruled.gatecast("replay", sid, "--speed", "64").stdout + ruled.gatecast("sessions", "show", sid).stdout
    assert "look-after-the-logs" in shown
