"""The key ``fields`` of masks: masks of Kubernetes documents in rule files."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.core.errors import ConfigError
from proxy.core.verdict import Allow, Mask
from proxy.masking import Masking
from proxy.policy.rules import RuleSet, load_rules
from tests.policy.test_kube_rules import ANA, BOB, PROD, SHOP, VERBS, kube

MASKING = Masking(b"k" * 32)
ALLOW = "- {name: all, allow: true}\n"


def rules(text: str) -> RuleSet:
    found: dict[str, Any] = {"verbs": VERBS, "detectors": MASKING.detectors, "check_mask": MASKING.check}
    return load_rules("rules:\n" + text, "rules.yaml", [PROD, SHOP], **found)


def test_fields_reach_the_verdict() -> None:
    loaded = rules(
        ALLOW + "- name: hide\n  who: {groups: [staff]}\n  on: {targets: [prod]}\n"
        "  mask: [{fields: ['secrets:data.*', '*:*env.*PASSWORD*'], detectors: [email], action: constant, text: x}]\n"
    )
    verdict = asyncio.run(loaded.decide(ANA, PROD, kube("get", "secrets", "dev", "db")))
    assert isinstance(verdict, Allow)
    assert verdict.masks == (
        Mask("hide", detectors=("email",), action="constant", text="x", fields=("secrets:data.*", "*:*env.*PASSWORD*")),
    )
    free = asyncio.run(loaded.decide(BOB, PROD, kube("get", "secrets", "dev", "db")))
    assert isinstance(free, Allow) and free.masks == ()


def test_two_rules_that_mask_other_fields_are_not_twins() -> None:
    loaded = rules(ALLOW + "- {name: a, mask: [{fields: ['x:y']}]}\n- {name: b, mask: [{fields: ['x:z']}]}\n")
    verdict = asyncio.run(loaded.decide(ANA, PROD, kube("get", "pods", "dev", "web")))
    assert isinstance(verdict, Allow)
    assert [mask.fields for mask in verdict.masks] == [("x:y",), ("x:z",)]


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        ("{fields: []}", "empty list"),
        ("{fields: secrets}", "must be a list"),
        ("{fields: [secrets]}", "not resource:path"),
        ("{fields: ['Secrets:data']}", "must be like pods"),
        ("{fields: ['secret:data']}", "write 'secrets'"),
        ("{fields: ['pods:spec.containers[0].env']}", "without the indexes"),
        ("{field: ['secrets:data']}", "unknown key 'field'"),
        ("{action: redact}", "nor fields"),
    ],
)
def test_mistakes_are_told_with_their_line(mask: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rules(ALLOW + f"- name: hide\n  mask:\n    - {mask}\n")
    assert "rules.yaml:5" in str(caught.value) or "line 5" in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize("on", ["targets: [shop]", "protocols: [postgres]"])
def test_fields_are_of_kubernetes_alone(on: str) -> None:
    with pytest.raises(ConfigError, match="fields are of Kubernetes"):
        rules(ALLOW + f"- name: hide\n  on: {{{on}}}\n  mask: [{{fields: ['secrets:data.*']}}]\n")
