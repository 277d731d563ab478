"""Several worker processes, with the toy protocol: spread, limits, administration, deaths, reloads, the end."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy import logging
from proxy.admin.client import AdminClient
from proxy.admin.wire import AdminError
from proxy.core.errors import ConfigError
from proxy.identity.commands import token_revoke
from proxy.services import open_services
from proxy.workers.crew import CODE
from proxy.workers.supervisor import Supervisor
from recorder.cli import list_sessions, show
from tests.test_app import CONFIG, PATIENCE, RULES, folder, talk, token_of, toy_protocol, until, verified

__all__ = ["folder", "toy_protocol"]

ROOT = Path(__file__).parents[1]
PREPARED = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); import protocols; from tests import toy;"
    "known = {**protocols.load(), 'toy': toy.PROTOCOL}; protocols.load = lambda: known;"
)
COMMAND = (sys.executable, "-c", PREPARED + CODE)
BROKEN = (sys.executable, "-c", "raise SystemExit(3)")
ME = f"local:{getpass.getuser()}"
HOLD = """\
  - name: touch
    commands: {verbs: [TOUCH]}
    hold: {approvers: ["ME"], timeout: 1m}
""".replace("ME", ME)

Body = Callable[[Supervisor], Coroutine[Any, Any, None]]


def run(folder: Path, body: Body, workers: int = 2, config: str = CONFIG, command: Any = COMMAND) -> None:
    """Run a supervisor with real worker processes, the body beside it, and stop."""
    (folder / "gatecast.yaml").write_text(config + f"workers: {workers}\n")
    with open_services(folder / "gatecast.yaml") as made, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def main() -> None:
            supervisor = Supervisor(made, command)
            started = asyncio.Event()
            async with asyncio.timeout(PATIENCE * 3), asyncio.TaskGroup() as group:
                group.create_task(supervisor.run(lambda _: started.set()))
                await started.wait()
                try:
                    await body(supervisor)
                finally:
                    supervisor.stop()

        runner.run(main())


async def asked(folder: Path, method: str, **params: Any) -> Any:
    return await asyncio.to_thread(lambda: AdminClient(folder / "state" / "admin.sock").call(method, **params))


@pytest.fixture(autouse=True)
def logs() -> StringIO:
    """What the supervisor logs; workers log to the real stderr, the same way."""
    stream = StringIO()
    logging.configure("info", stream, as_json=True)
    return stream


def killed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "worker-died"]


def logged(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_connections_are_spread_evenly(folder: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        token, _ = token_of(folder)
        async with contextlib.AsyncExitStack() as stack:
            users = [await stack.enter_async_context(talk(supervisor, token)) for _ in range(32)]
            assert [await user.say("look") for user in users] == ["ok look"] * 32
            rows = await asked(folder, "sessions.live")
            assert Counter(row["worker"] for row in rows) == {1: 16, 2: 16}
            assert {row["id"] for row in rows} == {user.session for user in users}
        await until(lambda: supervisor.crew.connections == 0)

    run(folder, body, config=CONFIG.replace("max_connections: 3", "max_connections: 40"))
    rows = list_sessions(folder / "state" / "tapes")
    assert [row["status"] for row in rows] == ["closed"] * 32
    assert len({show(Path(row["path"]))["header"]["boot"] for row in rows}) == 2  # a tape tells whose it is
    assert verified(folder) == "verified"


def test_the_limit_of_connections_is_the_gateways(folder: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        token, _ = token_of(folder)
        async with talk(supervisor, token) as one, talk(supervisor, token), talk(supervisor, token):
            async with talk(supervisor) as fourth:
                assert await fourth.hear() == "refused: sorry, too many clients already"
            assert await one.say("look") == "ok look"
        await until(lambda: supervisor.crew.connections == 0)
        async with talk(supervisor, token) as again:
            assert await again.say("look") == "ok look"
        status = await asked(folder, "status")
        assert (status["accepted"], status["refused"], status["connections_limit"]) == (5, 1, 3)

    run(folder, body)


def test_a_held_command_of_any_worker_is_approved_at_the_one_socket(folder: Path) -> None:
    (folder / "rules.yaml").write_text(RULES + HOLD)

    async def body(supervisor: Supervisor) -> None:
        token, _ = token_of(folder)
        async with talk(supervisor, token) as one, talk(supervisor, token) as two:
            workers = {row["id"]: row["worker"] for row in await asked(folder, "sessions.live")}
            assert sorted(workers.values()) == [1, 2]
            for user, method, answer in ((one, "approve", "ok touch it"), (two, "deny", "denied touch")):
                user.writer.write(b"touch it\n")
                while not (rows := await asked(folder, "approvals.list", state="pending")):
                    await asyncio.sleep(0.005)
                assert rows[0]["session"] == user.session
                assert (await asked(folder, "status"))["approvals_waiting"] == 1
                decided = await asked(folder, f"approvals.{method}", id=rows[0]["id"])
                assert decided["decided_by"] == ME
                assert await user.hear() == answer
                with pytest.raises(AdminError, match="already"):
                    await asked(folder, "approvals.approve", id=rows[0]["id"])
            with pytest.raises(AdminError, match="no such approval"):
                await asked(folder, "approvals.approve", id="ap_none")

    run(folder, body)
    assert verified(folder) == "verified"


def test_the_operator_ends_a_session_of_any_worker(folder: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        token, _ = token_of(folder)
        async with talk(supervisor, token) as one, talk(supervisor, token) as two:
            for user in (two, one):
                await asked(folder, "sessions.kill", id=user.session)
                assert await user.hear() == "goodbye"
            with pytest.raises(AdminError, match="no session"):
                await asked(folder, "sessions.kill", id="01NONE")

    run(folder, body)


def test_a_worker_that_is_killed_is_replaced_and_others_go_on(
    folder: Path, logs: StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "rules.yaml").write_text(RULES + HOLD)

    async def body(supervisor: Supervisor) -> None:
        token, _ = token_of(folder)
        async with talk(supervisor, token) as one, talk(supervisor, token) as two:
            rows = {row["id"]: row["worker"] for row in await asked(folder, "sessions.live")}
            one.writer.write(b"touch it\n")
            while not (pending := await asked(folder, "approvals.list", state="pending")):
                await asyncio.sleep(0.005)
            victim = supervisor.crew.members[rows[one.session]]
            victim.process.kill()
            assert await one.hear() == ""
            assert await two.say("look") == "ok look"
            await until(lambda: victim.number not in supervisor.crew.members)
            shown = await asked(folder, "approvals.show", id=pending[0]["id"])
            assert (shown["state"], shown["decided_why"]) == ("withdrawn", "the process that waited for it ended")
            assert supervisor.crew.connections == 1  # what it had is not counted any more
            await until(lambda: len(supervisor.crew.ready()) == 2)
            async with talk(supervisor, token) as three:
                assert await three.say("look") == "ok look"
                rows = {row["id"]: row["worker"] for row in await asked(folder, "sessions.live")}
                assert rows[three.session] == victim.number
            workers = (await asked(folder, "status"))["workers"]
            assert {row["worker"]: row["restarts"] for row in workers} == {victim.number: 1, 3 - victim.number: 0}

    run(folder, body)
    (died,) = killed(logged(logs.getvalue() + capfd.readouterr().err))
    assert (died["level"], died["status"], died["sessions"]) == ("error", "SIGKILL", 1)


def test_a_worker_that_is_told_to_end_ends_its_sessions_first(folder: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        token, _ = token_of(folder)
        async with talk(supervisor, token) as one:
            (row,) = await asked(folder, "sessions.live")
            member = supervisor.crew.members[row["worker"]]
            member.process.terminate()
            assert await one.hear() == "goodbye"
            await until(lambda: supervisor.crew.members.get(row["worker"]) not in (None, member))

    run(folder, body)
    assert verified(folder) == "verified"


def test_all_take_new_rules_and_a_bad_file_changes_none(
    folder: Path, logs: StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    async def body(supervisor: Supervisor) -> None:
        token, _ = token_of(folder)
        async with talk(supervisor, token) as one, talk(supervisor, token) as two:
            (folder / "rules.yaml").write_text(RULES.replace("[LOOK]", "[TOUCH]"))
            result = await asked(folder, "config.reload")
            for user in (one, two):
                assert [await user.say("touch it"), await user.say("look")] == ["ok touch it", "denied default-deny"]
            status = await asked(folder, "status")
            assert [row["rules"] for row in status["workers"]] == [result["rules"]] * 2
            (folder / "rules.yaml").write_text(RULES.replace("verbs", "verbes"))
            with pytest.raises(AdminError, match=r"rules\.yaml:3: "):
                await asked(folder, "config.reload")
            assert not await supervisor.reload_or_keep("the test")
            for user in (one, two):
                assert await user.say("touch it") == "ok touch it"
            (folder / "rules.yaml").write_text(RULES)
            supervisor.hangup.set()  # SIGHUP
            await until(lambda: supervisor.services.live.snapshot.rules.revision != result["rules"])
            generation = supervisor._generation
            await until(lambda: all(member.generation == generation for member in supervisor.crew.ready()))
            for user in (one, two):
                assert await user.say("look") == "ok look"

    run(folder, body)
    found = logged(logs.getvalue() + capfd.readouterr().err)
    assert {event["worker"] for event in found if event["event"] == "worker-reloaded"} == {1, 2}
    assert {event.get("worker") for event in found if event["event"] == "reload-failed"} == {None}  # none was asked
    assert {event.get("worker") for event in found if event["event"] == "reloaded"} == {None, 1, 2}


def test_a_worker_that_starts_late_has_the_rules_of_now(folder: Path) -> None:
    """A reload while a worker reads its files: it reads them once more before it gets a connection."""

    async def body(supervisor: Supervisor) -> None:
        victim = supervisor.crew.members[1]
        victim.process.kill()
        await until(lambda: supervisor.crew.members.get(1) not in (None, victim))
        assert not supervisor.crew.members[1].ready
        supervisor._generation += 1  # as reload() does, when the new worker is not yet there to be asked
        supervisor.crew.members[2].generation += 1
        await until(lambda: len(supervisor.crew.ready()) == 2)
        assert supervisor.crew.members[1].generation == supervisor._generation

    run(folder, body)


def test_a_revoked_token_ends_sessions_of_all_workers(folder: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        token, number = token_of(folder)
        async with talk(supervisor, token) as one, talk(supervisor, token) as two:
            assert [await one.say("look"), await two.say("look")] == ["ok look"] * 2
            token_revoke(folder / "state" / "gatecast.db", number)
            assert [await one.hear(), await two.hear()] == ["goodbye"] * 2

    run(folder, body)


def test_guessing_is_slowed_down_whichever_worker_hears_it(folder: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        answers = []
        for _ in range(30):
            async with talk(supervisor) as user:
                answers.append(await user.say("gct_wrong shelf"))
            await until(lambda: supervisor.crew.connections == 0)
        assert answers[0] == "refused: the login was refused"
        assert answers[-1] == "refused: too many failed logins from this address"
        # One worker by itself would have let 20 pass.
        assert answers.count("refused: the login was refused") <= 22

    run(folder, body)


def test_drain_waits_for_sessions_and_then_ends_them_all(folder: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        token, _ = token_of(folder)
        host, port = supervisor.addresses()["toy"][0].rsplit(":", 1)
        async with talk(supervisor, token) as one, talk(supervisor, token) as two:
            supervisor.stop()
            await until(lambda: supervisor.addresses()["toy"] == [])
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(host, int(port))
            assert [await one.say("look"), await two.say("look")] == ["ok look"] * 2
            supervisor.stop()  # a second signal: no longer
            assert [await one.hear(), await two.hear()] == ["goodbye"] * 2

    run(folder, body, config=CONFIG.replace("drain_seconds: 0", "drain_seconds: 60"))
    assert verified(folder) == "verified"


def test_workers_that_cannot_start_end_the_start(folder: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        pytest.fail("it started")

    with pytest.raises(BaseExceptionGroup) as caught:
        run(folder, body, command=BROKEN)
    assert caught.group_contains(ConfigError, match="a worker process did not start")


def test_the_end_of_the_supervisor_is_the_end_of_its_workers(folder: Path) -> None:
    """kill -9 of the real thing: workers end their sessions, seal the tapes, and only then the directory is free."""
    (folder / "gatecast.yaml").write_text(CONFIG + "workers: 2\n")
    script = (
        f"{PREPARED} from pathlib import Path; from proxy import app, logging; logging.configure();"
        f"from proxy.workers import crew; crew.CODE = {PREPARED + CODE!r};"
        f"app.run(Path({str(folder / 'gatecast.yaml')!r}), lambda g: print(g.addresses()['toy'][0], flush=True))"
    )

    async def body() -> None:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
        assert child.stdout is not None
        async with asyncio.timeout(PATIENCE * 2):
            host, port = (await child.stdout.readline()).decode().strip().rsplit(":", 1)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"{token_of(folder)[0]} shelf\n".encode())
            assert (await reader.readline()).startswith(b"session ")
            stuck = next(row["pid"] for row in (await asked(folder, "status"))["workers"] if row["connections"] == 0)
            os.kill(stuck, signal.SIGSTOP)
            child.kill()
            assert await reader.readline() == b"goodbye\n"
            writer.close()
            await until(lambda: child.returncode is not None)  # wait() would wait for who inherited its stdout, too
            with pytest.raises(ConfigError, match="another gatecast"), open_services(folder / "gatecast.yaml"):
                pytest.fail("opened beside a worker that lives")
            os.kill(stuck, signal.SIGCONT)
            while True:
                try:
                    with open_services(folder / "gatecast.yaml"):
                        break
                except ConfigError as error:
                    assert "another gatecast" in str(error)
                    await asyncio.sleep(0.02)
            await child.wait()

    asyncio.run(body())
    assert verified(folder) == "verified"


def test_signals_of_a_process_with_workers(folder: Path) -> None:
    """The real thing, ended by SIGTERM."""
    (folder / "gatecast.yaml").write_text(CONFIG + "workers: 2\n")
    script = (
        f"{PREPARED} from pathlib import Path; from proxy import app, logging; logging.configure();"
        f"from proxy.workers import crew; crew.CODE = {PREPARED + CODE!r};"
        f"app.run(Path({str(folder / 'gatecast.yaml')!r}), lambda g: print(g.addresses()['toy'][0], flush=True))"
    )

    async def body() -> None:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
        assert child.stdout is not None
        async with asyncio.timeout(PATIENCE * 2):
            host, port = (await child.stdout.readline()).decode().strip().rsplit(":", 1)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"{token_of(folder)[0]} shelf\n".encode())
            assert (await reader.readline()).startswith(b"session ")
            child.terminate()
            assert await reader.readline() == b"goodbye\n"
            writer.close()
            assert await child.wait() == 0

    asyncio.run(body())
    assert verified(folder) == "verified"
