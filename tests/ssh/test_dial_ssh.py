"""Dialling what is no SSH server: every failure is a TargetPeerError, in bounded time and memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from protocols.ssh.dial import dial
from protocols.ssh.dial_settings import read_settings
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.parties import Credential, Secret, Target

LINE = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()


def target(port: int = 22, **settings: object) -> Target:
    given = settings or {"host_keys": (LINE,), "connect_timeout_seconds": 1.0}
    return Target("box", "ssh", host="127.0.0.1", port=port, settings=given)


async def _dialled(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> str:
    serving: list[asyncio.Task[Any]] = []

    async def noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.append(task)
        try:
            await serve(reader, writer)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(noted, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        async with asyncio.timeout(10):
            with pytest.raises(TargetPeerError) as caught:
                await dial(target(port), Credential("root", secret=Secret("canary-99")), "root")
            await asyncio.wait(serving)  # each sees that the gate has left
            await asyncio.sleep(0)
    assert "canary" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (b"", "ended the connection|ended the login: Connection lost"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Connection lost"),
        (b"SSH-1.5-old\r\n", "Unsupported SSH version"),
        (b"x" * 10_000_000, "Banner line too long|failed before the login"),
        (b"x\r\n" * 100_000, "Too many banner lines|failed before the login"),
        (b"SSH-2.0-" + b"y" * 300 + b"\r\n", "Version too long|failed before the login"),
        (b"SSH-2.0-bad\r\n" + b"\xff" * 64, "ended the login|not SSH"),
        (b"SSH-2.0-bad\r\n" + os.urandom(100_000), "ended the login|failed before the login|longer than"),
    ],
    ids=["nothing", "http", "ssh1", "long banner", "many lines", "long version", "garbage", "noise"],
)
def test_garbage(words: bytes, expected: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    text = asyncio.run(_dialled(serve))
    assert any(part in text for part in expected.split("|")), text
    assert len(text) < 400


@pytest.mark.parametrize("words", [b"", b"SSH-2.0-silent\r\n"])
def test_a_target_that_stalls(words: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        await reader.read()

    assert asyncio.run(_dialled(serve)) == "the target took longer than 1 seconds to log in"


def test_nobody_listens() -> None:
    text = asyncio.run(_refused(target(1)))
    assert text == "the target cannot be reached: Connection refused"


async def _refused(place: Target) -> str:
    with pytest.raises(TargetPeerError) as caught:
        await dial(place, Credential("root"), "root")
    return str(caught.value)


def test_a_known_hosts_that_is_not_there(tmp_path: Path) -> None:
    text = asyncio.run(_refused(target(known_hosts=str(tmp_path / "none"))))
    assert text == "the target's known_hosts cannot be read"


@pytest.mark.parametrize(
    "settings",
    [
        {"host_key_alias": "x"},
        {"host_keys": ()},
        {"host_keys": LINE},
        {"host_keys": ("ssh-ed25519 nonsense",)},
        {"host_ca": (1,)},
        {"known_hosts": 3},
        {"host_keys": (LINE,), "connect_timeout_seconds": 0},
        {"host_keys": (LINE,), "connect_timeout_seconds": True},
        {"host_keys": (LINE,), "rekey": 1},
    ],
)
def test_settings_that_are_wrong(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="target box: "):
        read_settings(target(**settings))


def test_settings_without_a_host() -> None:
    with pytest.raises(ConfigError, match="host is empty"):
        read_settings(Target("box", "ssh", settings={"host_keys": (LINE,)}))
