"""SFTP and scp under any cut and any garbage: the same outcome however it arrives, and never an exception."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.ssh import sftp_wire as wire
from protocols.ssh.scp import scp_content
from protocols.ssh.scp_argv import read_scp
from protocols.ssh.sftp import sftp_content
from proxy.core.events import Command
from proxy.terminal.content import Settings
from tests.ssh.sftp_stage import (
    U32,
    U64,
    S,
    Stage,
    begun,
    closing,
    extended,
    opened,
    opening,
    reading,
    request,
    writing,
)

NEW = wire.FXF_WRITE | wire.FXF_CREAT | wire.FXF_TRUNC
USER = b"".join((
    wire.init(),
    opening(b"../etc/x", 1),
    opening(b"/up", 2, NEW),
    request(wire.LSTAT, 3, S(b"/secret")),
    extended(b"odd@example.com", 4, S(b"what")),
    request(wire.REMOVE, 6, S(b"/c")),
    request(wire.RENAME, 5, S(b"/a"), S(b"/b")),
))  # fmt: skip
WORK = b"".join((
    writing(b"up", 7, 0, b"w" * 70),
    reading(b"in", 8, 0, 50),
    writing(b"up", 9, 70, b"v" * 30),
    writing(b"nothing", 10, 0, b"z" * 40),
    closing(b"up", 11),
    reading(b"in", 12, 50, 50),
    closing(b"in", 13),
))  # fmt: skip
OPENED = b"".join((
    request(wire.HANDLE, 1, S(b"in")),
    request(wire.HANDLE, 2, S(b"up")),
    wire.status(5, 0, ""),
    wire.status(6, 2, "No such file"),
))  # fmt: skip
REPLIES = b"".join((
    wire.status(7, 0, ""),
    request(wire.DATA, 8, S(b"r" * 50)),
    wire.status(9, 0, ""),
    wire.status(11, 0, ""),
    wire.status(12, wire.FX_EOF, ""),
    wire.status(13, 0, ""),
))  # fmt: skip


def no_secrets(command: Command) -> bool:
    return "/secret" not in command.objects


def cut(data: bytes, random_: random.Random, longest: int) -> list[bytes]:
    pieces = []
    while data:
        size = random_.randint(1, longest)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def play(random_: random.Random | None, longest: int = 1 << 20) -> Stage:
    stage = Stage(sftp_content(Settings(3, "box", "alice")), no_secrets)

    def pieces(data: bytes) -> list[bytes]:
        return cut(data, random_, longest) if random_ else [data]

    stage.user(*pieces(USER[:9])).target(*pieces(wire.packet(wire.VERSION, U32(3))))
    stage.user(*pieces(USER[9:])).target(*pieces(OPENED))
    stage.user(*pieces(WORK)).target(*pieces(REPLIES))
    stage.end()
    return stage


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_any_cut_gives_the_same(random_: random.Random, longest: int) -> None:
    whole, cut_up = play(None), play(random_, longest)
    assert not whole.broken and not cut_up.broken
    assert cut_up.up == whole.up and cut_up.down == whole.down and cut_up.err == whole.err
    assert (cut_up.up_untaped, cut_up.down_untaped) == (whole.up_untaped, whole.down_untaped)
    assert cut_up.commands == whole.commands
    assert cut_up.results == whole.results


def test_the_conversation_that_is_cut_says_something() -> None:
    whole = play(None)
    assert [command.verb for command in whole.commands] == [
        "file-read", "file-write", "file-stat", "file-remove", "file-rename",
    ]  # fmt: skip
    assert {result.tag for result in whole.results} == {"file-read /home/etc/x", "file-write /up", "ok", "no such file"}
    assert [code for _, code, _ in whole.statuses()] == [3, 8, 0, 2, 4, 0, 0, 0, 1, 0]


codes = st.sampled_from([*wire.OPERATIONS, wire.EXTENDED, wire.INIT, wire.STATUS, wire.HANDLE, wire.DATA, wire.NAME])
fields = st.one_of(
    st.integers(0, 0xFFFFFFFF).map(U32),
    st.integers(0, 3).map(U32),
    st.integers(0, (1 << 64) - 1).map(U64),
    st.binary(max_size=12).map(S),
    st.sampled_from([b"h", b"/x", b".", b"..", *wire.EXTENSIONS]).map(S),
    st.binary(max_size=5),
)
bodies = st.builds(lambda code, parts: wire.packet(code, b"".join(parts)), codes, st.lists(fields, max_size=6))
garbage = st.one_of(bodies, st.binary(max_size=40))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.booleans(), garbage), max_size=20), st.booleans())
def test_garbage_never_raises_and_nothing_passes_undecided(sides: list[tuple[bool, bytes]], verdict: bool) -> None:
    stage = opened(begun(lambda command: verdict if command.objects != ("/x/a",) else True), b"/x/a")
    for user, data in sides:
        (stage.user if user else stage.target)(data)
    stage.end()
    if not verdict:
        passed = {code for code, _ in packets_of(stage.up)}
        plumbing = {code for code, operation in wire.OPERATIONS.items() if not operation.verb}
        assert passed <= plumbing | {wire.EXTENDED}


def packets_of(data: bytes) -> list[tuple[int, bytes]]:
    """As packets(), but the last one may be cut off."""
    found = []
    while len(data) >= 5:
        size = wire.U32.unpack_from(data)[0]
        found.append((data[4], data[5 : 4 + size]))
        data = data[4 + size :]
    return found


@settings(deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80))
def test_garbage_from_the_first_byte_on(user: bytes, target: bytes) -> None:
    stage = Stage(sftp_content(Settings(0))).user(user).target(target)
    stage.end()
    assert not stage.commands


# -- scp ------------------------------------------------------------------------------------------------

lines = st.one_of(
    st.sampled_from([
        b"\0", b"\1oops\n", b"\2end\n", b"C0644 5 a\n", b"C0644 0 b\n", b"D0755 0 d\n", b"E\n", b"T1 0 2 0\n", b"hello",
        b"C0644 5 ../x\n",
    ]),
    st.binary(max_size=20),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["scp -t d", "scp -f a b", "scp -r -d -t d", "scp -rf d"]),
    st.lists(st.tuples(st.booleans(), lines), max_size=25),
    st.booleans(),
)
def test_garbage_on_scp_never_raises_and_nothing_passes_undecided(
    argv: str, sides: list[tuple[bool, bytes]], verdict: bool
) -> None:
    content = scp_content(argv, Settings(0, "box", "alice"))
    assert content is not None
    stage = Stage(content, lambda command: verdict)
    for user, data in sides:
        (stage.user if user else stage.target)(data)
    stage.end()
    if not verdict:
        given = stage.up if "t" in argv.split(" ", 1)[1] else stage.down
        assert b"C0644 5 a" not in given and not stage.results


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_command_line_is_read_or_not(text: str) -> None:
    for argv in (text, f"scp -t {text}", f"scp -r -f {text}"):
        call = read_scp(argv, "alice")
        assert call is None or (call.paths and all(path.names for path in call.paths))
