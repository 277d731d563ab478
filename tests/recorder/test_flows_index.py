"""Finding what was done in SSH sessions: commands by text, files by path and by the hash of their content; bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from recorder import index_collect
from recorder.cli import show
from recorder.format import OUT, USER
from recorder.index import Index
from recorder.index_query import Wanted, find_commands
from tests.recorder import ssh_tapes
from tests.recorder.ssh_tapes import SHA256, Story, write
from tests.recorder.tapes import Clock, open_tape, recorder


def found(directory: Path, **wanted: str) -> list[tuple[int, str]]:
    with Index(directory) as index:
        return sorted((row["number"], row["verb"]) for row in find_commands(index, Wanted(**wanted)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["app.tar.gz", "/srv/app.tar.gz", SHA256, f"{SHA256[:10]}*", f"sha256 {SHA256[:6]}*", "APP.TAR.GZ"]
)
def test_a_transfer_is_found_by_path_and_by_hash(tmp_path: Path, text: str) -> None:
    write(tmp_path, ssh_tapes.sftp)
    Index.update(tmp_path)
    assert found(tmp_path, text=text) == [(4, "file-write")]


def test_commands_lines_and_forwards_are_found(tmp_path: Path) -> None:
    for number, tell in enumerate((ssh_tapes.a_shell, ssh_tapes.held, ssh_tapes.forward)):
        write(tmp_path / str(number), tell)
        Index.update(tmp_path / str(number))
    assert found(tmp_path / "0", text="rm -rf", verdict="deny") == [(5, "line")]
    assert found(tmp_path / "0", object="ls") == [(4, "line")]
    assert found(tmp_path / "1", text="systemctl", verdict="held") == [(2, "exec")]
    assert found(tmp_path / "1", object="/etc/*") == [(4, "file-write")]
    assert found(tmp_path / "2", object="db.internal:*") == [(2, "direct-tcpip")]


def test_a_hash_that_comes_late_is_found_too(tmp_path: Path) -> None:
    """The command is in the index already when its transfer ends; and the index can be forgotten and made anew."""
    clock = Clock()

    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path, monotonic_ns=clock), protocol="ssh")
        story = Story(tape, clock)
        n = story.command("file-write", "put a", "write", flow=0)
        await tape.commit()
        Index.update(tmp_path)
        assert found(tmp_path, text=SHA256) == []
        assert found(tmp_path, text="put") == [(1, "file-write")]
        told = {"direction": "upload", "size": 3, "sha256": SHA256, "path": "/srv/late.bin"}
        story.result(n, "ok", flow=0, **told)
        await tape.written()
        Index.update(tmp_path)
        for text in (SHA256, "late.bin", "put"):
            assert found(tmp_path, text=text) == [(1, "file-write")]
        await tape.close("closed")
        path = tape.path
        path.unlink()
        assert Index.update(tmp_path).forgotten == 1
        with Index(tmp_path) as index:
            index.connection.execute("INSERT INTO texts(texts, rank) VALUES('integrity-check', 1)")
        assert found(tmp_path, text=SHA256) == []

    asyncio.run(scenario())


def test_many_open_transfers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_collect, "OPEN_LIMIT", 8)

    def tell(story: Story) -> None:
        opened = [story.command("file-write", f"put {i}", "write", flow=0) for i in range(40)]
        for i, n in enumerate(opened):
            story.result(n, "ok", flow=0, direction="upload", size=i, sha256=f"{i:064x}")

    write(tmp_path, tell)
    Index.update(tmp_path)
    for i in (0, 7, 8, 39):
        assert found(tmp_path, text=f"{i:064x}") == [(i + 2, "file-write")]


def test_show_tells_bytes_in_each_direction_and_what_was_transferred(tmp_path: Path) -> None:
    said = show(write(tmp_path / "sftp", ssh_tapes.sftp)[0])
    assert (said["bytes_from_user"], said["bytes_to_user"]) == (13_000_200, 5_000)
    put = said["commands"][3]
    assert (put["flow"], put["details"]["sha256"], put["details"]["size"]) == (0, SHA256, 13_000_000)
    assert put["details"]["complete"] is True
    path, story = write(tmp_path / "shells", ssh_tapes.two_terminals)
    said = show(path)
    sent = sum(max(len(data), 10 * (flow + 1)) for (flow, channel), data in story.out.items() if channel == USER)
    assert said["bytes_from_user"] == sent + 2 * len(ssh_tapes.OPEN)  # what belongs to no stream counts, too
    got = sum(max(len(data), 100 * (flow + 1)) for (flow, channel), data in story.out.items() if channel == OUT)
    assert said["bytes_to_user"] == got
