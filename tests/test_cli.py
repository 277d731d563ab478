"""The command line: every command, its help, its errors, its exit codes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import cli
from proxy.example import EXAMPLE_CONFIG, EXAMPLE_RULES, write_example

ROOT = Path(__file__).parents[1]
HELP_LIMIT_SECONDS = 0.15


def commands_of(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield (*path, name)
                yield from commands_of(below, (*path, name))


COMMANDS = sorted(commands_of(cli.parser()))
LEAVES = [path for path in COMMANDS if not any(other[:-1] == path for other in COMMANDS)]


def gatecast(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GATECAST_")}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which serve has made its example."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATECAST_CONFIG", raising=False)
    with (tmp_path / "said.txt").open("w") as said:
        write_example(Path(".gatecast"), said)
    return tmp_path


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*path, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "Example:\n  gatecast" in text
    example = text.split("Example:\n  gatecast ", 1)[1].split("\n")[0]
    assert example.split()[: len(path)] == list(path) or len(path) == 1


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_leads_somewhere(path: tuple[str, ...]) -> None:
    """The function behind a command exists; arguments that are needed are filled with anything."""
    parser: argparse.ArgumentParser = cli.parser()
    for name in path:
        parser = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[name]
    module, _, function = parser.get_default("function").rpartition(":")
    if module == "proxy.demo" and not (ROOT / "proxy" / "demo.py").exists() and not (ROOT / "proxy" / "demo").exists():
        pytest.skip("proxy/demo.py is not written yet")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_help_is_quick() -> None:
    """The best of three: the machine may be busy, the imports are what is measured."""
    best = HELP_LIMIT_SECONDS * 10
    for _ in range(3):
        started = time.perf_counter()
        assert gatecast("--help").returncode == 0
        best = min(best, time.perf_counter() - started)
    assert best < HELP_LIMIT_SECONDS


@pytest.mark.parametrize(
    "command", [["replay", "x"], ["verify", "x", "--key", "y"], ["export", "x", "--format", "txt"]]
)
def test_tapes_are_read_without_a_database_driver(command: list[str]) -> None:
    script = (
        "import sys; from proxy import cli; cli.main(sys.argv[1:]);"
        "print([name for name in ('psycopg', 'uvloop', 'pgparse', 'cel_expr_python', 're2') if name in sys.modules])"
    )
    tape = ROOT / "pyproject.toml"  # a file that is no tape: it is opened, and refused
    arguments = [str(tape) if word == "x" else word for word in command]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["serv"], "invalid choice"),
        (["approvals"], "required: COMMAND"),
        (["token", "issue"], "required: subject"),
        (["export", "x", "--format", "doc"], "invalid choice"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gatecast: ")
    assert said in line
    assert "--help" in line


def test_arguments_too_many_point_to_the_help_of_their_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["keys", "show", "a.gct", "b.gct", "--jsno"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "gatecast: unrecognized arguments: b.gct --jsno; see gatecast keys show --help\n"


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("gatecast: ")
    assert "Traceback" not in err
    return err


def test_errors_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("proxy.commands.CONFIG_NAMES", (Path("gatecast.yaml"),))
    monkeypatch.delenv("GATECAST_CONFIG", raising=False)
    assert "name one with -c FILE" in failed(capsys, "config", "check")
    assert "cannot be read: No such file" in failed(capsys, "config", "check", "-c", "none.yaml")
    (tmp_path / "gatecast.yaml").write_text("listners: []\n")
    err = failed(capsys, "config", "check")
    assert "gatecast.yaml:1: listners: unknown key; did you mean listeners?" in err
    assert "is gatecast serve running?" in failed(capsys, "approvals", "list")
    assert "'soon' is no time: 90, 90s" in failed(capsys, "replay", "x", "--idle-limit", "soon")


def test_a_stack_only_for_those_who_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATECAST_DEBUG", "1")
    with pytest.raises(Exception, match="cannot be read"):
        cli.main(["config", "check", "-c", "none.yaml"])


def test_an_internal_error_quotes_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(options: argparse.Namespace) -> int:
        raise RuntimeError("CANARY")

    monkeypatch.setattr("proxy.commands.version", broken)
    assert cli.main(["version"]) == 1
    assert capsys.readouterr().err == (
        "gatecast: internal error: RuntimeError; run it again with GATECAST_DEBUG=1 to see where\n"
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"]


def test_the_example_is_good(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert [target["name"] for target in found["targets"]] == ["local"]
    assert found["rules"]["count"] == 5
    assert "GATECAST_LOCAL_PASSWORD is not set" in found["warnings"][0]
    modes = {path.name: path.stat().st_mode & 0o777 for path in (example / ".gatecast").iterdir()}
    assert (modes["tls.key"], modes["gatecast.db"]) == (0o600, 0o600)
    assert (example / ".gatecast").stat().st_mode & 0o777 == 0o700
    token = next(word for word in (example / "said.txt").read_text().split() if word.startswith("gct_"))
    assert all(token.encode() not in path.read_bytes() for path in (example / ".gatecast").iterdir())


def test_the_deployed_example_is_the_same_text() -> None:
    assert (ROOT / "deploy" / "gatecast.example.yaml").read_text() == EXAMPLE_CONFIG
    assert (ROOT / "deploy" / "rules.example.yaml").read_text() == EXAMPLE_RULES


def test_config_example_is_one_file(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "example"]) == 0
    text = capsys.readouterr().out
    (example / ".gatecast" / "inline.yaml").write_text(text)
    assert cli.main(["config", "check", "--json", "-c", ".gatecast/inline.yaml"]) == 0
    inline = json.loads(capsys.readouterr().out)
    assert cli.main(["config", "check", "--json"]) == 0
    assert inline["rules"] == json.loads(capsys.readouterr().out)["rules"]  # equal rules have equal revisions


def test_config_check_tells_json_too(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = example / ".gatecast" / "rules.yaml"
    rules.write_text(rules.read_text().replace("kinds: [read]", "kinds: [reed]"))
    assert cli.main(["config", "check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert "rules.yaml:9: " in found["problems"][0]


def test_config_check_looks_at_certificates(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example / ".gatecast" / "tls.key").write_text("no key")
    err = failed(capsys, "config", "check")
    assert "gatecast.yaml:11: listeners[0].tls: " in err
    assert "holds no private key" in err


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "gatecast.yaml"


def test_tokens_come_and_go(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "issue", "ana@example.com", "--group", "dba", "--for", "12h", "--json"]) == 0
    issued = json.loads(capsys.readouterr().out)
    assert issued["token"].startswith("gct_")
    assert issued["groups"] == ["dba"]
    assert cli.main(["token", "revoke", issued["id"]]) == 0
    assert "is revoked" in capsys.readouterr().out
    assert cli.main(["token", "list", "--subject", "ana@example.com", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["state"] == "revoked"
    assert "token" not in row
    assert "at most 90 days" in failed(capsys, "token", "issue", "x", "--for", "91d")
    assert "no such token" in failed(capsys, "token", "revoke", "nothing")


@pytest.mark.parametrize(
    ("statement", "verdict", "rule"),
    [
        ("SELECT * FROM orders", "allow", "developers-read"),
        ("DELETE FROM orders", "deny", "no-delete-without-where"),
        ("DELETE FROM orders WHERE id = 1", "hold", "deletes-need-approval"),
        ("INSERT INTO orders VALUES (1)", "hold", "writes-need-approval"),
        ("DO $$ begin end $$", "deny", "default-deny"),
        ("not sql at all", "deny", "default-deny"),
        ("SELECT 1; DROP TABLE orders", "hold", "deletes-need-approval"),
        ("GRANT ALL ON orders TO public", "deny", "default-deny"),
    ],
)
def test_policy_explain(
    example: Path, capsys: pytest.CaptureFixture[str], statement: str, verdict: str, rule: str
) -> None:
    arguments = ["policy", "explain", "local", statement, "--subject", "you@example.com", "--group", "developers"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["rule"]) == (verdict, rule)
    assert cli.main(arguments) == 0
    assert f"verdict: {verdict} by {rule}" in capsys.readouterr().out


def test_policy_explain_says_what_is_wrong(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no target nowhere; configured: local" in failed(
        capsys, "policy", "explain", "nowhere", "SELECT 1", "--subject", "x"
    )
    assert "write a time like" in failed(
        capsys, "policy", "explain", "local", "SELECT 1", "--subject", "x", "--at", "noon"
    )


def test_policy_test(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = example / "cases.yaml"
    cases.write_text(
        "cases:\n"
        "  - name: read\n"
        "    identity: {subject: a, groups: [developers]}\n"
        "    target: local\n"
        "    sql: SELECT * FROM t\n"
        "    expect: allow\n"
        "    masks: [no-personal-data]\n"
    )
    assert cli.main(["policy", "test", "cases.yaml"]) == 0
    assert "1 cases, all as expected" in capsys.readouterr().out
    cases.write_text(cases.read_text().replace("expect: allow", "expect: deny"))
    assert cli.main(["policy", "test", "cases.yaml", "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["cases"]
    assert row["problems"] == ["expected deny, got allow"]


def test_sessions_where_there_are_none(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sessions", "list"]) == 0
    assert "No session" in capsys.readouterr().out
    assert cli.main(["sessions", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert "no session 01NONE; gatecast sessions list" in failed(capsys, "sessions", "show", "01NONE")
    assert "no session 01NONE" in failed(capsys, "replay", "01NONE")


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m proxy config schema | head -1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_serve_starts_on_an_example(tmp_path: Path) -> None:
    """No file, no arguments: it starts, says how to connect, and stops when told to."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("GATECAST_CONFIG", None)
    (tmp_path / ".gatecast").mkdir(mode=0o700)
    config = tmp_path / ".gatecast" / "gatecast.yaml"
    with (tmp_path / "said.txt").open("w") as said:
        write_example(tmp_path / ".gatecast", said)
    config.write_text(config.read_text().replace("localhost:6432", "127.0.0.1:0"))  # the port may be taken here
    child = subprocess.Popen(
        [sys.executable, "-m", "proxy", "serve", "--log-json"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    try:
        events = []
        for line in child.stderr:
            events.append(json.loads(line))
            if events[-1]["event"] == "started":
                break
        assert [event["event"] for event in events if event["level"] == "info"] == ["listening", "started"]
        assert events[-2]["fingerprint"].startswith("SHA256:")
        status = gatecast("status", "--json", cwd=tmp_path)
        assert json.loads(status.stdout)["targets"] == ["local"], status.stderr
        reload = gatecast("reload", cwd=tmp_path)
        assert reload.stdout.startswith("Reloaded: rules "), reload.stderr
        second = gatecast("serve", cwd=tmp_path)
        assert (second.returncode, "another gatecast" in second.stderr) == (1, True)
    finally:
        child.terminate()
        rest = child.communicate(timeout=30)[1]
    assert child.returncode == 0, rest
