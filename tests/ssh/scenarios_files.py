"""Scenarios of files: sftp, scp in both protocols, rsync, git (ssh note, 5)."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote

from tests.peers.ssh import program
from tests.ssh.running import Runner, noise, scenario, sha256

MIB = 1 << 20
ENTRIES = 10_000


def tree(folder: Path, files: int = 40) -> dict[str, bytes]:
    """Make a small tree with odd names; return what is in it."""
    names = ["plain.txt", "with space", "quote'd", "ümläut", "-dash", "sub/one", "sub/deep/two", "empty"]
    names += [f"sub/many/{i:04d}" for i in range(files)]
    made = {name: b"" if name == "empty" else name.encode() * 100 for name in names}
    for name, data in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return made


def read_tree(folder: Path) -> dict[str, bytes]:
    """What is in a tree."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- sftp ---------------------------------------------------------------------------------------------


@scenario(main=True)
def sftp_batch(run: Runner) -> None:
    made = tree(run.folder / "tree")
    far = run.remote
    done = run.sftp(
        f"cd {far}", "pwd", "mkdir a", "put tree/plain.txt a/", "rename a/plain.txt a/renamed", "chmod 600 a/renamed",
        "ln -s renamed a/symbolic", "ln a/renamed a/hard", "get a/renamed got", "put -r tree", "get -r tree back",
        "rm a/symbolic", "mkdir b", "rmdir b", "ls -l a", "lpwd",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Remote working directory: {far}" in done.stdout.decode()
    assert (run.folder / "got").read_bytes() == made["plain.txt"]
    assert (far / "a/renamed").stat().st_mode & 0o777 == 0o600
    assert (far / "a/hard").samefile(far / "a/renamed")
    assert not (far / "a/symbolic").is_symlink()
    assert not (far / "b").exists()
    assert read_tree(far / "tree") == made == read_tree(run.folder / "back")


@scenario()
def sftp_globs_and_errors(run: Runner) -> None:
    tree(run.remote / "tree", files=30)
    done = run.sftp(f"cd {run.remote}/tree/sub/many", "mget 001*")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in run.folder.glob("00*")) == [f"{i:04d}" for i in range(10, 20)]
    done = run.sftp(
        f"-get {run.remote}/missing", f"-rmdir {run.remote}/tree", f"-mkdir {run.remote}/tree", "-rm /proc/1"
    )
    said = done.stderr.decode()
    assert done.returncode == 0
    assert "not found" in said
    assert "remote rmdir" in said
    assert "remote mkdir" in said
    assert run.sftp(f"get {run.remote}/missing").returncode == 1


@scenario(main=True)
def sftp_bulk(run: Runner) -> None:
    source, there, back = noise(run.folder / "noise", 40 * MIB + 17), run.remote / "noise", run.folder / "back"
    assert run.sftp(f"put noise {there}", f"get {there} back").returncode == 0
    assert sha256(source) == sha256(there) == sha256(back)


@scenario()
def sftp_sizes_of_its_buffers(run: Runner) -> None:
    source, there, back = noise(run.folder / "noise", 3 * MIB + 17), run.remote / "noise", run.folder / "back"
    for size, requests in ((1_000, 1), (4_096, 200), (200_000, 16)):
        back.unlink(missing_ok=True)
        options = ["-B", str(size), "-R", str(requests)]
        done = run.sftp(f"put noise {there}", f"get {there} back", options=options)
        assert done.returncode == 0, (options, done.stderr)
        assert sha256(source) == sha256(there) == sha256(back), options


@scenario()
def sftp_resumes(run: Runner) -> None:
    source = noise(run.folder / "noise", 5 * MIB)
    there, back = run.remote / "noise", run.folder / "back"
    there.write_bytes(source.read_bytes()[: 2 * MIB])
    back.write_bytes(source.read_bytes()[: 3 * MIB])
    assert run.sftp(f"reput noise {there}", f"reget {there} back").returncode == 0
    assert sha256(source) == sha256(there) == sha256(back)


@scenario()
def sftp_many_entries(run: Runner) -> None:
    folder = run.remote / "many"
    folder.mkdir()
    for i in range(ENTRIES):
        os.close(os.open(folder / f"entry-{i:05d}", os.O_CREAT | os.O_WRONLY))
    done = run.sftp(f"ls -1 {folder}", f"ls -ln {folder}")
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0
    assert sum(line.startswith(f"{folder}/entry-") for line in lines) == ENTRIES
    assert sum(line.startswith("-rw") for line in lines) == ENTRIES


@scenario()
def sftp_df(run: Runner) -> None:
    done = run.sftp(f"df {run.remote}", f"df -i {run.remote}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().count("%") >= 2


@scenario()
def sftp_sparse_and_attributes(run: Runner) -> None:
    source = run.folder / "plain"
    source.write_bytes(b"x" * 1000)
    os.utime(source, (1_000_000_000, 1_100_000_000))
    assert run.sftp(f"put -p plain {run.remote}/kept", f"chown 0 {run.remote}/kept").returncode == 0
    assert int((run.remote / "kept").stat().st_mtime) == 1_100_000_000


# -- scp ----------------------------------------------------------------------------------------------


@scenario(main=True)
def scp_both_ways(run: Runner) -> None:
    _scp(run, [])


@scenario()
def scp_old_protocol(run: Runner) -> None:
    _scp(run, ["-O"])


def _scp(run: Runner, options: list[str]) -> None:
    source, back = noise(run.folder / "noise", 8 * MIB + 3), run.folder / "back"
    made = tree(run.folder / "tree", files=20)
    os.utime(source, (1_000_000_000, 1_100_000_000))
    for arguments in (
        ["-p", "noise", f"box:{run.remote}/copy"],
        [f"box:{run.remote}/copy", "back"],
        ["-r", "tree", f"box:{run.remote}"],
        ["-r", f"box:{run.remote}/tree", "tree2"],
    ):
        done = run.scp(*options, *arguments)
        assert (done.returncode, done.stderr) == (0, b""), (arguments, done.stderr)
    assert sha256(source) == sha256(back) == sha256(run.remote / "copy")
    assert int((run.remote / "copy").stat().st_mtime) == 1_100_000_000
    assert made == read_tree(run.remote / "tree") == read_tree(run.folder / "tree2")
    done = run.scp(*options, f"box:{run.remote}/missing", "x")
    assert done.returncode == 1
    assert b"No such file" in done.stderr


@scenario()
def scp_limited_and_by_way_of_us(run: Runner) -> None:
    source = noise(run.folder / "noise", 300_000)
    assert run.scp("-l", "16000", "noise", f"box:{run.remote}/limited").returncode == 0
    for options in ([], ["-O"]):
        done = run.scp(*options, "-3", f"box:{run.remote}/limited", f"box:{run.remote}/third")
        assert done.returncode == 0, (options, done.stderr)
        assert sha256(run.remote / "third") == sha256(source)
        (run.remote / "third").unlink()


@scenario()
def scp_wildcards(run: Runner) -> None:
    tree(run.remote / "tree", files=20)
    for options in ([], ["-O"]):
        folder = run.folder / f"into{len(options)}"
        folder.mkdir()
        done = run.scp(*options, f"box:{run.remote}/tree/sub/many/000*", str(folder))
        assert done.returncode == 0, (options, done.stderr)
        assert sorted(read_tree(folder)) == [f"{i:04d}" for i in range(10)]


# -- rsync --------------------------------------------------------------------------------------------


@scenario(main=True)
def rsync_delta_and_delete(run: Runner) -> None:
    made = tree(run.folder / "tree", files=1_000)
    big = noise(run.folder / "tree" / "big", 6 * MIB)
    to = f"box:{run.remote}/tree/"

    def sync(*options: str) -> str:
        done = run.run(program("rsync"), "-a", "--stats", *options, "-e", run.shell, "tree/", to)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    sync()
    assert sha256(run.remote / "tree/big") == sha256(big)
    assert len(read_tree(run.remote / "tree")) == len(made) + 1
    with big.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"changed")
    (run.folder / "tree/plain.txt").unlink()
    said = sync("--delete", "--no-whole-file", "--checksum")
    literal = next(line for line in said.splitlines() if line.startswith("Literal data"))
    assert int(literal.split()[2].replace(",", "")) < 100_000  # the delta alone went
    assert sha256(run.remote / "tree/big") == sha256(big)
    assert not (run.remote / "tree/plain.txt").exists()
    done = run.run(program("rsync"), "-a", "-z", "-e", run.shell, to, "back")
    assert done.returncode == 0, done.stderr
    assert read_tree(run.folder / "back") == read_tree(run.folder / "tree")


# -- git ----------------------------------------------------------------------------------------------


@scenario(main=True)
def git_clone_fetch_push(run: Runner) -> None:
    far = run.remote / "project.git"
    _git(run, "init", "-q", "--bare", "-b", "main", str(far))
    _git(run, "-C", str(far), "config", "uploadarchive.allowUnreachable", "true")
    url = f"box:{far}"
    _git(run, "clone", "-q", url, "one")
    for i in range(30):
        (run.folder / "one" / f"file{i}").write_text(f"content {i}\n" * 50)
        if i % 3 == 0:
            _git(run, "-C", "one", "add", ".")
            _git(run, "-C", "one", "commit", "-q", "-m", f"change {i}")
    _git(run, "-C", "one", "push", "-q", "origin", "HEAD:main")
    _git(run, "clone", "-q", "--depth", "1", url, "shallow")
    assert _git(run, "-C", "shallow", "rev-list", "--count", "HEAD") == "1"
    _git(run, "-C", "shallow", "fetch", "-q", "--unshallow")
    assert _git(run, "-C", "shallow", "rev-list", "--count", "HEAD") == "10"
    (run.folder / "shallow" / "new").write_text("new\n")
    _git(run, "-C", "shallow", "add", ".")
    _git(run, "-C", "shallow", "commit", "-q", "-m", "more")
    _git(run, "-C", "shallow", "push", "-q", "origin", "HEAD:main")
    _git(run, "-C", "one", "fetch", "-q")
    assert _git(run, "-C", "one", "rev-parse", "origin/main") == _git(run, "-C", "shallow", "rev-parse", "HEAD")
    done = run.run(program("git"), "archive", f"--remote={url}", "main", env=_git_environment(run))
    assert done.returncode == 0, done.stderr
    assert b"content 3\n" in done.stdout
    done = run.run(program("git"), "clone", "-q", f"box:{run.remote}/missing", "none", env=_git_environment(run))
    assert (done.returncode, b"does not appear to be a git repository" in done.stderr) == (128, True)


@scenario()
def git_big_objects(run: Runner) -> None:
    far = run.remote / "big.git"
    _git(run, "init", "-q", "--bare", "-b", "main", str(far))
    _git(run, "init", "-q", "-b", "main", "one")
    big = noise(run.folder / "one" / "big", 50 * MIB)
    for setting in ("core.bigFileThreshold=1m", "pack.compression=0", "core.compression=0"):
        _git(run, "-C", "one", "config", *setting.split("="))
    _git(run, "-C", "one", "add", ".")
    _git(run, "-C", "one", "commit", "-q", "-m", "big")
    _git(run, "-C", "one", "push", "-q", f"box:{far}", "main")
    _git(run, "clone", "-q", f"box:{far}", "two")
    assert sha256(run.folder / "two" / "big") == sha256(big)


def _git(run: Runner, *arguments: str) -> str:
    done = run.run(program("git"), *arguments, timeout=100, env=_git_environment(run))
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout.decode().strip()


def _git_environment(run: Runner) -> dict[str, str]:
    who = {f"GIT_{role}_{what}": "ana@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**who, "GIT_SSH_COMMAND": run.shell, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}


@scenario()
def quoting_survives(run: Runner) -> None:
    """The words that scp, rsync and git quote for the remote shell are what arrives."""
    odd = run.remote / "odd 'name' $(x) `y` é"
    odd.mkdir()
    (odd / "file").write_text("here")
    assert run.ssh(f"cat {quote(str(odd))}/file").stdout == b"here"
    assert run.sftp(f'get "{odd}/file" odd').returncode == 0
    assert (run.folder / "odd").read_text() == "here"
