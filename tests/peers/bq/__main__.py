"""Run the layer: PYTHON -m tests.peers.bq FOLDER, with the emulator environment's Python; settings.json says how.

It prints one JSON line, {"port": ..., "plain": ..., "storage": ...}, and serves until it is terminated. requests.jsonl
in the folder gets what it is asked. tests/peers/bigquery.py makes the folder.
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

from tests.peers.bq.http import HEAD_LIMIT, Emulator
from tests.peers.bq.layer import Layer, Log, Tokens
from tests.peers.bq.storage import serve_storage


async def main(folder: Path) -> None:
    """Serve until SIGTERM."""
    values: dict[str, Any] = json.loads((folder / "settings.json").read_text())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(values["certificate"], values["key"])
    context.set_alpn_protocols(["http/1.1"])
    emulator = Emulator(values["rest"])
    tokens = Tokens(values["tokens"], values["subjects"])
    log = Log(folder / "requests.jsonl")
    layer = Layer(emulator, folder, tokens, Path(values["discovery"]), log)
    listening = await asyncio.start_server(layer.connection, "127.0.0.1", 0, ssl=context, limit=HEAD_LIMIT)
    plain = await asyncio.start_server(layer.connection, "127.0.0.1", 0, limit=HEAD_LIMIT)
    pair = Path(values["certificate"]), Path(values["key"])
    server, storage = await serve_storage(values["grpc"], pair, tokens, layer.jobs, log)
    ports = {"port": listening.sockets[0].getsockname()[1], "plain": plain.sockets[0].getsockname()[1]}
    print(json.dumps({**ports, "storage": storage}), flush=True)
    await stop.wait()
    listening.close()
    plain.close()
    await server.stop(None)
    await emulator.close()
    sys.exit(0)  # connections that are still there end with the process


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
