"""A real browser as a peer: headless Chromium, led by playwright-core in node (tests/peers/node/browser.mjs)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.postgres import PeerMissing, need

FOLDER = Path(__file__).parent / "node"
Step = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Visit:
    """What happened: the answer to each step; every request and word on the console; dialogs that opened."""

    seen: list[Any]
    requests: list[str]
    said: list[str]
    dialogs: list[str]


def visit(page: Path, steps: Sequence[Step], *, look: str = "light", width: int = 1400) -> Visit:
    """Open a file and take the steps: click, press, type, shows, hides, screen, items, count, evaluate, screenshot."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        need(PeerMissing("Chromium is missing: apt-get install chromium"))
    if shutil.which("node") is None or not (FOLDER / "node_modules" / "playwright-core").exists():
        need(PeerMissing("playwright-core is missing: make test installs it (npm)"))
    job = {"url": page.absolute().as_uri(), "chromium": chromium, "look": look, "width": width, "steps": list(steps)}
    ran = subprocess.run(
        ["node", "browser.mjs"],
        cwd=FOLDER,
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = Visit(**json.loads(ran.stdout))
    assert not (found.seen and str(found.seen[-1]).startswith("FAILED")), (found.seen[-1], found.said)
    return found
