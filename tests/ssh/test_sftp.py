"""SFTP as written conversations: every operation, its decision, its paths, its record."""

from __future__ import annotations

import hashlib

import pytest

from protocols.ssh import sftp
from protocols.ssh import sftp_wire as wire
from protocols.ssh.sftp import Sftp, sftp_content
from protocols.ssh.transfers import FILE_VERBS, NOTES_LIMIT
from protocols.ssh.verbs import KIND_OF
from proxy.core.events import Command
from proxy.terminal.content import Settings
from tests.ssh.sftp_stage import (
    HOME,
    U32,
    U64,
    S,
    Stage,
    begun,
    closing,
    extended,
    opened,
    opening,
    packets,
    reading,
    request,
    writing,
)

OK = wire.FX_OK
WRITE_NEW = wire.FXF_WRITE | wire.FXF_CREAT | wire.FXF_TRUNC
ATTRS = U32(wire.ATTR_PERMISSIONS) + U32(0o100644)

# request with id 5, verb, objects, facts or text to look for
DECIDED = [
    (opening(b"a", 5), "file-read", ("/home/alice/a",), "file-read /home/alice/a"),
    (opening(b"/x/a", 5, WRITE_NEW), "file-write", ("/x/a",), "file-write /x/a (write,create,truncate)"),
    (request(wire.LSTAT, 5, S(b"/x/a")), "file-stat", ("/x/a",), "file-stat /x/a"),
    (request(wire.STAT, 5, S(b"/x/a")), "file-stat", ("/x/a",), "file-stat /x/a"),
    (request(wire.SETSTAT, 5, S(b"/x/a"), ATTRS), "file-setstat", ("/x/a",), "file-setstat /x/a (mode 0644)"),
    (request(wire.OPENDIR, 5, S(b"/x")), "file-list", ("/x",), "file-list /x"),
    (request(wire.REMOVE, 5, S(b"/x/a")), "file-remove", ("/x/a",), "file-remove /x/a"),
    (request(wire.MKDIR, 5, S(b"/x/d"), U32(0)), "file-mkdir", ("/x/d",), "file-mkdir /x/d"),
    (request(wire.MKDIR, 5, S(b"/x/d/")), "file-mkdir", ("/x/d",), "file-mkdir /x/d"),
    (request(wire.RMDIR, 5, S(b"/x/d")), "file-rmdir", ("/x/d",), "file-rmdir /x/d"),
    (request(wire.READLINK, 5, S(b"/x/l")), "file-readlink", ("/x/l",), "file-readlink /x/l"),
    (request(wire.RENAME, 5, S(b"/x/a"), S(b"/y/b")), "file-rename", ("/x/a", "/y/b"), "file-rename /x/a -> /y/b"),
    (request(wire.SYMLINK, 5, S(b"../y/t"), S(b"/x/l")), "file-link", ("/x/l", "/y/t"), "file-link /x/l -> /y/t"),
    (request(wire.SYMLINK, 5, S(b"t"), S(b"l")), "file-link", ("/home/alice/l", "/home/alice/t"), "file-link"),
    (
        extended(b"posix-rename@openssh.com", 5, S(b"/x/a"), S(b"b c")),
        "file-rename",
        ("/x/a", "/home/alice/b c"),
        "file-rename /x/a -> '/home/alice/b c'",
    ),
    (extended(b"hardlink@openssh.com", 5, S(b"/x/a"), S(b"/y/b")), "file-link", ("/x/a", "/y/b"), "(hard)"),
    (
        extended(b"lsetstat@openssh.com", 5, S(b"/x/a"), U32(2) + U32(0) + U32(7)),
        "file-setstat",
        ("/x/a",),
        "(owner 0:7)",
    ),
    (extended(b"statvfs@openssh.com", 5, S(b"/x")), "file-statvfs", ("/x",), "file-statvfs /x"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "verb", "objects", "text"), DECIDED, ids=lambda value: str(value)[:40])
def test_operations_are_commands(data: bytes, verb: str, objects: tuple[str, ...], text: str) -> None:
    stage = begun(lambda command: None).user(data)
    assert [command.verb for command in stage.commands] == [verb]
    command = stage.commands[0]
    assert command.objects == objects
    assert text in command.text
    assert command.kind == FILE_VERBS[verb] == KIND_OF[verb]
    assert command.facts["path"] == objects[0] and command.facts["paths"] == objects
    assert (command.facts["via"], command.facts["login"], command.facts["resolved"]) == ("sftp", "alice", True)
    assert command.flow == 7 and command.exact
    assert stage.up == b"", "it went ahead of its decision"
    stage.allow(stage.asks[0])
    assert stage.up == data


@pytest.mark.parametrize(("data", "verb", "objects", "text"), DECIDED, ids=lambda value: str(value)[:40])
def test_refused_operations_are_answered_and_the_session_lives(
    data: bytes, verb: str, objects: tuple[str, ...], text: str
) -> None:
    stage = begun(lambda command: command.verb != verb).user(data)
    assert stage.up == b""
    assert stage.statuses() == [(5, wire.FX_PERMISSION_DENIED, 'gatecast: denied by rule "no-etc": not for you')]
    assert b'denied by rule "no-etc"' in stage.err
    stage.decide = lambda command: True
    stage.user(request(wire.LSTAT, 6, S(b"/ok")))
    assert [code for code, _ in stage.take()[0]] == [wire.LSTAT]


def test_fsetstat_is_about_the_file_of_its_handle() -> None:
    stage = opened(begun(), b"/x/a", flags=WRITE_NEW)
    stage.user(request(wire.FSETSTAT, 5, S(b"h"), ATTRS), extended(b"fstatvfs@openssh.com", 6, S(b"h")))
    assert [(each.verb, each.objects) for each in stage.commands[1:]] == [
        ("file-setstat", ("/x/a",)),
        ("file-statvfs", ("/x/a",)),
    ]


def test_copy_data_is_about_both_files() -> None:
    stage = opened(opened(begun(), b"/x/a"), b"/y/b", b"g", WRITE_NEW)
    stage.user(extended(b"copy-data", 5, S(b"h"), U64(0), U64(0), S(b"g"), U64(0)))
    stage.target(wire.status(5, OK, ""))
    assert (stage.commands[2].verb, stage.commands[2].objects) == ("file-copy", ("/x/a", "/y/b"))
    assert stage.results[-1].tag == "ok"


def test_plumbing_needs_no_decision() -> None:
    stage = opened(begun(lambda command: command.verb == "file-read"), b"/x/a")
    asked = len(stage.commands)
    sent = (
        request(wire.FSTAT, 1, S(b"h"))
        + reading(b"h", 2, 0, 10)
        + extended(b"fsync@openssh.com", 3, S(b"h"))
        + extended(b"limits@openssh.com", 4)
        + extended(b"expand-path@openssh.com", 5, S(b"~"))
        + extended(b"home-directory", 6, S(b"alice"))
        + extended(b"users-groups-by-id@openssh.com", 7, S(U32(0)), S(b""))
        + request(wire.REALPATH, 8, S(b"."))
        + closing(b"h", 9)
    )
    stage.user(sent)
    assert len(stage.commands) == asked and stage.up == sent


@pytest.mark.parametrize(
    ("flags", "verbs"),
    [
        (wire.FXF_READ, ["file-read"]),
        (0, ["file-read"]),
        (wire.FXF_WRITE, ["file-write"]),
        (wire.FXF_WRITE | wire.FXF_APPEND, ["file-write"]),
        (wire.FXF_READ | wire.FXF_WRITE, ["file-read", "file-write"]),
        (wire.FXF_READ | wire.FXF_TRUNC, ["file-read", "file-write"]),
        (wire.FXF_READ | wire.FXF_CREAT, ["file-read", "file-write"]),
        (wire.FXF_READ | 0x40, ["file-read", "file-write"]),
    ],
)
def test_the_flags_of_an_open_tell_its_verbs(flags: int, verbs: list[str]) -> None:
    command = begun().user(opening(b"/x/a", 1, flags)).commands[0]
    assert [part.verb for part in command.parts] == (verbs if len(verbs) > 1 else [])
    assert command.verb == verbs[-1]
    assert all(part.objects == ("/x/a",) for part in command.parts)


# -- paths ----------------------------------------------------------------------------------------------


def etc(command: Command) -> bool:
    return not any(name.startswith("/etc/") for name in command.objects)


@pytest.mark.parametrize(
    "path",
    [b"/etc/passwd", b"../../etc/passwd", b"/x/../etc//./passwd", b"link/passwd", b"/home/alice/link/passwd", b"soft",
     b"link/../etc/passwd", b"soft/", b"/etc/passwd/."],
)  # fmt: skip
def test_no_path_hides_where_it_leads(path: bytes) -> None:
    stage = begun(etc)
    stage.links = {HOME + b"/link": b"/etc", HOME + b"/soft": b"/etc/passwd"}
    stage.user(opening(path, 5))
    assert stage.statuses()[0][:2] == (5, wire.FX_PERMISSION_DENIED)
    assert stage.up == b""


def test_a_link_itself_is_not_followed_where_the_target_does_not() -> None:
    stage = begun(etc)
    stage.links = {HOME + b"/soft": b"/etc/passwd"}
    stage.user(request(wire.REMOVE, 5, S(b"soft")), request(wire.LSTAT, 6, S(b"soft")))
    assert [command.objects for command in stage.commands] == [("/home/alice/soft",)] * 2
    stage.user(opening(b"soft", 7))
    assert stage.commands[-1].objects == ("/home/alice/soft", "/etc/passwd")
    assert stage.commands[-1].text == "file-read /home/alice/soft (a link to /etc/passwd)"
    stage.user(request(wire.LSTAT, 8, S(b"soft/")))  # a slash makes the target follow
    assert stage.commands[-1].objects == ("/home/alice/soft", "/etc/passwd")


@pytest.mark.parametrize(
    ("path", "real"),
    [(b"link/..", "/etc"), (b"link/.", "/etc/ssh"), (b"link/../", "/etc"), (b"/", "/"), (b"///", "/"),
     (b"", "/home/alice"), (b".", "/home/alice"), (b"./", "/home/alice"), (b"..", "/home")],
)  # fmt: skip
def test_a_path_without_a_name_of_its_own_is_resolved_whole(path: bytes, real: str) -> None:
    stage = begun(lambda command: None)
    stage.links = {HOME + b"/link": b"/etc/ssh"}
    stage.user(request(wire.LSTAT, 5, S(path)))
    assert stage.commands[0].objects == (real,) and stage.commands[0].facts["resolved"] is True


def test_a_path_that_the_target_does_not_know_is_read_as_text() -> None:
    stage = begun()
    stage.missing = {b"/gone"}
    stage.user(opening(b"/gone/sub/../a", 5))
    assert stage.commands[0].objects == ("/gone/a",)
    assert stage.commands[0].facts["resolved"] is False


def test_the_name_of_a_directory_is_remembered_for_a_moment_only() -> None:
    stage = begun()
    stage.links = {b"/d": b"/one"}
    stage.user(request(wire.LSTAT, 5, S(b"/d/a")))
    stage.links = {b"/d": b"/two"}
    asked = len(stage.gate_up)
    stage.user(request(wire.LSTAT, 6, S(b"/d/b")))
    assert len(stage.gate_up) == asked and stage.commands[-1].objects == ("/one/b",)
    stage.now += 1.1
    stage.user(request(wire.LSTAT, 7, S(b"/d/b")))
    assert stage.commands[-1].objects == ("/two/b",)


@pytest.mark.parametrize(
    "mover",
    [
        request(wire.RENAME, 5, S(b"/a"), S(b"/b")),
        request(wire.SYMLINK, 5, S(b"/etc"), S(b"/d2")),
        request(wire.MKDIR, 5, S(b"/m"), U32(0)),
        extended(b"posix-rename@openssh.com", 5, S(b"/a"), S(b"/b")),
        extended(b"hardlink@openssh.com", 5, S(b"/a"), S(b"/b")),
    ],
)
def test_what_may_move_paths_is_waited_for_and_forgets_names(mover: bytes) -> None:
    stage = begun()
    stage.user(request(wire.LSTAT, 4, S(b"/d/a"))).target(request(wire.ATTRS, 4, U32(0)))
    stage.user(mover)
    stage.links = {b"/d": b"/etc"}
    before = len(stage.commands)
    stage.user(request(wire.LSTAT, 6, S(b"/d/a")), request(wire.LSTAT, 7, S(b"/d/b")))
    assert len(stage.commands) == before, "a path was resolved while it may be moved"
    stage.target(wire.status(5, OK, ""))
    assert [command.objects for command in stage.commands[before:]] == [("/etc/a",), ("/etc/b",)]


def test_paths_of_other_encodings_and_control_characters_are_shown_harmlessly() -> None:
    stage = begun().user(request(wire.LSTAT, 5, S(b"/x/\xff\x1b[2J")))
    assert stage.commands[0].objects == ("/x/\\xff\x1b[2J",)
    assert "\x1b" not in stage.commands[0].text


@pytest.mark.parametrize("path", [b"/x\0/../etc", b"/" + b"a" * wire.PATH_LIMIT])
def test_paths_that_a_target_may_read_otherwise_are_answered_by_the_gate(path: bytes) -> None:
    stage = begun().user(request(wire.REMOVE, 5, S(path)))
    assert stage.statuses()[0][:2] == (5, wire.FX_BAD_MESSAGE)
    assert not stage.commands and not stage.up


def test_the_longest_path_passes() -> None:
    stage = begun().user(request(wire.REMOVE, 5, S(b"/" + b"a" * (wire.PATH_LIMIT - 1))))
    assert len(stage.commands) == 1


# -- order ----------------------------------------------------------------------------------------------


def test_what_comes_behind_an_undecided_operation_waits() -> None:
    stage = opened(begun(), b"/x/a")
    stage.decide = lambda command: None
    stage.user(opening(b"/x/b", 5) + reading(b"h", 6, 0, 10) + closing(b"h", 7))
    assert stage.up == b"" and isinstance(stage.content, Sftp) and stage.content.held_bytes > 0
    stage.refuse(stage.asks[-1])
    assert [code for code, _ in stage.take()[0]] == [wire.READ, wire.CLOSE]
    assert stage.content.held_bytes == 0


def test_nothing_goes_before_the_home_is_known() -> None:
    stage = Stage(sftp_content(Settings(0)))
    stage.answering = False
    stage.user(wire.init()).target(wire.packet(wire.VERSION, U32(3)))
    stage.user(request(wire.LSTAT, 5, S(b"a")), request(wire.REALPATH, 6, S(b".")))
    assert [code for code, _ in packets(stage.up)] == [wire.INIT]
    stage.answer_lookups()
    assert [path for _, path in stage.lookups] == [b"."] and not stage.commands
    stage.answer_lookups()
    assert [command.objects for command in stage.commands] == [("/home/alice/a",)]


def test_an_id_that_is_under_way_waits_for_its_reply() -> None:
    stage = opened(begun(), b"/x/a")
    stage.user(reading(b"h", 5, 0, 4), reading(b"h", 5, 4, 4))
    assert len(packets(stage.up)) == 1
    stage.target(request(wire.DATA, 5, S(b"abcd")))
    assert len(packets(stage.up)) == 2
    stage.target(request(wire.DATA, 5, S(b"efgh")))
    stage.user(closing(b"h", 5)).target(wire.status(5, OK, ""))
    assert stage.results[-1].details["sha256"] == hashlib.sha256(b"abcdefgh").hexdigest()


def test_the_gates_own_ids_are_not_the_users() -> None:
    stage = begun()
    stage.answering = False
    stage.user(request(wire.REALPATH, 0xFFFFFFFE, S(b"q")), request(wire.LSTAT, 5, S(b"/d/a")))
    assert [number for number, _ in stage.lookups] == [0xFFFFFFFD]
    stage.target(request(wire.NAME, 0xFFFFFFFE, U32(1), S(b"/mine"), S(b""), U32(0)))
    assert b"/mine" in stage.down and not stage.commands
    stage.answer_lookups()
    assert stage.commands[0].objects == ("/d/a",)
    assert b"/d" not in stage.down


def test_outstanding_requests_are_bounded() -> None:
    stage = opened(begun(), b"/x/a")
    for number in range(sftp.OUTSTANDING_LIMIT + 1):
        stage.user(reading(b"h", number, 0, 1))
    assert len(packets(stage.up)) == sftp.OUTSTANDING_LIMIT
    stage.target(wire.status(0, wire.FX_EOF, ""))
    assert len(packets(stage.up)) == sftp.OUTSTANDING_LIMIT + 1


def test_handles_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp, "HANDLES_LIMIT", 2)
    stage = opened(opened(begun(), b"/a", b"1"), b"/b", b"2")
    stage.user(opening(b"/c", 9))
    assert stage.statuses() == [(9, wire.FX_FAILURE, "gatecast: too many open files")]
    stage.user(closing(b"1", 10), opening(b"/c", 9))
    assert [code for code, _ in stage.take()[0]] == [wire.CLOSE, wire.OPEN]


def test_too_much_ahead_of_a_decision_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp, "AHEAD_LIMIT", 1000)
    stage = begun()
    stage.answering = False
    stage.user(opening(b"/a", 1), b"\0\0\0\x64" + b"\7" * 996)
    assert not stage.broken
    stage.user(b"\7")
    assert "too many requests" in stage.broken


def test_an_eof_ends_what_is_not_decided_yet() -> None:
    stage = begun()
    stage.answering = False
    stage.user(opening(b"/a", 1), opening(b"/b", 2))
    stage.do(stage.content.user_eof(stage.now))
    stage.answer_lookups()
    assert not stage.commands and not stage.up and stage.statuses()[0][:2] == (1, wire.FX_FAILURE)


@pytest.mark.parametrize("handle", [b"x", b""])
@pytest.mark.parametrize(
    "make",
    [
        lambda handle: reading(handle, 5, 0, 10),
        lambda handle: writing(handle, 5, 0, b"data"),
        lambda handle: closing(handle, 5),
        lambda handle: request(wire.READDIR, 5, S(handle)),
        lambda handle: request(wire.FSTAT, 5, S(handle)),
        lambda handle: request(wire.FSETSTAT, 5, S(handle), ATTRS),
        lambda handle: extended(b"fsync@openssh.com", 5, S(handle)),
        lambda handle: extended(b"copy-data", 5, S(b"h"), U64(0), U64(0), S(handle), U64(0)),
    ],
)
def test_unknown_handles_are_answered_by_the_gate(make: object, handle: bytes) -> None:
    assert callable(make)
    stage = opened(begun(), b"/x/a")
    stage.user(make(handle), reading(b"h", 6, 0, 1))
    assert [code for code, _ in packets(stage.up)] == [wire.READ]
    assert stage.statuses()[0][:2] == (5, wire.FX_FAILURE)


# -- versions and extensions --------------------------------------------------------------------------------


def test_what_is_not_decoded_is_not_announced() -> None:
    stage = Stage(sftp_content(Settings(0))).user(wire.init())
    known = S(b"posix-rename@openssh.com") + S(b"1")
    odd = S(b"statvfs@openssh.com") + S(b"9") + S(b"run-anything@example.com") + S(b"1")
    stage.target(wire.packet(wire.VERSION, U32(3) + odd + known))
    assert stage.down == wire.packet(wire.VERSION, U32(3) + known)


def test_unknown_extensions_are_answered_by_the_gate() -> None:
    stage = begun().user(extended(b"run-anything@example.com", 5, S(b"rm -rf /")), request(99, 6))
    assert [each[:2] for each in stage.statuses()] == [(5, wire.FX_OP_UNSUPPORTED), (6, wire.FX_OP_UNSUPPORTED)]
    assert stage.up == b""


@pytest.mark.parametrize("offer", [wire.packet(wire.INIT, U32(6)), wire.packet(wire.INIT, U32(3) + S(b"x") + S(b"y"))])
def test_the_version_is_three(offer: bytes) -> None:
    stage = Stage(sftp_content(Settings(0))).user(offer)
    assert stage.up == b"" and stage.gate_up == wire.init()


def test_a_higher_version_of_the_target_breaks() -> None:
    stage = Stage(sftp_content(Settings(0))).user(wire.init()).target(wire.packet(wire.VERSION, U32(6)))
    assert "version 6" in stage.broken


def test_limits_are_no_higher_than_the_gates_own() -> None:
    stage = begun().user(extended(b"limits@openssh.com", 5))
    stage.target(request(wire.EXTENDED_REPLY, 5, U64(1 << 30), U64(1 << 30), U64(1000), U64(0)))
    body = stage.take()[1][0][1]
    assert wire.LIMITS.unpack_from(body, 4) == (256 * 1024, wire.READ_LIMIT, 1000, sftp.HANDLES_LIMIT)


# -- words for the user -------------------------------------------------------------------------------------


def test_a_hold_is_told_on_stderr_and_its_reply_comes_later() -> None:
    stage = begun(lambda command: None).user(opening(b"/x/a", 5))
    stage.do(stage.content.waiting(stage.asks[0], 'held by rule "r"'))
    assert stage.err == b'gatecast: held by rule "r": file-read /x/a\n' and not stage.down
    stage.allow(stage.asks[0])
    stage.target(request(wire.HANDLE, 5, S(b"h")))
    assert [code for code, _ in stage.take()[1]] == [wire.HANDLE]


def test_stderr_is_bounded() -> None:
    stage = begun(lambda command: False)
    for number in range(200):
        stage.user(request(wire.LSTAT, number, S(b"/x/a")))
    assert len(stage.statuses()) == 200
    assert NOTES_LIMIT - 200 < len(stage.err) <= NOTES_LIMIT


def test_stderr_of_the_target_passes() -> None:
    stage = begun()
    stage.do(stage.content.from_target("err", b"warning", 0.0))
    assert stage.err == b"warning"


# -- what is no SFTP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        U32(wire.PACKET_LIMIT - 3) + b"\7",
        U32(0),
        U32(4) + b"\7abc",
        wire.init(),
        request(wire.LSTAT, 5, U32(100), b"/x"),
        request(wire.WRITE, 5, S(b"h" * 300), U64(0), S(b"d")),
        request(wire.WRITE, 5, S(b"h"), U64(0), U32(100) + b"short"),
        request(wire.WRITE, 5, S(b"h"), U64(0), U32(1) + b"longer"),
        request(wire.WRITE, 5),
        request(wire.READ, 5, S(b"h" * 300)),
        request(wire.SETSTAT, 5, S(b"/x"), U32(0x80000000) + U32(0xFFFFFFFF)),
        extended(b"copy-data", 5),
    ],
)
def test_what_is_no_request_ends_the_channel(data: bytes) -> None:
    stage = begun().user(data)
    assert "SFTP" in stage.broken and not stage.up
    stage.user(request(wire.LSTAT, 6, S(b"/x"))).target(b"more")
    assert not stage.commands and not stage.up


@pytest.mark.parametrize(
    "data",
    [
        b"bash: no such command\n",
        request(wire.HANDLE, 5, S(b"h")),
        request(wire.HANDLE, 4, S(b"h")),
        request(wire.HANDLE, 3, S(b"")),
        request(wire.HANDLE, 3, S(b"h" * 257)),
        request(wire.DATA, 4, S(b"12345")),
        request(wire.DATA, 4, U32(3), b"1"),
        request(wire.ATTRS, 4, U32(0)),
        wire.packet(wire.VERSION, U32(3)),
        request(wire.STATUS, 4),
        U32(wire.PACKET_LIMIT) + b"\147",
    ],
)
def test_what_is_no_reply_ends_the_channel(data: bytes) -> None:
    stage = opened(begun(), b"/x/a", b"g")
    stage.user(opening(b"/x/b", 3), reading(b"g", 4, 0, 4)).target(data)
    assert "the target" in stage.broken


def test_a_handle_that_is_given_twice_ends_the_channel() -> None:
    stage = opened(begun(), b"/x/a").user(opening(b"/x/b", 3)).target(request(wire.HANDLE, 3, S(b"h")))
    assert "in use" in stage.broken


def test_the_largest_packets_pass() -> None:
    stage = opened(begun(), b"/x/a", flags=WRITE_NEW)
    room = wire.PACKET_LIMIT - len(writing(b"h", 5, 0, b""))
    stage.user(writing(b"h", 5, 0, bytes(room)))
    assert not stage.broken and len(stage.up) == wire.PACKET_LIMIT
    stage.user(writing(b"h", 6, 0, bytes(room + 1)))
    assert stage.broken
