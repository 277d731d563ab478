"""The old scp protocol as written conversations, in both directions."""

from __future__ import annotations

import hashlib

import pytest

from protocols.ssh import scp
from protocols.ssh.scp import scp_content
from protocols.ssh.transfers import FILE_VERBS
from proxy.core.events import Command
from proxy.terminal.content import Settings
from tests.ssh.sftp_stage import Stage

DENIED = b'\1gatecast: denied by rule "no-etc": not for you: '


def channel(argv: str, **more: object) -> Stage:
    content = scp_content(argv, Settings(7, "box", "alice", **more))  # type: ignore[arg-type]
    assert content is not None
    return Stage(content)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- upload ---------------------------------------------------------------------------------------------


def test_an_upload_is_a_command_and_a_record() -> None:
    stage = channel("scp -p -t /srv/")
    stage.target(b"\0").user(b"T17 0 18 0\n").target(b"\0").user(b"C0640 5 app\n").target(b"\0")
    stage.user(b"hel", b"lo\0").target(b"\0")
    assert stage.up == b"T17 0 18 0\nC0640 5 app\nhello\0" and stage.down == b"\0" * 4
    assert stage.up_untaped == b"hello"
    command = stage.commands[0]
    assert (command.verb, command.kind, command.objects) == ("file-write", "write", ("/srv/app",))
    assert command.text == "file-write /srv/app (5 bytes)"
    assert command.facts["via"] == "scp" and command.facts["resolved"] is False and command.flow == 7
    assert stage.results[0].tag == "file-write /srv/app"
    details = dict(stage.results[0].details)
    assert details.pop("seconds") == 0
    assert details == {
        "flow": 7, "path": "/srv/app", "direction": "upload", "size": 5, "complete": True, "in_order": True,
        "sha256": sha(b"hello"),
    }  # fmt: skip


def test_nothing_of_an_undecided_file_passes() -> None:
    stage = channel("scp -t /srv")
    stage.decide = lambda command: None
    stage.target(b"\0").user(b"C0640 5 app\nC12\no\0")
    assert stage.up == b"" and not stage.broken and len(stage.asks) == 1
    stage.do(stage.content.waiting(stage.asks[0], "held"))
    assert stage.err.startswith(b"gatecast: held: file-write /srv (or /srv/app)")
    stage.allow(stage.asks[0])
    assert stage.up == b"C0640 5 app\n", "the body passed before the target took the file"
    stage.target(b"\0")
    assert stage.up == b"C0640 5 app\nC12\no\0" and not stage.broken


def test_a_refused_upload_is_skipped() -> None:
    stage = channel("scp -r -t /srv")
    stage.decide = lambda command: "secret" not in command.text
    stage.target(b"\0").user(b"C0640 5 secret\n")
    assert stage.down == b"\0" + DENIED + b"file-write /srv (or /srv/secret) (5 bytes)\n" and stage.up == b""
    stage.user(b"D0755 0 secrets\n", b"C0640 2 ok\n").target(b"\0").user(b"ok\0").target(b"\0")
    assert stage.up == b"C0640 2 ok\nok\0"
    assert [result.details["path"] for result in stage.results] == ["/srv"]


def test_directories_are_commands_and_paths_follow_them() -> None:
    stage = channel("scp -r -d -t -- /srv")
    stage.target(b"\0").user(b"D0755 0 a\n").target(b"\0").user(b"D0755 0 b\n").target(b"\0")
    stage.user(b"C0644 0 f\n").target(b"\0").user(b"\0").target(b"\0")
    stage.user(b"E\n").target(b"\0").user(b"C0644 0 g\n").target(b"\0").user(b"\0").target(b"\0")
    stage.user(b"E\n").target(b"\0")
    assert [(command.verb, command.objects) for command in stage.commands] == [
        ("file-mkdir", ("/srv/a",)),
        ("file-mkdir", ("/srv/a/b",)),
        ("file-write", ("/srv/a/b/f",)),
        ("file-write", ("/srv/a/g",)),
    ]
    assert [result.tag for result in stage.results] == ["ok", "ok", "file-write /srv/a/b/f", "file-write /srv/a/g"]
    assert all(command.kind == FILE_VERBS[command.verb] for command in stage.commands)


def test_what_the_target_refuses_is_recorded_so() -> None:
    stage = channel("scp -t /srv")
    stage.target(b"\0").user(b"C0640 5 app\n").target(b"\1scp: /srv/app: Permission denied\n")
    assert stage.results[0].error == {"message": "scp: /srv/app: Permission denied"}
    assert stage.results[0].details["complete"] is False
    stage.user(b"C0640 3 two\n").target(b"\0").user(b"two\0").target(b"\1scp: disk full\n")
    assert stage.results[1].error == {"message": "scp: disk full"} and stage.results[1].details["complete"] is False
    assert stage.up == b"C0640 5 app\nC0640 3 two\ntwo\0"


def test_a_file_that_its_giver_could_not_read_has_no_hash() -> None:
    stage = channel("scp -t /srv")
    stage.target(b"\0").user(b"C0640 3 app\n").target(b"\0").user(b"abc\1I/O error\n").target(b"\0")
    details = stage.results[0].details
    assert "sha256" not in details and details["complete"] is False
    assert stage.results[0].error == {"message": "I/O error"}


def test_a_channel_that_closes_in_the_middle_is_recorded() -> None:
    stage = channel("scp -t /srv")
    stage.target(b"\0").user(b"C0640 5 app\n").target(b"\0").user(b"he")
    stage.end()
    assert (stage.results[0].details["size"], stage.results[0].details["complete"]) == (2, False)
    stage.end()
    assert len(stage.results) == 1


# -- download -------------------------------------------------------------------------------------------


def test_a_download_is_a_command_and_a_record() -> None:
    stage = channel("scp -f /srv/app")
    stage.user(b"\0").target(b"C0640 5 app\n").user(b"\0").target(b"hello", b"\0").user(b"\0")
    assert stage.down == b"C0640 5 app\nhello\0" and stage.up == b"\0\0\0" and stage.down_untaped == b"hello"
    assert (stage.commands[0].verb, stage.commands[0].objects) == ("file-read", ("/srv/app",))
    details = dict(stage.results[0].details)
    assert details.pop("seconds") == 0
    assert details == {
        "flow": 7, "path": "/srv/app", "direction": "download", "size": 5, "complete": True, "in_order": True,
        "sha256": sha(b"hello"),
    }  # fmt: skip


def test_an_answer_ahead_of_its_question_lets_nothing_pass() -> None:
    stage = channel("scp -f /srv/app")
    stage.decide = lambda command: None
    stage.user(b"\0\0\0\0").target(b"C0640 5 app\n")
    assert stage.up == b"\0" and stage.down == b""
    stage.target(b"hello\0")
    stage.refuse(stage.asks[0])
    assert b"hello" not in stage.down
    assert stage.gate_up.startswith(DENIED)


def test_a_refused_download_is_skipped_by_the_target_and_told_to_the_user() -> None:
    stage = channel("scp -r -f /srv/*")
    stage.decide = lambda command: "secret" not in command.text
    stage.user(b"\0").target(b"C0640 5 secret\n")
    assert stage.gate_up == DENIED + b"file-read /srv/secret (5 bytes)\n" == stage.down
    stage.target(b"D0755 0 secrets\n").target(b"C0640 2 ok\n").user(b"\0").target(b"ok\0").user(b"\0")
    assert stage.down.endswith(b"C0640 2 ok\nok\0") and stage.up == b"\0\0\0"
    assert [result.tag for result in stage.results] == ["file-read /srv/ok"]


def test_directories_of_a_download_are_listed() -> None:
    stage = channel("scp -rf srv")
    stage.user(b"\0").target(b"D0755 0 srv\n").user(b"\0").target(b"C0644 0 f\n").user(b"\0").target(b"\0").user(b"\0")
    stage.target(b"E\n").user(b"\0")
    assert [(command.verb, command.objects) for command in stage.commands] == [
        ("file-list", ("/home/alice/srv", "~/srv")),
        ("file-read", ("/home/alice/srv/f", "~/srv/f")),
    ]
    assert len(stage.results) == 2 and stage.results[1].details["complete"] is True


@pytest.mark.parametrize(
    "line",
    [b"C0644 5 ../x\n", b"C0644 5 /etc/x\n", b"C0644 5 ..\n", b"C0644 5 .\n", b"D0755 0 a/b\n", b"C0644 5 evil\n"],
)
def test_names_that_were_not_asked_for_are_refused(line: bytes) -> None:
    """CVE-2019-6111."""
    stage = channel("scp -r -f x b* .*")
    stage.user(b"\0").target(line)
    assert not stage.commands and stage.gate_up == stage.down and stage.down.startswith(b"\1gatecast: ")
    stage.target(b"D0755 0 x\n").user(b"\0").target(line)
    assert [command.objects[0] for command in stage.commands[1:]] == (["/home/alice/x/evil"] if b"evil" in line else [])


@pytest.mark.parametrize("name", [b"..", b".", b"../x", b"a/b", b"a\0b"])
def test_names_that_leave_their_directory_are_refused_on_the_way_up_too(name: bytes) -> None:
    stage = channel("scp -r -t /srv").target(b"\0").user(b"C0644 5 " + name + b"\n")
    assert not stage.commands and not stage.up and stage.down == b"\0\1gatecast: unexpected filename\n"


def test_errors_of_the_target_pass() -> None:
    stage = channel("scp -f nothing a")
    stage.user(b"\0").target(b"\1scp: nothing: No such file or directory\n", b"C0644 1 a\n")
    assert stage.down == b"\1scp: nothing: No such file or directory\nC0644 1 a\n" and len(stage.commands) == 1


def test_what_a_shell_says_at_the_end_is_shown() -> None:
    stage = channel("scp -t /srv").target(b"This account is not available")
    assert stage.down == b""
    stage.do(stage.content.target_eof(0.0))
    assert stage.down == b"This account is not available"


def test_contents_are_on_the_tape_where_they_are_asked_for() -> None:
    stage = channel("scp -f /srv/a.sql", record_contents=("/srv/*.sql",))
    stage.user(b"\0").target(b"C0640 5 a.sql\n").user(b"\0").target(b"hello", b"\0").user(b"\0")
    assert not stage.down_untaped and len(stage.results) == 1


# -- limits and garbage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"hello\n", b"C0644 x a\n", b"C9644 1 a\n", b"C0644 1 \n", b"C644 1 a\n", b"E\n", b"Tx\n", b"\n",
     b"C0644 %d a\n" % 10**19, b"x" * (scp.LINE_LIMIT + 1)],
)  # fmt: skip
def test_lines_that_nobody_knows_end_the_channel(data: bytes) -> None:
    stage = channel("scp -t /srv").target(b"\0").user(data)
    assert stage.broken.startswith("gatecast: scp: ") and not stage.up
    stage.user(b"C0644 1 a\n")
    assert not stage.commands


def test_the_longest_line_passes() -> None:
    name = b"n" * (scp.LINE_LIMIT - len(b"C0644 1 \n"))
    assert len(channel("scp -t /srv").target(b"\0").user(b"C0644 1 " + name + b"\n").commands) == 1
    assert channel("scp -t /srv").target(b"\0").user(b"C0644 1 n" + name + b"\n").broken


def test_a_body_longer_than_announced_ends_the_channel() -> None:
    stage = channel("scp -t /srv").target(b"\0").user(b"C0644 2 a\n").target(b"\0").user(b"abc\n")
    assert "longer" in stage.broken


def test_what_is_sent_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scp, "AHEAD_LIMIT", 100)
    stage = channel("scp -t /srv").user(b"x" * 100)
    assert not stage.broken
    assert "ahead" in stage.user(b"x").broken


def test_directories_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scp, "DEPTH_LIMIT", 2)
    stage = channel("scp -r -t /srv").target(b"\0")
    for _ in range(2):
        stage.user(b"D0755 0 d\n").target(b"\0")
    assert not stage.broken
    assert stage.user(b"D0755 0 d\n").broken


# -- the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    ["ls", "scp", "scp a b", "scp -t", "scp -t a b", "scp -t -f a", "scp -z -t a", "cat; scp -t a", "env scp -t a",
     "scpx -t a", "$SCP -t a", ""],
)  # fmt: skip
def test_what_is_no_scp_call_is_not_decoded(argv: str) -> None:
    assert scp_content(argv, Settings(0)) is None


def upload_objects(argv: str) -> Command:
    return channel(argv).target(b"\0").user(b"C0644 1 f\n").commands[0]


@pytest.mark.parametrize(
    ("argv", "objects", "opaque"),
    [
        ("scp -t /srv/x", ("/srv/x", "/srv/x/f"), False),
        ("/usr/bin/scp -v -t /srv/x/", ("/srv/x/f",), False),
        ("scp -dt /srv/../etc", ("/etc/f",), False),
        ("scp -t '/a b'\"c d\"\\ e/", ("/a bc d e/f",), False),
        ("scp -d -t x", ("/home/alice/x/f", "~/x/f"), False),
        ("scp -t .", ("/home/alice/f", "~/f"), False),
        ("scp -t ~", ("/home/alice/f", "~/f"), False),
        ("scp -d -t ~/x", ("/home/alice/x/f", "~/x/f"), False),
        ("scp -d -t ~root/x", ("/root/x/f", "~root/x/f"), False),
        ("scp -d -t ../../etc", ("/etc/f",), False),
        ("scp -d -t '~'/x", ("/home/alice/~/x/f", "~/~/x/f"), False),
        ("scp -q -r -p -d -t -- -x", ("/home/alice/-x/f", "~/-x/f"), False),
        ("scp -d -t /et?", ("/et?/f",), True),
        ("scp -d -t '/et?'", ("/et?/f",), False),
        ("scp -d -t /$X/etc", ("/$X/etc/f",), True),
        ("scp -d -t \"/$X\"", ("/$X/f",), True),
        ("scp -d -t /{etc,x}", ("/{etc,x}/f",), True),
        ("scp -d -t /x; cat > /etc/y", ("/x; cat > /etc/y/f",), True),
        ("scp -d -t 'unterminated", ("/home/alice/unterminated/f", "~/unterminated/f"), True),
    ],
)  # fmt: skip
def test_where_an_upload_goes(argv: str, objects: tuple[str, ...], opaque: bool) -> None:
    command = upload_objects(argv)
    assert command.objects == objects
    assert bool(command.facts.get("opaque")) == opaque


@pytest.mark.parametrize(
    ("argv", "objects", "opaque"),
    [
        ("scp -f /srv/f", ("/srv/f",), False),
        ("scp -f '/srv/f'", ("/srv/f",), False),
        ("scp -f /srv/f*", ("/srv/f",), False),
        ("scp -f /srv/[a-f]", ("/srv/f",), False),
        ("scp -f /a/f /b/? /c/x", ("/a/f", "/b/f"), False),
        ("scp -f f", ("/home/alice/f", "~/f"), False),
        ("scp -f /*/f", ("/*/f/f",), True),
        ("scp -f $(echo /etc/f)", ("/home/alice/$(echo /etc/f)/f", "~/$(echo /etc/f)/f"), True),
    ],
)  # fmt: skip
def test_where_a_download_comes_from(argv: str, objects: tuple[str, ...], opaque: bool) -> None:
    command = channel(argv).user(b"\0").target(b"C0644 1 f\n").commands[0]
    assert command.objects == objects
    assert bool(command.facts.get("opaque")) == opaque


@pytest.mark.parametrize("argv", ["scp -f /srv/g", "scp -f '/srv/*g'", "scp -f '/srv/\\*'", "scp -f '/srv/f'\\*"])
def test_patterns_are_those_of_the_shell(argv: str) -> None:
    stage = channel(argv).user(b"\0").target(b"C0644 1 f\n")
    quoted_star = argv.endswith("*")
    assert not stage.commands and (b"not asked for" in stage.down or quoted_star)
