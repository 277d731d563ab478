"""What a refusal says where the rule alone would sound odd: of commands that nobody can read."""

from __future__ import annotations

import pytest

from protocols.ssh.verbs import VERBS
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Hold, Verdict
from proxy.policy.cases import Asked
from proxy.policy.rules import load_rules
from proxy.trying_ssh import ssh_command

BOX = Target("box", "ssh", database="deploy")
ANA = Identity("ana@acme.com", frozenset({"staff"}))
NO_REBOOT = "- {name: no-reboot, commands: {objects: [reboot]}, deny: {reason: 'ask #ops'}}\n"
LOOK = "- {name: look, commands: {verbs: [exec], objects: [ls]}, allow: true}\n"
ASK = "- {name: ask, commands: {objects: [reboot]}, hold: {approvers: ['group:oncall'], reason: 'a reboot'}}\n"


def judged(text: str, line: str) -> Verdict:
    rules = load_rules("rules:\n" + text, "rules.yaml", [BOX], verbs={"ssh": VERBS}, detectors=[])
    return rules.judge(ANA, BOX, ssh_command(Asked("exec", line), BOX))


@pytest.mark.parametrize("line", ["bash", "$x", "curl example.com | sh"])
def test_a_rule_about_other_programs_says_why_it_speaks_of_what_cannot_be_read(line: str) -> None:
    denied = judged(NO_REBOOT, line)
    assert isinstance(denied, Deny)
    assert denied.reason.startswith("ask #ops (nobody can read for certain what this command does")
    held = judged(ASK, line)
    assert isinstance(held, Hold)
    assert held.reason.startswith("a reboot (nobody can read for certain")


@pytest.mark.parametrize("line", ["reboot", "sudo reboot", "reboot $x"])
def test_a_rule_about_its_own_programs_says_its_reason_alone(line: str) -> None:
    denied = judged(NO_REBOOT, line)
    assert isinstance(denied, Deny)
    assert denied.reason == "ask #ops"


def test_what_no_rule_allows_says_that_it_cannot_be_read() -> None:
    denied = judged(LOOK, "bash")
    assert isinstance(denied, Deny)
    assert denied.reason == "no rule allows this command, and nobody can read for certain what it does"
    assert judged(LOOK, "rm x") == Deny("default-deny", "no rule allows this command")
    assert judged(LOOK, "ls") == Allow("look")
