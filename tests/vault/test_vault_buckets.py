"""Real buckets: S3 by moto's server, GCS by a stand-in, a directory; each must do what a Bucket promises."""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import pytest

from proxy.core.errors import ConfigError
from proxy.vault.bucket import DirectoryBucket, StoreBucket, open_bucket
from recorder.retention import DAY_SECONDS
from recorder.vault import AlreadyThere, Bucket, BucketError, Vault, probe
from recorder.vault_fetch import fetch
from recorder.vault_state import State
from tests.vault.buckets import Clock, Stones, drain, local_files, open_expiry, write_tape
from tests.vault.gcs import GcsStandIn, gcs

CANARY = "canary-bucket-secret-91ce"


@contextmanager
def s3_server() -> Iterator[tuple[str, Any]]:
    """moto's server, and boto3's client of it: for locks and holds, which obstore has not."""
    server_module = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    boto3 = pytest.importorskip("boto3", reason="pip install boto3")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="a", aws_secret_access_key=CANARY, region_name="us-east-1"
        )
        urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()  # its state is the process's
        try:
            yield url, client
        finally:
            client.close()
    finally:
        server.stop()


def s3_options(url: str) -> dict[str, str]:
    return {
        "endpoint": url,
        "region": "us-east-1",
        "access_key_id": "a",
        "secret_access_key": CANARY,
        "allow_http": "true",
    }


def gcs_bucket(stand_in: GcsStandIn) -> Bucket:
    return open_bucket("gs://tapes/of/gw1", {"service_account_key": stand_in.service_account, "allow_http": "true"})


@pytest.fixture
def s3() -> Iterator[tuple[str, Any]]:
    with s3_server() as (url, client):
        client.create_bucket(Bucket="plain")
        client.create_bucket(Bucket="worm", ObjectLockEnabledForBucket=True)
        yield url, client


@pytest.fixture(
    params=["directory", "gcs", pytest.param("s3", marks=pytest.mark.peer)],
)
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket]:
    match request.param:
        case "directory":
            yield open_bucket((tmp_path / "bucket").as_uri())
        case "gcs":
            with gcs() as stand_in:
                yield gcs_bucket(stand_in)
        case _:
            url, _ = request.getfixturevalue("s3")
            yield open_bucket("s3://plain/of/gw1", s3_options(url))


def test_a_bucket_keeps_its_promises(bucket: Bucket) -> None:
    data = bytes(range(256)) * 9000

    async def main() -> None:
        name, digest = "tapes/2026/11/21/x.000.gct", sha256(data).hexdigest()
        assert await bucket.head(name) is None
        await bucket.create(name, data, digest)
        with pytest.raises(AlreadyThere):
            await bucket.create(name, b"other", digest)
        info = await bucket.head(name)
        assert info is not None
        assert info.size == len(data)
        assert info.md5 in ("", md5(data).hexdigest())
        assert info.sha256 in ("", digest)
        assert b"".join([piece async for piece in bucket.get(name)]) == data
        await bucket.create("tapes/2026/11/22/y", b"", digest)
        assert [found async for found in bucket.list("tapes/2026/11/21")] == [(name, len(data))]
        assert [found async for found in bucket.list("nothing")] == []
        with pytest.raises(BucketError):
            assert [piece async for piece in bucket.get("nothing")] == []
        await bucket.delete(name)
        await bucket.delete(name)
        assert await bucket.head(name) is None
        await probe(bucket)
        await probe(bucket)

    asyncio.run(main())


def test_a_session_goes_there_and_back(bucket: Bucket, tmp_path: Path) -> None:
    tapes, clock = tmp_path / "tapes", Clock()
    tapes.mkdir()

    async def main() -> None:
        sid = await write_tape(tapes, clock, segments=2)
        before = {path.name: path.read_bytes() for path in tapes.rglob("*.gct")}
        vault = Vault(tapes, bucket, clock=clock)
        await vault.probe()
        await drain(vault)
        clock.now += 91 * DAY_SECONDS
        while batch := await vault.purgeable(90, 10):
            for item in batch:
                await vault.purge(item)
        assert local_files(tapes) == []
        fetched = await fetch(sid, tmp_path / "back", bucket, state=vault.state, tapes=tapes)
        assert {path.name: path.read_bytes() for path in fetched.first.parent.iterdir()} == before
        assert fetched.checked
        alone = await fetch(sid, tmp_path / "alone", bucket)  # vault.db is lost: the bucket's names will do
        assert {path.name: path.read_bytes() for path in alone.first.parent.iterdir()} == before
        assert not alone.checked
        clock.now += 400 * DAY_SECONDS
        expiry = open_expiry(vault, Stones())
        _, plan = await expiry.plan_expiry("ana")
        assert plan is not None
        await expiry.confirm(plan.token, "mia")
        assert await expiry.work() == 1
        assert [found async for found in bucket.list("tapes")] == []
        vault.close()

    asyncio.run(main())


def test_what_the_stores_say_of_an_object_is_enough_where_it_is_an_md5() -> None:
    """No read back of 64 MiB from GCS: its ETag is the MD5 of what it has."""
    with gcs() as stand_in:

        async def main() -> None:
            bucket = gcs_bucket(stand_in)
            await bucket.create("tapes/x", b"content", "00")
            info = await bucket.head("tapes/x")
            assert info is not None
            assert (info.md5, info.version) == (md5(b"content").hexdigest(), "")

        asyncio.run(main())
        assert list(stand_in.objects) == ["of/gw1/tapes/x"]
        assert stand_in.requests[0] == ("PUT", "of/gw1/tapes/x")
        assert len([one for one in stand_in.requests if one[0] == "PUT"]) == 1


def test_errors_are_one_line_without_secrets() -> None:
    with gcs() as stand_in:
        stand_in.refuse = 403

        async def main() -> str:
            with pytest.raises(BucketError) as caught:
                await gcs_bucket(stand_in).create("tapes/x", b"", "00")
            return str(caught.value)

        said = asyncio.run(main())
    assert "403" in said or "Forbidden" in said or "permission" in said.lower()
    assert "\n" not in said
    assert "service_account" not in said


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("ftp://x", {}, "s3://bucket"),
        ("s3://", {}, "s3://bucket"),
        ("s3://user:secret@bucket/x", {}, "s3://bucket"),
        ("file://host/x", {}, "file:///directory"),
        ("file:///x", {"region": "y"}, "no options"),
        ("s3://b/x", {"regoin": "y"}, "regoin"),
    ],
)
def test_wrong_places_are_refused(url: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_bucket(url, options)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../b", ".hidden", "a//b", "a/.b", "", "a\nb", "a/"])
def test_a_directory_takes_no_name_that_leaves_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(BucketError, match="no object's name"):
        asyncio.run(DirectoryBucket(tmp_path / "bucket").create(name, b"", "00"))
    assert not (tmp_path / "bucket").exists()


def test_a_directory_that_fails_leaves_no_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = DirectoryBucket(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.link", full)
    with pytest.raises(BucketError, match="No space left"):
        asyncio.run(bucket.create("a/x", b"x", "00"))
    assert list((tmp_path / "a").iterdir()) == []


# -- S3's own ---------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_s3_gets_one_put_with_its_checksum_and_never_a_multipart_upload(s3: tuple[str, Any]) -> None:
    url, client = s3
    data = bytes(12 << 20)  # above the 5 MiB from which obstore would use parts

    async def main() -> None:
        await open_bucket("s3://plain/p", s3_options(url)).create("tapes/x", data, sha256(data).hexdigest())

    asyncio.run(main())
    head = client.head_object(Bucket="plain", Key="p/tapes/x", ChecksumMode="ENABLED")
    assert head["Metadata"]["sha256"] == sha256(data).hexdigest()
    assert "-" not in head["ETag"]  # an ETag with a dash is that of parts
    assert "Uploads" not in client.list_multipart_uploads(Bucket="plain")


@pytest.mark.peer
def test_versions_are_noticed_and_a_deleted_object_lives_on_in_them(s3: tuple[str, Any]) -> None:
    """Why keys need a bucket without versions: a delete there is a marker, and the old version can be read."""
    url, client = s3

    async def main() -> None:
        plain, worm = (open_bucket(f"s3://{name}/p", s3_options(url)) for name in ("plain", "worm"))
        assert not await probe(plain)
        assert await probe(worm)
        await worm.create("keys/x", b"key", "00")
        await worm.delete("keys/x")
        assert await worm.head("keys/x") is None

    asyncio.run(main())
    (version,) = client.list_object_versions(Bucket="worm", Prefix="p/keys/x")["Versions"]
    assert client.get_object(Bucket="worm", Key="p/keys/x", VersionId=version["VersionId"])["Body"].read() == b"key"


@pytest.mark.peer
@pytest.mark.parametrize("lock", ["COMPLIANCE", "hold"])
def test_locked_tapes_outlive_an_expiry(s3: tuple[str, Any], tmp_path: Path, lock: str) -> None:
    url, client = s3
    tapes, clock = tmp_path / "tapes", Clock()
    tapes.mkdir()

    async def main() -> None:
        sid = await write_tape(tapes, clock)
        bucket = open_bucket("s3://worm/p", s3_options(url))
        vault = Vault(tapes, bucket, clock=clock)
        await drain(vault)
        (item,) = vault.state.of_session(sid)
        assert item.state is State.UPLOADED
        assert item.version
        key = f"p/tapes/{item.path}"
        if lock == "hold":
            client.put_object_legal_hold(Bucket="worm", Key=key, LegalHold={"Status": "ON"})
        else:
            until = "2099-01-01T00:00:00Z"
            client.put_object_retention(
                Bucket="worm", Key=key, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until}
            )
        clock.now += 401 * DAY_SECONDS
        expiry = open_expiry(vault, Stones())
        _, plan = await expiry.plan_expiry("ana")
        assert plan is not None
        await expiry.confirm(plan.token, "mia")
        await expiry.work()
        vault.close()
        from botocore.exceptions import ClientError

        (version,) = client.list_object_versions(Bucket="worm", Prefix=key)["Versions"]
        with pytest.raises(ClientError, match=r"AccessDenied|Access Denied"):
            client.delete_object(Bucket="worm", Key=key, VersionId=version["VersionId"])
        body = client.get_object(Bucket="worm", Key=key, VersionId=version["VersionId"])["Body"].read()
        assert sha256(body).hexdigest() == item.sha256

    asyncio.run(main())


def test_a_store_bucket_shows_no_secret() -> None:
    bucket = open_bucket("s3://b/p", {"access_key_id": "a", "secret_access_key": CANARY, "region": "r"})
    assert isinstance(bucket, StoreBucket)
    assert CANARY not in repr(bucket) + repr(vars(bucket))
