"""Rules about what is asked over SSH: objects, conditions, logins, and cases of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.ssh.verbs import VERBS
from proxy.core.errors import ConfigError
from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Hold, Verdict
from proxy.policy.cases import Asked, read_cases, run_cases
from proxy.policy.conditions import Scene, compile_condition
from proxy.policy.rules import RuleSet, load_rules
from proxy.trying_ssh import ssh_command

BOX = Target("box", "ssh", database="deploy")
ANA = Identity("ana@acme.com", frozenset({"staff"}))


def rules(text: str) -> RuleSet:
    return load_rules("rules:\n" + text, "rules.yaml", [BOX], verbs={"ssh": VERBS}, detectors=["email"])


def exec_(text: str) -> Command:
    return ssh_command(Asked("exec", text), BOX)


def verdict(text: str, command: Command, login: str = "deploy") -> type[Verdict]:
    return type(rules(text).judge(ANA, replace(BOX, database=login), command))


LOOK = "- {name: look, commands: {verbs: [exec, line], objects: [ls, git, sudo]}, allow: true}\n"


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("ls -l", True), ("ls | git log", True), ("/usr/bin/git log", True), ("sudo ls", True),
        ("ls; rm x", False), ("/tmp/ls", False), ("./git", False), ("$x", False), ("ls $(rm x)", False),
        ("sh -c ls", False), ("", False),
        ("eval ls", False), ("PATH=/tmp ls", False), ("x=1", False), ("ls 'a", False),
    ],
)  # fmt: skip
def test_an_allow_needs_all_programs(line: str, allowed: bool) -> None:
    assert verdict(LOOK, exec_(line)) is (Allow if allowed else Deny)


@pytest.mark.parametrize(
    "line", ["rm x", "ls; rm x", "/tmp/rm x", "sudo rm x", "xargs rm", "$x", "ls | sh", "find . -exec rm {} +"]
)
def test_a_deny_needs_one_program_or_none_that_can_be_read(line: str) -> None:
    text = "- {name: all, commands: {opaque: true}, allow: true}\n- {name: no, commands: {objects: [rm]}, deny: true}\n"
    assert verdict(text, exec_(line)) is Deny
    assert verdict(text, exec_("ls rm")) is Allow


def test_patterns_of_paths_match_slashes() -> None:
    text = "- {name: up, commands: {verbs: [file-write], objects: ['/srv/*']}, allow: true}\n"
    for path, allowed in (("/srv/a", True), ("/srv/a/b", True), ("/srv", False), ("/etc/passwd", False)):
        assert verdict(text, ssh_command(Asked("file-write", paths=(path,)), BOX)) is (Allow if allowed else Deny)
    both = Asked("file-rename", paths=("/srv/a", "/etc/b"))
    assert verdict(text.replace("file-write", "file-rename"), ssh_command(both, BOX)) is Deny


def test_forwards_by_destination() -> None:
    text = "- {name: db, commands: {verbs: [direct-tcpip], objects: ['db:5432', '[[]::1]:80']}, allow: true}\n"
    for place, allowed in (("db:5432", True), ("[::1]:80", True), ("db:22", False), ("/run/x.sock", False)):
        assert verdict(text, ssh_command(Asked("forward", place), BOX)) is (Allow if allowed else Deny)
    assert verdict(text, ssh_command(Asked("listen", "db:5432"), BOX)) is Deny


def test_agents_need_their_verb_and_opaque() -> None:
    agent = Command("ssh", "auth-agent", "admin", "agent", facts={"opaque": True})
    assert verdict("- {name: a, allow: true}\n", agent) is Deny
    assert verdict("- {name: a, commands: {verbs: [auth-agent], opaque: true}, allow: true}\n", agent) is Allow


def test_logins_are_another_word_for_databases() -> None:
    text = "- {name: a, on: {logins: [deploy, 'app-*']}, commands: {verbs: [exec]}, allow: true}\n"
    assert [verdict(text, exec_("ls"), login) for login in ("deploy", "app-1", "root")] == [Allow, Allow, Deny]
    assert "on.logins: 'root'" in rules(text).explain(ANA, replace(BOX, database="root"), exec_("ls"))[0].reason
    with pytest.raises(ConfigError, match="say one of them"):
        rules("- {name: a, on: {logins: [x], databases: [y]}, allow: true}\n")


def test_a_deny_of_a_login_denies_connecting() -> None:
    connect = Command("ssh", "CONNECT", "session", "connect", facts={"login": "root"})
    allow = "- {name: a, allow: true}\n"
    deny = "- {name: no, when: \"ssh.login == 'root'\", deny: true}\n"
    assert [verdict(allow + deny, connect, login) for login in ("root", "deploy")] == [Deny, Allow]
    about_commands = "- {name: no, when: 'shell.opaque || ssh.pty || file.via == \"scp\"', deny: true}\n"
    assert verdict(allow + about_commands, connect) is Allow


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("shell.programs == ['ls', '/opt/x', 'x'] && !shell.opaque && shell.why == ''", Asked("exec", "ls; /opt/x")),
        ("shell.commands == ['git push', 'wc <?>']", Asked("exec", "/usr/bin/git push | wc $x")),
        ("shell.writes == ['/x'] && shell.reads == ['y']", Asked("exec", "cat <y >/x 2>/dev/null")),
        ("shell.opaque && shell.why != ''", Asked("exec", "$x")),
        ("ssh.login == 'deploy' && ssh.how == 'both' && !command.exact", Asked("line", "ls")),
        ("ssh.pty && command.verb == 'shell'", Asked("shell", pty=True)),
        ("ssh.subsystem == 'sftp' && command.kind == 'transfer'", Asked("subsystem", "sftp")),
        ("ssh.host == 'db' && ssh.port == 5432 && file.path == ''", Asked("forward", "db:5432")),
        ("ssh.path == '/run/x' && file.path == ''", Asked("forward", "/run/x")),
        ("file.path == '/a' && file.paths == ['/a', '/b'] && ssh.path == ''", Asked("file-rename", paths=("/a", "/b"))),
        ("file.via == 'sftp' && file.flags.contains('create')", Asked("file-write", paths=("/a",))),
        ("ssh.env == {} && shell.programs == []", Asked("file-read", paths=("/a",))),
        ("command.kind == 'transfer'", Asked("exec", "git-upload-pack '/srv/x'")),
        ("command.kind == 'execute'", Asked("exec", "/tmp/git-upload-pack '/srv/x'")),
        ("command.kind == 'execute'", Asked("exec", "git-upload-pack '/srv/x'; ls")),
    ],
)
def test_what_conditions_see(source: str, asked: Asked) -> None:
    scene = Scene(ANA, BOX, ssh_command(asked, BOX), 0.0)
    assert compile_condition(source).holds(scene)
    assert not compile_condition(f"!({source})").holds(scene)


async def decided(found: RuleSet, command: Command) -> Verdict:
    return await found.decide(ANA, BOX, command)


def test_the_cache_tells_lines_apart() -> None:
    import asyncio

    text = (
        "- {name: a, commands: {verbs: [exec]}, when: \"shell.commands == ['ls a'] && ssh.env == {}\", allow: true}\n"
    )
    found = rules(text)
    one, other = exec_("ls a"), exec_("ls b")
    more = replace(one, facts={**one.facts, "env": {"LANG": "C"}})
    for _ in range(2):
        verdicts = [asyncio.run(decided(found, command)) for command in (one, other, more)]
        assert [type(each) for each in verdicts] == [Allow, Deny, Deny]
    assert len(found._decisions) == 3


CASES = """
cases:
  - {name: a, identity: {subject: a}, target: box, exec: ls -l, expect: allow, rule: look}
  - {name: b, identity: {subject: a}, target: box, line: ls; rm x, expect: deny}
  - {name: c, identity: {subject: a}, target: box, login: root, connect: true, expect: allow}
  - {name: d, identity: {subject: a}, target: box, file: {rename: [/a, /b]}, expect: hold}
  - {name: e, identity: {subject: a}, target: box, shell: true, expect: deny}
  - {name: f, identity: {subject: a}, target: box, forward: "db:22", expect: deny}
  - {name: g, identity: {subject: a}, target: box, subsystem: sftp, expect: deny}
  - {name: h, identity: {subject: a}, target: box, listen: /run/x, expect: deny}
"""
HOLD = "- {name: wait, commands: {verbs: [file-rename]}, hold: {approvers: [x]}}\n"


def test_cases_of_ssh() -> None:
    results = run_cases(read_cases(CASES, "cases.yaml", [BOX]), rules(LOOK + HOLD), exec_, ssh_command)
    assert [(each.case.name, each.problems) for each in results] == [(name, ()) for name in "abcdefgh"]
    assert results[3].verdict == "hold" and Hold is not Deny


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("exec: ls, line: ls", "needs one of exec, line"),
        ("sql: SELECT 1", "needs one of exec, line"),
        ("file: {reed: /x}", "did you mean 'read'"),
        ("file: {read: x}", "must be absolute"),
        ("file: {}", "file needs one of"),
        ("shell: false", "shell: false is no case"),
        ("exec: ls, login: a, database: b", "say one of them"),
    ],
)
def test_mistakes_in_cases_of_ssh(case: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_cases(
            f"cases:\n- {{name: c, identity: {{subject: a}}, target: box, expect: deny, {case}}}", "c.yaml", [BOX]
        )


@pytest.mark.parametrize(
    "asked", [Asked("forward", "db"), Asked("exec", "a\0b"), Asked("jump"), Asked("forward", "a:99999")]
)
def test_what_cannot_be_asked(asked: Asked) -> None:
    with pytest.raises(ConfigError):
        ssh_command(asked, BOX)
