"""Credentials of requests: kept as long as they are good, fetched by one at a time, and never told."""

from __future__ import annotations

import asyncio
import stat
import sys
import threading
import traceback
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from proxy.core.errors import TargetPeerError
from proxy.core.parties import Credential, Identity, Secret, Target
from proxy.credentials.kubeconfig_user import PLUGIN_SECONDS
from proxy.credentials.renewal import RETRY_SECONDS, Fetched, Renewed, Unusable
from proxy.credentials.static import LOOK_SECONDS, StaticCredential, StaticCredentials
from tests.peers.certificates import Authority
from tests.test_kubeconfig_credentials import CANARY, answer, plugin, write

ANA = Identity("ana")
PROD = Target("prod", "kubernetes")


class Clock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def service(source: StaticCredential, clock: Clock, environment: dict[str, str] | None = None) -> StaticCredentials:
    return StaticCredentials({"prod": source}, environment or {}, clock)


def kubeconfig(path: Path) -> StaticCredential:
    return StaticCredential("", per_request=True, kubeconfig=path)


def token(found: Credential) -> str:
    assert found.secret is not None
    return found.secret.reveal()


async def refused(credentials: StaticCredentials) -> str:
    """What the log says; what the user reads is checked here."""
    with capture_logs() as logs, pytest.raises(TargetPeerError) as caught:
        await credentials.get(ANA, PROD)
    assert str(caught.value) == "the gateway has no usable credential for target prod; ask its operator"
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + repr(logs)
    return str(logs[-1]["why"])


def test_a_token_file_is_looked_at_once_a_second(tmp_path: Path) -> None:
    file, clock = tmp_path / "token", Clock()
    file.write_text(CANARY + "\n")
    file.chmod(0o600)
    credentials = service(StaticCredential("", per_request=True, token_file=file), clock)

    async def body() -> None:
        assert token(await credentials.get(ANA, PROD)) == CANARY
        file.write_text("rotated")
        assert token(await credentials.get(ANA, PROD)) == CANARY
        clock.now += LOOK_SECONDS
        assert token(await credentials.get(ANA, PROD)) == "rotated"
        file.unlink()
        clock.now += LOOK_SECONDS
        assert "No such file" in await refused(credentials)
        for bad, why in [(b"", "empty"), (CANARY.encode() + b"\nx", "one word"), (b"\xff" + CANARY.encode(), "UTF-8")]:
            file.write_bytes(bad)
            assert why in await refused(credentials)

    asyncio.run(body())


def test_a_pod_s_token_is_swapped_by_a_link(tmp_path: Path) -> None:
    """As the kubelet does: token -> ..data/token, and ..data is replaced. Its mode is the kubelet's business."""
    for number in (1, 2):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "token").write_text(f"token-{number}")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "token").symlink_to("..data/token")
    clock = Clock()
    source = StaticCredential("", per_request=True, token_file=tmp_path / "token", foreign_file=True)
    credentials = service(source, clock)

    async def body() -> None:
        with capture_logs() as logs:
            assert token(await credentials.get(ANA, PROD)) == "token-1"
            (tmp_path / "..tmp").symlink_to("..2")
            (tmp_path / "..tmp").replace(tmp_path / "..data")
            clock.now += LOOK_SECONDS
            assert token(await credentials.get(ANA, PROD)) == "token-2"
        assert logs == []

    asyncio.run(body())


def test_a_token_of_the_environment_and_a_pair_of_files(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("gate", client=True)
    by_env = service(StaticCredential("", per_request=True, token_env="T"), Clock(), {"T": CANARY})
    by_pair = service(
        StaticCredential("", per_request=True, certificate_file=pair.certificate_file, key_file=pair.key_file), Clock()
    )

    async def body() -> None:
        assert token(await by_env.get(ANA, PROD)) == CANARY
        assert "T: it is missing or empty" in await refused(
            service(StaticCredential("", per_request=True, token_env="T"), Clock())
        )
        found = await by_pair.get(ANA, PROD)
        assert (found.secret, found.certificate_file, found.key_file) == (
            None, str(pair.certificate_file), str(pair.key_file),
        )  # fmt: skip
        pair.key_file.unlink()
        assert f"{pair.key_file} cannot be read" in await refused(
            service(
                StaticCredential("", per_request=True, certificate_file=pair.certificate_file, key_file=pair.key_file),
                Clock(),
            )
        )

    asyncio.run(body())


def test_a_kubeconfig_and_its_files_count_when_they_change(tmp_path: Path) -> None:
    clock = Clock()
    path = write(tmp_path, {"token": CANARY})
    (tmp_path / "t").write_text(" by-file\n")
    credentials = service(kubeconfig(path), clock)

    async def now() -> Credential:
        clock.now += LOOK_SECONDS
        return await credentials.get(ANA, PROD)

    async def body() -> None:
        found = await now()
        assert (token(found), found.user) == (CANARY, "u")
        assert CANARY not in repr(found)
        write(tmp_path, {"tokenFile": "t", "token": "stale"})
        assert token(await now()) == "by-file"
        (tmp_path / "t").write_text("rotated")
        assert token(await now()) == "rotated"
        (tmp_path / "t").write_text("")
        clock.now += LOOK_SECONDS
        assert "holds no token" in await refused(credentials)
        (tmp_path / "c").write_text("crt-1")
        (tmp_path / "k").write_text("key-1")
        write(tmp_path, {"client-certificate": "c", "client-key": "k"})
        found = await now()
        assert (found.secret, found.certificate, found.key) == (None, Secret("crt-1"), Secret("key-1"))
        (tmp_path / "c").write_text("crt-two")
        assert (await now()).certificate == Secret("crt-two")
        path.chmod(0o644)
        write(tmp_path, {"token": f"{CANARY} x"})
        clock.now += LOOK_SECONDS
        assert "a token is one word" in await refused(credentials)

    asyncio.run(body())


def test_a_kubeconfig_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    path = write(tmp_path, {"token": CANARY})
    path.chmod(0o644)
    with capture_logs() as logs:
        asyncio.run(service(kubeconfig(path), Clock()).get(ANA, PROD))
    assert [(entry["event"], entry["mode"]) for entry in logs] == [("credential-file-open-to-others", "0644")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def counting(folder: Path, lines: str) -> Path:
    """A plugin that counts how often it ran in the file 'runs'."""
    return plugin(folder, f"runs = open({str(folder / 'runs')!r}, 'a+'); runs.write('x'); runs.flush()\n{lines}")


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text()) if (folder / "runs").exists() else 0


def test_a_plugin_is_run_before_the_end_of_what_it_said(tmp_path: Path) -> None:
    clock = Clock(1_893_456_000.0 - 3600)  # an hour before the token ends
    path = counting(tmp_path, answer({"token": CANARY, "expirationTimestamp": "2030-01-01T00:00:00Z"}))
    credentials = service(kubeconfig(path), clock)

    async def body() -> None:
        for _ in range(3):
            assert token(await credentials.get(ANA, PROD)) == CANARY
        assert runs(tmp_path) == 1
        clock.now += 3600 - 301
        await credentials.get(ANA, PROD)
        assert runs(tmp_path) == 1
        clock.now += 2  # less than five minutes are left: it is asked again, and nobody waits for it
        (tmp_path / "plugin.py").write_text(f"#!{sys.executable} -I\nimport sys\nsys.exit(9)\n")
        with capture_logs() as logs:
            assert token(await credentials.get(ANA, PROD)) == CANARY
            await asyncio.wait_for(_idle(credentials), 20)
        assert [entry["event"] for entry in logs] == ["credential-not-renewed"]
        assert "exit code 9" in logs[0]["why"]
        clock.now += 295
        assert "exit code 9" in await refused(credentials)  # now it has ended

    asyncio.run(body())


async def _idle(credentials: StaticCredentials) -> None:
    while (running := credentials._renewed["prod"]._running) is not None:
        await asyncio.wait({running})


def test_a_plugin_without_an_end_is_asked_now_and_then(tmp_path: Path) -> None:
    clock = Clock()
    credentials = service(kubeconfig(counting(tmp_path, answer({"token": CANARY}))), clock)

    async def body() -> None:
        await credentials.get(ANA, PROD)
        clock.now += PLUGIN_SECONDS - 1
        await credentials.get(ANA, PROD)
        assert runs(tmp_path) == 1
        clock.now += 1
        await credentials.get(ANA, PROD)
        assert runs(tmp_path) == 2

    asyncio.run(body())


def test_a_hundred_requests_run_a_plugin_once(tmp_path: Path) -> None:
    credentials = service(kubeconfig(counting(tmp_path, answer({"token": CANARY}))), Clock())

    async def body() -> None:
        found = await asyncio.gather(*(credentials.get(ANA, PROD) for _ in range(100)))
        assert {token(one) for one in found} == {CANARY}
        assert runs(tmp_path) == 1

    asyncio.run(body())


def test_what_a_plugin_gives_has_not_expired(tmp_path: Path) -> None:
    clock = Clock(1_893_456_000.0)
    path = plugin(tmp_path, answer({"token": CANARY, "expirationTimestamp": "2030-01-01T00:00:00Z"}))
    assert "gives what has expired" in asyncio.run(refused(service(kubeconfig(path), clock)))


def test_a_caller_that_leaves_stops_no_fetch_of_others() -> None:
    let_go, begun = threading.Event(), threading.Event()

    def fetch() -> Fetched:
        begun.set()
        assert let_go.wait(10)
        return Fetched(Credential("", Secret("t")), 2e9, 2e9)

    async def body() -> None:
        renewed = Renewed("prod", fetch, Clock())
        async with asyncio.TaskGroup() as group:
            first = group.create_task(renewed.get())
            await asyncio.to_thread(begun.wait, 10)
            second = group.create_task(renewed.get())
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait({first})
            let_go.set()
        assert first.cancelled()
        assert token(second.result()) == "t"

    asyncio.run(body())


def test_a_failing_fetch_is_not_repeated_at_each_request() -> None:
    clock, calls = Clock(), [0]

    def fetch() -> Fetched:
        calls[0] += 1
        if calls[0] == 1:
            return Fetched(Credential("", Secret("t")), clock.now + 100, clock.now + 1000)
        raise Unusable("no")

    async def body() -> None:
        renewed = Renewed("prod", fetch, clock)
        await renewed.get()
        clock.now += 100
        for expected in (2, 2, 2, 3):
            assert token(await renewed.get()) == "t"
            if renewed._running is not None:
                await asyncio.wait({renewed._running})
            assert calls[0] == expected
            clock.now += RETRY_SECONDS / 3 + 0.01
        clock.now += 1000
        with pytest.raises(Unusable):
            await renewed.get()

    asyncio.run(body())


def test_a_new_configuration_forgets_what_was_fetched(tmp_path: Path) -> None:
    credentials = service(StaticCredential("", per_request=True, token_env="A"), Clock(), {"A": "a", "B": "b"})

    async def body() -> None:
        assert token(await credentials.get(ANA, PROD)) == "a"
        credentials.configure({"prod": StaticCredential("", per_request=True, token_env="B")})
        assert token(await credentials.get(ANA, PROD)) == "b"

    asyncio.run(body())
