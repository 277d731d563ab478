"""Every statement of the corpus is read as expected: verb, tables, WHERE, and whether something is hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.core.warehouse import Analysis, gravest
from proxy.policy.bigquery import analyse

CORPUS = Path(__file__).with_name("corpus")
FILES = ("bigquery_made.tsv", "bigquery_written.tsv", "bigquery_tricky.tsv")


def lines(name: str) -> list[list[str]]:
    text = (CORPUS / name).read_text()
    return [line.split("\t", 5) for line in text.splitlines() if line and not line.startswith("#")]


def summary(found: Analysis) -> list[str]:
    wheres = [statement.where for statement in found.statements if statement.where]
    worst = next((where for where in wheres if where != "present"), wheres[0] if wheres else "-")
    return [
        gravest([statement.verb for statement in found.statements]),
        ",".join(sorted(map(str, found.tables_read))) or "-",
        ",".join(sorted(map(str, found.tables_written))) or "-",
        worst,
        "opaque" if found.opaque else "-",
    ]


@pytest.mark.parametrize("name", FILES)
def test_the_corpus_is_read_as_expected(name: str) -> None:
    wrong = []
    for *expected, text in lines(name):
        found = summary(analyse(text.replace("\\n", "\n"), "proj", "main"))
        if found != expected:
            wrong.append(f"{text}\n  expected {expected}\n  found    {found}")
    assert not wrong, "\n".join(wrong[:20])


def test_the_corpus_is_large_and_varied() -> None:
    made = lines("bigquery_made.tsv")
    every = [line for name in FILES for line in lines(name)]
    assert len({text for *_, text in every}) >= 1_600
    assert {line[0] for line in every} >= {
        "read_rows", "write_rows", "destroy", "define", "grant", "export", "call", "inspect", "session", "UNKNOWN",
    }  # fmt: skip
    assert {line[3] for line in made} == {"none", "always_true", "present", "-"}


def test_a_statement_hidden_in_control_flow_is_the_same_statement() -> None:
    """Whatever a text does by itself, it does in each kind of block."""
    wrong = []
    for *_, text in lines("bigquery_made.tsv")[::7]:
        alone = analyse(text, "proj", "main")
        if alone.control or text.startswith("DECLARE"):
            continue
        for frame in ("BEGIN {}; END", "IF TRUE THEN SELECT 1; ELSE {}; END IF", "l: LOOP {}; END LOOP l",
                      "BEGIN SELECT 1; EXCEPTION WHEN ERROR THEN {}; END"):  # fmt: skip
            inside = analyse(frame.format(text), "proj", "main")
            if not set(alone.effects) <= set(inside.effects) or inside.opaque != alone.opaque:
                wrong.append(frame.format(text))
    assert not wrong, "\n".join(wrong[:10])
