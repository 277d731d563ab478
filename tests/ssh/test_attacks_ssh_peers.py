"""Attacks on ``gatecast serve`` by a client that says what it likes (raw.py), and by a target that does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from protocols.ssh import sftp_wire, wire
from protocols.ssh.transport import HostKey, ServerOptions, UserLeg, open_user
from protocols.ssh.wire_bodies import Origin
from proxy.core.errors import PeerError, TargetPeerError
from proxy.core.stream import SocketStream
from tests.peers.ssh import KeyPair, SshServer, free_port, make_key
from tests.ssh.gateway import ALL_KINDS, GatewayProcess, ssh_gateway
from tests.ssh.legs import Answers
from tests.ssh.raw import Raw, RawSftp

pytestmark = pytest.mark.peer

RULES = """\
rules:
  - {name: in, who: {groups: [dev]}, commands: {verbs: [CONNECT]}, allow: true}
  - {name: tree, on: {targets: [tree]}, who: {groups: [dev]}, commands:
     {verbs: [subsystem, file-read, file-stat, file-write, file-link, file-rename], objects: [sftp, "TREE/**"]},
     allow: true}
  - {name: all, on: {targets: [box, evil]}, who: {groups: [dev]}, commands: {kinds: KINDS, opaque: true}, allow: true}
"""
PROVE = wire.GlobalRequest("hostkeys-prove-00@openssh.com", True)
NO_DISPLAY = wire.ChannelOpen("x11", 3, 100, 100, Origin("h", 1).encode())
FLOOD_SECONDS = 3.0
GROWTH_LIMIT = 16 * 1024 * 1024  # what a flood of these may take of the gateway's memory; unbounded, it took 100 MiB
ESCAPE = "\x1b[2J\x1b]0;evil\x07"


class Scene:
    """The gateway, what it lets be read, and a port where an evil target may listen."""

    def __init__(self, gateway: GatewayProcess, user: str, tree: Path, port: int, key: KeyPair) -> None:
        self.gateway = gateway
        self.box, self.tree_user = f"{user}:box", f"{user}:tree"
        self.tree = tree
        self.port = port
        self.key = key


@pytest.fixture(scope="module")
def scene(sshd: SshServer) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="gatecast-") as name:
        folder = Path(name).resolve()
        tree = folder / "tree" / "of" / "ana"
        tree.mkdir(parents=True)
        key, port = make_key(folder, "evil"), free_port()
        rules = RULES.replace("KINDS", ALL_KINDS).replace("TREE", str(tree))
        targets = {"tree": {}, "evil": {"port": port, "ssh": {"host_keys": [key.line]}}}
        with ssh_gateway(folder / "gw", sshd, rules, targets=targets) as gateway:
            yield Scene(gateway, sshd.user, tree, port, key)


# -- files --------------------------------------------------------------------------------------------


def test_no_chain_of_links_leads_out_of_a_tree(scene: Scene) -> None:
    """REALPATH of OpenSSH gives up after 32 links, the kernel opens a file behind 40."""
    tree = str(scene.tree).encode()
    ups = b"../" * (len(scene.tree.parts) + 1)
    deep = scene.tree / "/".join("abcdefghijkl")
    deep.mkdir(parents=True)
    (scene.tree / "top").mkdir()

    async def story() -> None:
        raw = await Raw.to(scene.gateway, scene.tree_user)
        sftp = await RawSftp.begin(raw)
        for number in range(35, 0, -1):
            link = tree + b"/top/l%d" % number
            assert (await sftp.ask(sftp_wire.SYMLINK, b"l%d" % (number + 1), link))[1][:4] == bytes(4)
        # Down there it stays within the tree; moved up, it does not.
        made = await sftp.ask(sftp_wire.SYMLINK, ups + b"etc/hostname", bytes(deep) + b"/l36")
        moved = await sftp.ask(sftp_wire.RENAME, bytes(deep) + b"/l36", tree + b"/top/l36")
        assert [made[1][:4], moved[1][:4]] == [bytes(4), bytes(4)]
        assert (scene.tree / "top" / "l36").resolve() == Path("/etc/hostname").resolve()
        assert (scene.tree / "top" / "l1").read_text(), "the kernel opens it"
        for name in (b"l36", b"l20", b"l1"):
            code, _ = await sftp.ask(sftp_wire.OPEN, tree + b"/top/" + name, 1, 0)
            assert code == sftp_wire.STATUS, name
        code, _ = await sftp.ask(sftp_wire.STAT, tree + b"/top/l1")
        assert code == sftp_wire.STATUS
        code, _ = await sftp.ask(sftp_wire.STAT, tree + b"/top")
        assert code == sftp_wire.ATTRS, "what is in the tree is still there"
        await raw.leg.close()

    asyncio.run(story())


def test_a_home_directory_is_told(scene: Scene) -> None:
    async def story() -> None:
        raw = await Raw.to(scene.gateway, scene.box)
        sftp = await RawSftp.begin(raw)
        code, _ = await sftp.ask(sftp_wire.EXTENDED, b"expand-path@openssh.com", b"~/x")
        assert code == sftp_wire.NAME
        code, _ = await sftp.ask(sftp_wire.STAT, b"/")
        assert code == sftp_wire.ATTRS
        await raw.leg.close()

    asyncio.run(story())


# -- messages -----------------------------------------------------------------------------------------


def test_what_nobody_knows_harms_nothing(scene: Scene) -> None:
    async def story() -> None:
        raw = await Raw.to(scene.gateway, scene.box)
        await raw.send(bytes((83,)) + b"abc", bytes((101,)), bytes((192,)) + b"\0\0\0\1x", bytes((255,)))
        await raw.send(wire.GlobalRequest(ESCAPE, True), wire.ChannelOpen(ESCAPE, 3, 1, 1), NO_DISPLAY)
        got = await raw.until(lambda found: len(found) == 3)
        assert [type(each) for each in got] == [wire.RequestFailure, wire.OpenFailure, wire.OpenFailure]
        assert await raw.run("echo alive") == b"alive\n"
        await raw.leg.close()

    asyncio.run(story())
    assert "\x1b" not in scene.gateway.log


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (wire.GlobalRequest("x", True, bytes(256 * 1024)), "bad packet length"),
        (wire.ChannelOpen("session", 1, 100, 0), "packets of 0 bytes"),
        (wire.Data(99, b"x"), "not open: 99"),
        (wire.ChannelSuccess(0).encode() + b"x", "something behind its end"),
        (wire.OpenConfirmation(0, 0, 1, 1), "was not sent"),
    ],
)
def test_what_breaks_the_protocol_ends_it_with_a_reason(
    scene: Scene, message: wire.Message | bytes, reason: str
) -> None:
    async def story() -> None:
        raw = await Raw.to(scene.gateway, scene.box)
        await raw.send(message)
        assert await raw.until(lambda found: False) == []
        assert reason in raw.end
        await raw.leg.close()

    asyncio.run(story())


@pytest.mark.parametrize("user", ["box", "jump"])
@pytest.mark.parametrize("message", [PROVE, NO_DISPLAY], ids=["global", "open"])
def test_a_user_who_asks_and_reads_nothing_takes_no_memory(scene: Scene, user: str, message: wire.Message) -> None:
    async def story() -> None:
        before = scene.gateway.resident_bytes
        raw = await Raw.to(scene.gateway, scene.box if user == "box" else "ana")
        assert await raw.flood(message, FLOOD_SECONDS) > 10_000
        assert scene.gateway.resident_bytes - before < GROWTH_LIMIT
        other = await Raw.to(scene.gateway, scene.box)
        assert await other.run("echo alive") == b"alive\n"
        await other.leg.close()

    asyncio.run(story())


# -- an evil target -----------------------------------------------------------------------------------


def with_evil(scene: Scene, act: Callable[[UserLeg], Awaitable[None]], story: Callable[[Raw], Awaitable[None]]) -> None:
    """Run a story against a target that does this once somebody has logged in to it."""
    options = ServerOptions((HostKey(scene.key.file.read_bytes()),))

    class Anybody(Answers):
        async def key(self, user: str, blob: bytes) -> bool:
            return True

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", scene.port)) as listening:
            listening.setblocking(False)

            async def serve() -> None:
                sock, _ = await loop.sock_accept(listening)
                stream = SocketStream(sock, "user", server_side=True)
                try:
                    with contextlib.suppress(PeerError):  # it is thrown out
                        await act(await open_user(stream, Anybody(), options))
                finally:
                    await stream.close()

            async with asyncio.TaskGroup() as group:
                serving = group.create_task(serve())
                raw = await Raw.to(scene.gateway, "evil")
                await story(raw)
                await raw.leg.close()
                serving.cancel()

    asyncio.run(main())


async def _say(leg: UserLeg, *messages: wire.Message | bytes) -> None:
    payloads = (each if isinstance(each, bytes) else each.encode() for each in messages)
    await leg.write(b"".join(wire.frame(payload) for payload in payloads))


async def _forever(leg: UserLeg) -> None:
    while await leg.read():
        pass


def test_a_target_gets_nothing_that_nobody_offered_it(scene: Scene) -> None:
    opens = [
        wire.ChannelOpen("session", 9, 10, 10), wire.ChannelOpen("auth-agent@openssh.com", 8, 10, 10), NO_DISPLAY,
    ]  # fmt: skip
    answers: list[wire.Message] = []

    async def act(leg: UserLeg) -> None:
        await _say(leg, *opens, wire.GlobalRequest("tcpip-forward", True, b""), bytes((192,)))
        while len(answers) < 5:
            answers.extend(wire.decode(payload, TargetPeerError) for payload in await leg.read())
        await _say(leg, wire.OpenFailure(0, 2, "no"))
        await _forever(leg)

    async def story(raw: Raw) -> None:
        # All that the user hears of it is the answer to its own request.
        assert await raw.session() == wire.OpenFailure(0, 2, "no")

    with_evil(scene, act, story)
    kinds = [type(each).__name__ for each in answers if not isinstance(each, wire.ChannelOpen)]
    assert kinds == ["OpenFailure", "OpenFailure", "OpenFailure", "RequestFailure"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([wire.OpenConfirmation(0, 0, 9, 9), wire.OpenConfirmation(0, 1, 9, 9)], "was not sent"),
        ([wire.Data(0, b"x")], "channel that is offered"),
        ([wire.OpenConfirmation(0, 0, 9, 0)], "packets of 0 bytes"),
        ([wire.OpenConfirmation(0, 0, 9, 9), wire.Eof(0), wire.Data(0, b"x")], "channel that is eof"),
        ([b"\x5b\0"], "malformed"),
    ],
)
def test_a_target_that_breaks_the_protocol_is_named(
    scene: Scene, messages: list[wire.Message | bytes], reason: str
) -> None:
    async def act(leg: UserLeg) -> None:
        await leg.read()
        await _say(leg, *messages)
        await _forever(leg)

    async def story(raw: Raw) -> None:
        await raw.send(wire.ChannelOpen("session", 0, 1 << 20, 32_768))
        await raw.until(lambda found: False)
        assert reason in raw.end and "target" in raw.end

    with_evil(scene, act, story)
