"""scp -O with the real programs: OpenSSH's scp on both sides of the Content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.peer

PUMP = Path(__file__).with_name("content_pump.py")


class Box:
    """A directory of the target, behind a Content that sits where ssh would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.far = root / "far"
        self.near = root / "near"
        self.far.mkdir()
        self.near.mkdir()
        self.log_file = root / "log.jsonl"
        self.ssh = root / "ssh"
        self.ssh.write_text(
            "#!/bin/sh\nfor command; do :; done\n"
            f'cd {self.far} && exec {sys.executable} {PUMP} {root}/settings.json {self.log_file} sh -c "$command"\n'
        )
        self.ssh.chmod(0o755)
        self.configure()

    def configure(self, **settings: Any) -> None:
        (self.root / "settings.json").write_text(json.dumps({"content": "scp", **settings}))

    def scp(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["scp", "-O", "-S", str(self.ssh), *arguments],
            capture_output=True, text=True, cwd=self.near, timeout=100, check=False,
        )  # fmt: skip

    def log(self, what: str, verb: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines()] if self.log_file.exists() else []
        return [line for line in lines if line["what"] == what and verb in ("", line.get("verb"))]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    if shutil.which("scp") is None:
        pytest.skip("OpenSSH's scp is not installed: apt install openssh-client")
    return Box(tmp_path.resolve())


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): sha(path.read_bytes()) for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_file_goes_both_ways(box: Box) -> None:
    data = os.urandom(2_000_003)
    (box.near / "a").write_bytes(data)
    (box.near / "a").chmod(0o640)
    os.utime(box.near / "a", (1_000_000_000, 1_100_000_000))
    assert box.scp("-p", "a", f"box:{box.far}/b").returncode == 0
    assert box.scp("-p", f"box:{box.far}/b", "c").returncode == 0
    assert (box.near / "c").read_bytes() == data == (box.far / "b").read_bytes()
    assert (box.near / "c").stat().st_mtime == 1_100_000_000
    assert stat.S_IMODE((box.near / "c").stat().st_mode) == 0o640
    up, down = box.log("done", "file-write")[0], box.log("done", "file-read")[0]
    for each in (up, down):
        assert (each["path"], each["size"], each["sha256"]) == (str(box.far / "b"), len(data), sha(data))
        assert each["complete"] is True
    assert (up["direction"], down["direction"]) == ("upload", "download")


def test_trees_go_both_ways_and_denied_parts_stay(box: Box) -> None:
    for name in ("a", "secret", "sub/b", "sub/deep/c", "secrets/d", "z"):
        path = box.near / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    box.configure(deny=[["*", "*secret*"]])
    run = box.scp("-r", "tree", f"box:{box.far}/new")
    assert run.returncode == 1 and run.stderr.count("gatecast: denied by rule") == 2
    kept = {name: digest for name, digest in tree(box.near / "tree").items() if "secret" not in name}
    assert len(kept) == 4 and tree(box.far / "new") == kept
    (box.far / "new" / "secret2").write_text("x")
    (box.far / "new" / "secrets2").mkdir()
    (box.far / "new" / "secrets2" / "y").write_text("y")
    run = box.scp("-r", f"box:{box.far}/new", "back")
    assert run.stderr.count("gatecast: denied by rule") == 2
    assert tree(box.near / "back") == kept
    assert not box.log("broken")


def test_wildcards_and_errors(box: Box) -> None:
    for name in ("a1", "a2", "b b", "c"):
        (box.far / name).write_text(name)
    run = box.scp("box:a*", "box:b\\ b", "box:nothing", ".")
    assert run.returncode == 1 and "nothing: No such file" in run.stderr
    assert sorted(path.name for path in box.near.iterdir()) == ["a1", "a2", "b b"]
    assert [line["objects"][0] for line in box.log("allowed")] == [
        "/home/alice/a1", "/home/alice/a2", "/home/alice/b b",
    ]  # fmt: skip
    (box.near / "up").write_text("x")
    run = box.scp("up", f"box:{box.far}/no/such/place")
    assert run.returncode == 1 and "No such file" in run.stderr
    assert box.log("done", "file-write")[0]["complete"] is False


def test_a_denied_download_leaves_no_file(box: Box) -> None:
    (box.far / "secret").write_text("no")
    box.configure(deny=[["file-read", "*"]])
    run = box.scp(f"box:{box.far}/secret", ".")
    assert run.returncode == 1 and 'gatecast: denied by rule "test": not here' in run.stderr
    assert not list(box.near.iterdir())
    box.configure(deny=[["file-write", "*"]])
    (box.near / "up").write_text("x")
    run = box.scp("up", f"box:{box.far}/up")
    assert run.returncode == 1 and not (box.far / "up").exists()


def test_a_hold_is_said_on_stderr(box: Box) -> None:
    (box.far / "a").write_text("yes")
    box.configure(hold=[["file-read", "*"]])
    run = box.scp(f"box:{box.far}/a", ".")
    assert run.returncode == 0 and (box.near / "a").read_text() == "yes"
    assert f'gatecast: held by rule "test": file-read {box.far}/a' in run.stderr


def test_300_megabytes_up_and_any_cut(box: Box) -> None:
    with (box.near / "big").open("wb") as file:
        block = os.urandom(1 << 20)
        for number in range(300):
            file.write(number.to_bytes(4, "big") + block)
    assert box.scp("big", f"box:{box.far}/big").returncode == 0
    with (box.near / "big").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert box.log("done", "file-write")[0]["sha256"] == digest
    with (box.far / "big").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest
    (box.far / "small").write_bytes(block[:10_000])
    box.configure(cut=1)
    assert box.scp(f"box:{box.far}/small", "small").returncode == 0
    assert (box.near / "small").read_bytes() == block[:10_000]
