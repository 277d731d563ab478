"""The demo's SSH client where OpenSSH's is not installed: asyncssh's, with the same configuration file.

``python -m proxy.demo.client CONFIG HOST COMMAND`` runs a command line and exits with its status, as ssh does;
``python -m proxy.demo.client CONFIG HOST:PATH`` fetches a file by SFTP into the current folder.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import PurePosixPath


async def _run(config: str, host: str, command: str) -> int:
    import asyncssh

    host, _, path = host.partition(":")
    async with asyncssh.connect(host, config=[config], agent_path=None) as connection:
        if path:
            async with connection.start_sftp_client() as sftp:
                await sftp.get(path, PurePosixPath(path).name)
            return 0
        done = await connection.run(command)
        print(done.stdout or "", end="")
        print(done.stderr or "", end="", file=sys.stderr)
        return done.returncode if done.returncode is not None else 255


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(sys.argv[1], sys.argv[2], " ".join(sys.argv[3:]))))
