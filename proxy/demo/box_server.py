"""``python -m proxy.demo.box_server FOLDER``: the demo's SSH server, in a process of its own.

FOLDER has key.pub, the key that is let in, and files/, where command lines run and what SFTP gives out. The port and
the public host key are the line that is written once it listens; it ends with its standard input, so that it does not
outlive a demo that is killed.

Left out: shells and terminals.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Final

import asyncssh

BUFFER_BYTES: Final = 65_536


async def _serve(folder: Path) -> None:
    """Serve until standard input ends."""
    files = folder / "files"

    async def run(channel: asyncssh.SSHServerProcess[bytes]) -> None:
        if channel.command is None:
            channel.stderr.write(b"this machine has no shell\n")
            channel.exit(1)
            return
        child = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", channel.command, cwd=files, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(child.stdout, channel.stdout))
            group.create_task(_copy(child.stderr, channel.stderr))
        channel.exit(await child.wait())

    def sftp(channel: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=os.fsencode(files))

    host_key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        config=None,
        server_host_keys=[host_key],
        authorized_client_keys=str(folder / "key.pub"),
        password_auth=False,
        kbdint_auth=False,
        process_factory=run,
        sftp_factory=sftp,
        encoding=None,
        allow_pty=False,
        agent_forwarding=False,
    )
    print(server.get_port(), host_key.export_public_key().decode().strip(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


async def _copy(source: asyncio.StreamReader, to: Any) -> None:  # Any: asyncssh's writer is generic in str and bytes
    while data := await source.read(BUFFER_BYTES):
        to.write(data)
        await to.drain()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
