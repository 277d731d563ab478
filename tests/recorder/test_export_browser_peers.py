"""In a real browser: the exported page works from a disk and asks for nothing; asciinema's player plays both casts."""

from __future__ import annotations

import io
import json
from html import escape
from importlib.resources import files
from pathlib import Path

import pytest

from recorder.export import export_tape
from recorder.export_file import export_to
from recorder.export_options import ExportOptions
from recorder.reader import TapeReader
from tests.peers.browser import Visit, visit
from tests.recorder.stories import bad_intentions, one_of_everything, terminal_session

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]


def alone(found: Visit, page: Path) -> None:
    """Nothing but the page was asked for, and there was nothing to complain of."""
    assert found.requests == [page.as_uri()]
    assert found.said == []
    assert found.dialogs == []


def page_of(path: Path, out: Path, options: ExportOptions | None = None) -> Path:
    export_to(TapeReader(path), "html", out, options)
    return out


@pytest.mark.parametrize("look", ["light", "dark"])
def test_the_page_plays_and_its_list_seeks(tmp_path: Path, look: str) -> None:
    page = page_of(one_of_everything(tmp_path / "tapes"), tmp_path / "session.html")
    found = visit(
        page,
        [
            ("evaluate", "document.documentElement.dataset.look"),
            ("click", "#commands li:nth-child(2) button"),
            ("hides", "[DENIED]"),  # which the poster shows
            ("shows", "UPDATE orders SET status"),
            ("screen", None),
            ("evaluate", "document.querySelector('[aria-current=true] .label').textContent"),
            ("click", "#commands li:nth-child(4) button"),
            ("shows", "[DENIED] rule=r1: not today - not forwarded"),
            ("screen", None),
            ("click", "#commands li:nth-child(1) button"),
            ("hides", "[DENIED]"),
            ("shows", "shop-prod=> SELECT id, name, email"),
            ("evaluate", "document.querySelector('[aria-current=true] .label').textContent"),
        ],
        look=look,
    )
    alone(found, page)
    assert found.seen[0] == look
    assert "###@### masked:pii.email" in found.seen[4]
    assert "[approved]" not in found.seen[4]  # the screen of the moment, not of the end
    assert found.seen[5] == "Q2 UPDATE"
    assert "[approved] by mia@acme" in found.seen[8]
    assert found.seen[12] == "Q1 SELECT"


def test_search_filters_and_keys(tmp_path: Path) -> None:
    page = page_of(one_of_everything(tmp_path / "tapes"), tmp_path / "session.html")
    found = visit(
        page,
        [
            ("press", "/"),
            ("type", "orders refunded"),
            ("items", None),
            ("press", "ArrowDown"),
            ("press", "Enter"),
            ("shows", "UPDATE orders SET status"),
            ("hides", "DROP TABLE"),
            ("evaluate", "document.getElementById('search').value = ''; 0"),
            ("click", ".chips [data-outcome=deny]"),
            ("press", "/"),
            ("type", " "),
            ("items", None),
            ("type", "nothing of the kind"),
            ("items", None),
            ("count", "#nothing:not([hidden])"),
            ("click", "#look"),
            ("shows", "UPDATE orders SET status"),
            ("evaluate", "document.documentElement.dataset.look"),
        ],
        width=800,
    )
    alone(found, page)
    assert len(found.seen[2]) == 1
    assert "Q2 UPDATE" in found.seen[2][0]
    assert len(found.seen[11]) == 1
    assert "DROP TABLE orders;" in found.seen[11][0]
    assert found.seen[13] == []
    assert found.seen[14] == 1
    assert found.seen[17] == "dark"


def test_playing_runs_to_the_end(tmp_path: Path) -> None:
    page = page_of(
        one_of_everything(tmp_path / "tapes"), tmp_path / "session.html", ExportOptions(idle_limit_seconds=1)
    )
    last = "-- session closed: user left"  # the poster shows it, too
    found = visit(page, [("click", ".ap-overlay-start"), ("hides", last), ("shows", last), ("screen", None)])
    alone(found, page)
    assert "[DENIED]" in found.seen[3]


def test_hostile_text_does_nothing(tmp_path: Path) -> None:
    page = page_of(bad_intentions(tmp_path / "tapes"), tmp_path / "session.html")
    found = visit(
        page,
        [
            ("click", "#commands li:nth-child(3) button"),
            ("shows", "[DENIED]"),
            ("count", "script"),
            ("count", "img"),
            ("count", "[onmouseover], [onerror]"),
            ("evaluate", "document.title"),
            ("items", None),
        ],
    )
    alone(found, page)
    assert found.seen[2:5] == [3, 0, 0]
    assert "</script><script>alert(1)</script>" in found.seen[5]
    assert len(found.seen[6]) == 3


def test_the_page_of_a_terminal_session(tmp_path: Path) -> None:
    page = page_of(terminal_session(tmp_path / "tapes"), tmp_path / "session.html")
    found = visit(
        page, [("click", ".ap-overlay-start"), ("shows", "oops"), ("screen", None), ("count", "#commands li")]
    )
    alone(found, page)
    assert "root# ls\n€ done\ufffd\noops" in found.seen[2]
    assert found.seen[3] == 0


@pytest.mark.parametrize("version", [2, 3])
def test_asciinema_player_plays_the_casts(tmp_path: Path, version: int) -> None:
    out = io.StringIO()
    tape = TapeReader(one_of_everything(tmp_path / "tapes"))
    export_tape(tape, f"asciicast-v{version}", out, ExportOptions(idle_limit_seconds=0.2))
    script, style = (
        files("recorder").joinpath("player", f"asciinema-player.{kind}").read_text(encoding="utf-8")
        for kind in ("min.js", "css")
    )
    page = tmp_path / "plain.html"
    page.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><style>{style}</style>'
        f'<div id="here"></div><pre id="cast" hidden>{escape(out.getvalue())}</pre><script>{script}</script><script>'
        "const seen = []; const player = AsciinemaPlayer.create({data: document.getElementById('cast').textContent},"
        " document.getElementById('here'), {preload: true});"
        "player.addEventListener('marker', event => seen.push(event.label));"
        "player.addEventListener('input', event => seen.push(`typed ${event.data.trim()}`));"
        "player.addEventListener('ended', () => seen.push('ended'));</script>",
        encoding="utf-8",
    )
    found = visit(
        page,
        [
            ("click", ".ap-overlay-start"),
            ("shows", "-- session closed: user left"),
            ("screen", None),
            ("evaluate", "new Promise(done => { const wait = () => seen.includes('ended') ? done(JSON.stringify(seen)) "
                         ": setTimeout(wait, 50); wait(); })"),
            ("evaluate", "player.getDuration()"),
        ],
    )  # fmt: skip
    alone(found, page)
    screen, duration = found.seen[2], found.seen[4]
    assert "shop-prod=> DROP TABLE orders;\n[DENIED] rule=r1: not today - not forwarded" in screen
    assert "| 102 | 李雷" in screen
    seen = json.loads(found.seen[3])
    # The marker at 0 is where the player stands before it begins, so it is not told.
    markers = [word for word in seen if not word.startswith("typed")]
    assert markers[:5] == ["Q2 UPDATE", "HOLD Q2", "APPROVED mia@acme Q2", "Q3 SELECT", "ERROR 22012 Q3"]
    assert markers[5:] == ["Q4 DROP", "DENY Q4", "CLOSE", "ended"]
    assert "typed DROP TABLE orders;" in seen
    # The header's idle limit was heeded, and the intervals add up.
    assert duration == pytest.approx(0.0127 + 0.2 + 0.2 + 0.0031, abs=0.002)


@pytest.mark.parametrize("width", [360, 860, 861, 1400])
def test_the_page_leaves_no_gap_and_nothing_runs_over(tmp_path: Path, width: int) -> None:
    page = page_of(one_of_everything(tmp_path / "tapes"), tmp_path / "session.html")
    found = visit(
        page,
        [
            ("click", "#commands li:nth-child(2) button"),
            ("shows", "UPDATE orders SET status"),
            ("evaluate", "document.documentElement.scrollWidth - document.documentElement.clientWidth"),
            # Below the player, where the page is one column: its own margin and no more.
            ("evaluate", "document.getElementById('stage').getBoundingClientRect().bottom"
                         " - document.querySelector('.ap-player').getBoundingClientRect().bottom"),
            ("evaluate", "document.querySelector('.ap-player').getBoundingClientRect().height"),
            ("items", None),
        ],
        width=width,
    )  # fmt: skip
    alone(found, page)
    assert found.seen[2] == 0
    assert width > 860 or found.seen[3] < 30
    assert found.seen[4] > 120
    assert "values '101', NULL" in found.seen[5][1]
