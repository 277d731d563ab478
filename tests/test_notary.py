"""The heads of the node's log in other places: a directory, a bucket, a witness; as a gateway's configuration says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.config import load_config
from proxy.core.errors import ConfigError
from proxy.notary import BucketStore, Notary
from recorder.anchor import object_name
from recorder.checkpoint import decode_checkpoint
from recorder.nodelog import COSIGNED
from recorder.vault import BucketError
from tests.recorder.nodelogs import StandInWitness, beats, node_log, serving
from tests.recorder.tapes import KEY
from tests.vault.buckets import FaultBucket

ORIGIN = "gatecast/gw1"


def loaded(folder: Path, recorder: dict[str, Any]) -> Any:
    path = folder / "gatecast.yaml"
    text = {
        "listeners": [{"name": "pg", "protocol": "postgres", "address": "127.0.0.1:0", "plain": True}],
        "recorder": recorder,
        "rules": [],
    }
    path.write_text(json.dumps(text))  # JSON is YAML
    return load_config(path, frozenset({"postgres"}))


async def run_until(notary: Notary, done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(notary.run())
        while not done():
            await asyncio.sleep(0.01)
        task.cancel()


def test_heads_go_to_a_directory_and_to_a_witness(tmp_path: Path) -> None:
    log = node_log(tmp_path / "tapes")
    head = log.append(beats(0, 3))
    witness = StandInWitness(log.origin, KEY.public_keys())
    witness.seconds = int(time.time())
    anchors = tmp_path / "elsewhere"
    with serving(witness) as url:
        config = loaded(
            tmp_path,
            {"anchors": [{"url": f"file://{anchors}"}], "witnesses": [{"url": url, "key": witness.key.vkey}]},
        )
        cosigned = log.directory / COSIGNED
        asyncio.run(run_until(Notary(log, config), lambda: cosigned.exists() and bool(list(anchors.rglob("*.jsonl")))))
    assert witness.size == head.size
    assert decode_checkpoint(cosigned.read_bytes()).root == head.root
    (line,) = next(iter(anchors.rglob("*.jsonl"))).read_text().splitlines()
    assert decode_checkpoint(json.loads(line)["checkpoint"].encode()) == head


def test_a_bucket_gets_each_head_once(tmp_path: Path) -> None:
    head = node_log(tmp_path).append(beats(0, 2))
    bucket = FaultBucket()

    async def body() -> None:
        loop = asyncio.get_running_loop()
        store = BucketStore(bucket, lambda: loop)
        for _ in range(2):  # the second time as after a restart
            await asyncio.to_thread(store.put, head, 1_795_000_000_000_000_000)

    asyncio.run(body())
    name = object_name(head, 1_795_000_000_000_000_000)
    assert bucket.objects[name] == head.encode()


def test_a_store_that_is_down_is_an_oserror(tmp_path: Path) -> None:
    head = node_log(tmp_path).append(beats(0, 1))

    def down(step: str, name: str) -> None:
        raise BucketError("no route")

    async def body() -> None:
        loop = asyncio.get_running_loop()
        store = BucketStore(FaultBucket(fault=down), lambda: loop)
        with pytest.raises(OSError, match="no route"):
            await asyncio.to_thread(store.put, head, 0)

    asyncio.run(body())


@pytest.mark.parametrize(
    ("recorder", "says"),
    [
        ({"witnesses": [{"url": "ftp://w", "key": "nonsense"}]}, r"recorder.witnesses\[0\]: vkey: not"),
        ({"anchors": [{"url": "/mnt/worm"}]}, "write s3://bucket/prefix"),
        ({"anchors": [{"url": "s3://b", "options": {"secret_access_key": "x"}}]}, "is a secret"),
        ({"segment": "256MiB"}, "segment"),
    ],
)
def test_bad_places_are_errors_of_the_configuration(tmp_path: Path, recorder: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Notary(node_log(tmp_path), loaded(tmp_path, recorder))
