"""Run a stand-in API server: python -m tests.peers.kube FOLDER, where settings.json says how.

It prints one JSON line, {"port": ..., "backend": ...}, and serves until it is terminated. requests.jsonl in the folder
gets what it is asked. tests/peers/kubernetes.py makes the folder.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import uvloop

from tests.peers.kube.backend import Backend, LocalBackend
from tests.peers.kube.http import HEAD_LIMIT
from tests.peers.kube.seed import seed
from tests.peers.kube.server import ApiServer, Settings
from tests.peers.kube.store import Store


async def main(folder: Path) -> None:
    """Serve until SIGTERM."""
    values: dict[str, Any] = json.loads((folder / "settings.json").read_text())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(values["certificate"], values["key"])
    context.load_verify_locations(values["authority"])
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    async with asyncio.TaskGroup() as group:
        backend: Backend = LocalBackend(folder / "pods", group)
        if values["cri"]:
            from tests.peers.kube.container_backend import ContainerBackend  # grpcio only where it is used

            backend = ContainerBackend(folder / "pods", Path(values["cri"]))
        store = Store()
        seed(store)
        server = ApiServer(Settings(**values["settings"]), store, backend, group, folder / "requests.jsonl")
        listening = await asyncio.start_server(
            server.connection, "127.0.0.1", values["port"], ssl=context, limit=HEAD_LIMIT
        )
        print(json.dumps({"port": listening.sockets[0].getsockname()[1], "backend": backend.name}), flush=True)
        await stop.wait()
        listening.close()
        await backend.close()
        sys.exit(0)  # connections that are still there end with the process


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
