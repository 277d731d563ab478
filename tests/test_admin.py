"""The admin socket: who may use it, what it answers, and approvals decided over it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from proxy.admin import commands, server
from proxy.admin.client import AdminClient
from proxy.admin.handlers import Admin
from proxy.admin.server import AdminServer
from proxy.admin.wire import REQUEST_LIMIT, AdminError, Caller
from proxy.approvals import Approvals, Request
from proxy.core.errors import ConfigError
from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.text import harmless, iso, span, table
from proxy.core.verdict import Hold
from proxy.identity.service import Service
from proxy.identity.tokens import Tokens
from proxy.store.database import Database
from tests.identity.stores import Clock, opened

ME = f"local:{__import__('pwd').getpwuid(os.geteuid()).pw_name}"
USER = ME.removeprefix("local:")


class FakeSessions:
    def __init__(self) -> None:
        self.open = {"01SESSION": "alice"}
        self.killed: list[tuple[str, str]] = []

    def live(self) -> list[dict[str, Any]]:
        return [{"id": key, "identity": who, "started": 0.0, "held": None} for key, who in self.open.items()]

    def kill(self, session: str, by: str) -> bool:
        self.killed.append((session, by))
        return self.open.pop(session, None) is not None


class House:
    """A running admin socket with real approvals and identities behind it."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.clock = Clock()
        self.tokens = Tokens(database, clock=self.clock)
        self.service = Service(database, self.tokens, clock=self.clock)
        self.approvals = Approvals(database, clock=self.clock)
        self.sessions = FakeSessions()
        self.groups: dict[str, frozenset[str]] = {}
        self.reloads = 0
        self.admin = Admin(
            self.approvals, self.service, self.sessions, self.reload, lambda: {"node": "n1"}, lambda: self.groups
        )
        self.server = AdminServer(directory / "admin.sock", self.admin.methods())
        self.client = AdminClient(directory / "admin.sock", timeout_seconds=10)

    async def reload(self) -> Mapping[str, Any]:
        self.reloads += 1
        if self.reloads > 1:
            raise ConfigError("gatecast.yaml:3: unknown key 'tagrets'")
        return {"rules": 3, "targets": 1}

    async def hold(self, *approvers: str, session: str = "s1", text: str = "DROP TABLE t") -> Request:
        command = Command("postgres", "DROP TABLE", "define", text, b"wire", ("public.t",))
        alice = Identity("alice@example.com", frozenset({"dba"}), ("claude",))
        return await self.approvals.open(
            session, alice, Target("orders", "postgres"), command, Hold("ddl", approvers, 600.0, "why")
        )


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[House]:
    with opened(directory / "g.db") as database:
        house = House(directory, database)
        await house.service.refresh()
        await house.server.start()
        try:
            async with asyncio.timeout(30):
                yield house
        finally:
            await house.server.close()


def run(directory: Path, story: Callable[[House], Awaitable[None]]) -> None:
    async def main() -> None:
        async with running(directory) as house:
            await story(house)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def refused(function: Callable[..., Any], *args: Any, **kwargs: Any) -> AdminError:
    with pytest.raises(AdminError) as caught:
        await asyncio.to_thread(function, *args, **kwargs)
    return caught.value


def test_approve_and_deny_as_the_local_operator(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        one, two = await house.hold(ME), await house.hold(ME, session="s2")
        approved = await asyncio.to_thread(commands.approvals_approve, house.client, one.id, reason="fine")
        assert (approved["state"], approved["decided_by"], approved["decided_why"]) == ("approved", ME, "fine")
        assert (await one.wait()).by == ME
        await asyncio.to_thread(commands.approvals_deny, house.client, two.id)
        assert (await two.wait()).outcome == "denied"
        again = await refused(commands.approvals_approve, house.client, one.id)
        assert (again.code, f"approved by {ME} already" in str(again)) == ("ended", True)

    run(tmp_path, story)


def test_the_local_operator_has_the_configured_groups_and_no_others(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        request = await house.hold("group:dba", USER)
        assert (await refused(commands.approvals_approve, house.client, request.id)).code == "not-approver"
        house.groups[USER] = frozenset({"dba"})
        record = await asyncio.to_thread(commands.approvals_approve, house.client, request.id)
        assert record["decided_as"] == "group:dba"

    run(tmp_path, story)


def test_a_token_proves_the_approver(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        request = await house.hold("group:dba", ME)

        def issue(subject: str, *groups: str, agents: tuple[str, ...] = ()) -> str:
            return house.tokens.issue(subject, groups, agents)[0].reveal()

        alice, eve, bob = issue("alice@example.com", "dba"), issue("eve", "dev"), issue("bob", "dba")
        agent = issue("bob", "dba", agents=("claude2",))
        with capture_logs() as logs:
            for token, code in (
                (alice, "own-request"),
                (eve, "not-approver"),
                (agent, "agent"),
                ("x", "login-refused"),
            ):
                error = await refused(commands.approvals_approve, house.client, request.id, token=token)
                assert error.code == code
                assert len(token) == 1 or token not in str(error)
            record = await asyncio.to_thread(commands.approvals_approve, house.client, request.id, token=bob)
        assert record["decided_by"] == "bob"
        for token in (alice, eve, bob, agent):
            assert token not in repr(logs)

    run(tmp_path, story)


def test_list_and_show(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        assert commands.render_approvals(await asyncio.to_thread(commands.approvals_list, house.client)) == (
            "Nothing waits for approval.\n"
        )
        long = "SELECT 1; \x1b[2J\u202e" + "x" * 10_000
        request = await house.hold("group:dba", text=long)
        (listed,) = await asyncio.to_thread(commands.approvals_list, house.client, target="orders")
        assert json.loads(json.dumps(listed)) == listed
        assert (listed["id"], len(listed["text"])) == (request.id, 500)
        assert listed["created"].endswith("Z")
        shown = await asyncio.to_thread(commands.approvals_show, house.client, request.id)
        assert shown["text"] == long
        for text in (
            commands.render_approvals([listed], house.clock.now),
            commands.render_approval(shown, house.clock.now),
        ):
            assert "claude for alice@example.com" in text
            assert "\x1b" not in text
            assert "\u202e" not in text
            assert "10 min" in text
        assert "CUT" not in commands.render_approval(shown)
        assert await asyncio.to_thread(commands.approvals_list, house.client, state="denied") == []
        assert (await refused(commands.approvals_list, house.client, state="x")).code == "malformed"
        assert (await refused(commands.approvals_show, house.client, "ap_x")).code == "unknown"
        huge = await house.hold("group:dba", session="s2", text="x" * 100_000)
        shown = await asyncio.to_thread(commands.approvals_show, house.client, huge.id)
        assert "CUT BELOW" in commands.render_approval(shown)

    run(tmp_path, story)


def test_sessions_reload_and_status(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        client = house.client
        live = await asyncio.to_thread(commands.sessions_live, client)
        assert live == [{"id": "01SESSION", "identity": "alice", "started": "1970-01-01T00:00:00Z", "held": None}]
        assert "01SESSION" in commands.render_sessions(live)
        assert (await refused(commands.sessions_kill, client, "01OTHER")).code == "unknown"
        assert await asyncio.to_thread(commands.sessions_kill, client, "01SESSION") == {
            "id": "01SESSION",
            "killed": True,
        }
        assert house.sessions.killed[-1] == ("01SESSION", ME)
        assert await asyncio.to_thread(commands.config_reload, client) == {"rules": 3, "targets": 1}
        bad = await refused(commands.config_reload, client)
        assert str(bad) == "gatecast.yaml:3: unknown key 'tagrets'"
        status = await asyncio.to_thread(commands.status, client)
        assert status == {"node": "n1", "approvals_waiting": 0}
        assert "approvals waiting  0" in commands.render_status(status)

    run(tmp_path, story)


def test_only_root_and_the_own_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(house: House) -> None:
        mode = stat.S_IMODE(house.server.path.stat().st_mode)
        assert mode == 0o600
        monkeypatch.setattr(server, "_caller", lambda writer: Caller(4711, 1, "stranger"))
        with capture_logs() as logs:
            assert (await refused(house.client.call, "status")).code == "not-allowed"
        assert logs[0]["uid"] == 4711

    run(tmp_path, story)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_the_kernel_keeps_another_user_out(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        if directory == Path("/tmp"):
            break
        directory.chmod(0o755)

    async def story(house: House) -> None:
        code = (
            "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX)\n"
            "try:\n s.connect(sys.argv[1])\nexcept PermissionError:\n print('kept out')\n"
            'else:\n s.sendall(b\'{"method":"status"}\\n\'); print(s.recv(1000).decode())'
        )

        async def other_user() -> str:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, str(house.server.path), stdout=asyncio.subprocess.PIPE
            )
            return (await process.communicate())[0].decode()

        assert "kept out" in await other_user()
        house.server.path.chmod(0o666)  # were the mode wrong, SO_PEERCRED still tells
        assert "not-allowed" in await other_user()

    run(tmp_path, story)


def exchange(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it had enough of us; its answer may still be there
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"GET / HTTP/1.1", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "malformed"),
        (b"{}", "malformed"),
        (b'{"method":7}', "malformed"),
        (b'{"method":"status","params":[]}', "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'{"method":"nothing"}', "unknown-method"),
        (b'{"method":"approvals.show"}', "malformed"),
        (b'{"method":"approvals.show","params":{"id":7}}', "malformed"),
        (b'{"method":"approvals.list","params":{"limit":"all"}}', "malformed"),
        (b"x" * (REQUEST_LIMIT + 1), "malformed"),
    ],
)
def test_what_is_no_request(tmp_path: Path, line: bytes, code: str) -> None:
    async def story(house: House) -> None:
        answer = await asyncio.to_thread(exchange, house.server.path, line + b"\n")
        assert json.loads(answer)["error"]["code"] == code
        assert (await asyncio.to_thread(house.client.call, "status"))["node"] == "n1"

    run(tmp_path, story)


def test_several_requests_and_half_of_one(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        line = b'{"method":"status"}\n'
        answers = await asyncio.to_thread(exchange, house.server.path, line + line + b'{"meth')
        assert [json.loads(answer)["ok"] for answer in answers.splitlines()] == [True, True]

    run(tmp_path, story)


def test_a_handler_that_fails_takes_only_its_request(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        async def fail(caller: Caller, params: Mapping[str, Any]) -> object:
            raise RuntimeError("canary-secret")

        house.server._handlers["fail"] = fail
        with capture_logs() as logs:
            error = await refused(house.client.call, "fail")
        assert (error.code, "canary" in str(error)) == ("internal", False)
        assert logs[0]["event"] == "admin-handler-failed"
        assert (await asyncio.to_thread(house.client.call, "status"))["node"] == "n1"

    run(tmp_path, story)


def test_nobody_serves(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match=r"is gatecast serve running\?"):
        AdminClient(tmp_path / "admin.sock").call("status")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "admin.sock"))
    with pytest.raises(AdminError, match=r"is gatecast serve running\?"):
        AdminClient(tmp_path / "admin.sock").call("status")
    with pytest.raises(AdminError, match="at most 107 bytes"):
        AdminClient(tmp_path / ("x" * 200)).call("status")
    with pytest.raises(AdminError, match="at most"):
        AdminClient(tmp_path / "admin.sock").call("approvals.approve", id="a", token="x" * REQUEST_LIMIT)


def test_a_server_that_answers_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "admin.sock"))
        silent.listen()
        with pytest.raises(AdminError, match=r"did not answer in 0\.05 s"):
            AdminClient(tmp_path / "admin.sock", timeout_seconds=0.05).call("status")

        def hang_up() -> None:
            for _ in range(2):  # the first is the connection of the call above
                silent.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(AdminError):
            AdminClient(tmp_path / "admin.sock", timeout_seconds=10).call("status")
        thread.join()


def test_a_socket_left_behind_is_replaced_and_a_second_gate_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "admin.sock"))

    async def story(house: House) -> None:
        second = AdminServer(house.server.path, {})
        with pytest.raises(ConfigError, match="another gatecast serve uses this state directory"):
            await second.start()
        await second.close()
        assert (await asyncio.to_thread(house.client.call, "status"))["node"] == "n1"
        await house.server.close()
        assert not house.server.path.exists()
        await second.start()
        await second.close()

    run(tmp_path, story)
    with pytest.raises(ConfigError, match="107 bytes"):
        asyncio.run(AdminServer(tmp_path / ("x" * 200), {}).start())


def test_closing_ends_what_runs(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        reader, writer = await asyncio.open_unix_connection(str(house.server.path))
        writer.write(b'{"method":"status"}\n')
        assert b'"ok":true' in await reader.readline()
        await house.server.close()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert not house.server._tasks

    run(tmp_path, story)


def test_text_for_terminals() -> None:
    assert iso(None) is None
    assert iso(1_800_000_000.9) == "2027-01-15T08:00:00Z"
    assert harmless("a\tb\n\x1b[1m\u202eé\u200b") == "a\\tb\\n\\x1b[1m\\u202eé\\u200b"
    assert harmless("a\tb\n\r", lines=True) == "a\tb\n\\r"
    assert [span(seconds) for seconds in (-5, 45, 119, 600, 7200, 200_000)] == (
        ["0 s", "45 s", "119 s", "10 min", "2 h", "2 d"]
    )
    assert table(("A", "B"), [("x" * 100, "y\n")]).splitlines()[1] == "x" * 57 + "...  y\\n"
