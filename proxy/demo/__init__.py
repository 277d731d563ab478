"""``gatecast demo``: real, unmodified psql and ssh at work through the gateway, in front of real servers.

How: a PostgreSQL from a wheel (shop.py), an SSH server (box.py), the gateway as ``gatecast serve`` in a process of its
own (house.py), psql on a terminal of its own (console.py), and the steps with their checks (story.py). Everything is in
one folder, a temporary one, or .gatecast/demo with --keep, and every process is stopped at the end, however the demo
ends.

Exit codes: 0 every step gave what it should; 1 one did not, or the demo cannot run here (the text says what to
install); 130 interrupted.

Left out: shells; what a terminal shows is in the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from proxy.core.errors import GatecastError
from proxy.demo.box import Box, open_box
from proxy.demo.console import Console, StepError, terminal
from proxy.demo.house import House, open_house, write_env
from proxy.demo.shop import Shop, open_shop
from proxy.demo.story import STEPS, Psql, Story, find_psql
from recorder.cli import list_sessions

KEPT: Final = Path(".gatecast/demo")
_TRY: Final = """\

Everything is running. To try it, in a second terminal:

  cd {folder} && . ./env       the folder is in PATH, psql knows where to go
  {psql}

    SELECT * FROM customers;                            masked
    UPDATE orders SET status = 'lost' WHERE id = 4;     held; Ctrl-C takes it back
    DELETE FROM orders;                                 denied

  {ssh} box ls -l reports                     allowed; rm is denied, a shell too

and in a third one:

  cd {folder} && . ./env
  gatecast approvals list
  GATECAST_TOKEN=$APPROVER gatecast approvals approve ap_...
  gatecast sessions list
  gatecast replay {session}
  gatecast verify

rules.yaml can be edited while it runs: the next command meets the new rules.
Ctrl-C here stops everything.
"""


def main(options: Namespace) -> int:
    """Run the demo; options: keep, json."""
    console = Console(None if options.json else sys.stdout)
    began = time.monotonic()
    steps: list[dict[str, Any]] = []
    failure = ""
    try:
        with _stopping(), _folder(options.keep) as folder:
            failure = _run(console, folder, options.keep, steps)
    except GatecastError as error:
        if not options.json:
            console.end("")
            raise
        failure = str(error)
    seconds = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps({"ok": not failure, "seconds": seconds, "failure": failure or None, "steps": steps}, indent=2))
    elif not failure and not options.keep:
        console.end("")
        console.say(
            f"All {len(steps)} steps gave what they should, in {seconds} s. gatecast demo --keep stays to be tried."
        )
    return 1 if failure else 0


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Make SIGTERM and a closed terminal stop everything as Ctrl-C does; the second signal waits for that."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    first = iter([True])

    def interrupt(number: int, frame: FrameType | None) -> None:
        if next(first, False):  # stopping takes a bounded time, and nothing may be left behind
            raise KeyboardInterrupt

    before = [signal.signal(one, interrupt) for one in signals]
    try:
        yield
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)


@contextlib.contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    if keep:
        yield KEPT.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="gatecast-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(console: Console, folder: Path, keep: bool, steps: list[dict[str, Any]]) -> str:
    """Everything between the folder's making and its end; returns what failed, '' if nothing did."""
    count = len(STEPS) + 1
    console.step(1, count, "A PostgreSQL with a small shop in it, a machine, and the gateway in front")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        console.begin("starting PostgreSQL")
        shop = stack.enter_context(open_shop())
        console.end(f"{shop.version} on 127.0.0.1:{shop.port}, as {shop.runs_as}, {time.monotonic() - began:.1f} s")
        box = stack.enter_context(open_box())
        console.begin("starting gatecast serve")
        house = stack.enter_context(open_house(folder, shop, box))
        console.end(f"port {house.tls_port}, {house.plain_port} without TLS on loopback, and {house.ssh_port} for ssh")
        psql = find_psql(shop, house)
        console.say(
            "Only the gateway knows the database's password and the machine's key.\n"
            f"psql {psql.version} is as it was installed. All of the rest is in one folder:"
        )
        console.typed(f"cd {folder}; export PGPASSWORD=<the agent's token>")
        steps.append({"name": "started", "seconds": round(time.monotonic() - began, 1), "ok": True})
        story = stack.enter_context(_story(console, shop, box, house, psql))
        failure = _tell(story, steps)
        if failure:
            console.bad(failure)
            console.say("the gateway's log ends with:\n" + "\n".join(house.log.splitlines()[-8:]))
        elif keep:
            _stay(console, story)
    return failure


@contextlib.contextmanager
def _story(console: Console, shop: Shop, box: Box, house: House, psql: Psql) -> Iterator[Story]:
    command = [psql.program, "-X", "-n", psql.conninfo]
    with terminal(console, command, house.folder, {**house.environment, "TERM": "dumb"}) as opened:
        story = Story(console, shop, house, psql, opened, box)
        story.known.update(str(row["sid"]) for row in list_sessions(story.tapes))
        yield story


def _tell(story: Story, steps: list[dict[str, Any]]) -> str:
    """Run the steps; returns what failed, '' if nothing did."""
    for number, (title, step) in enumerate(STEPS, start=2):
        story.console.step(number, len(STEPS) + 1, title)
        began, before = time.monotonic(), len(story.checks)
        failure = ""
        try:
            step(story)
        except StepError as error:
            failure = str(error)
        steps.append(
            {"name": step.__name__, "seconds": round(time.monotonic() - began, 1), "ok": not failure}
            | {"checks": story.checks[before:]}
            | ({"failed": failure} if failure else {})
        )
        if failure:
            return failure
    return ""


def _stay(console: Console, story: Story) -> None:
    """Say what to try, and wait for Ctrl-C or for the end of what runs."""
    write_env(story.house, story.psql.parameters)
    folder = os.path.relpath(story.house.folder)
    ssh = "ssh -F ssh_config" if shutil.which("ssh") else "demo-ssh"
    console.raw(_TRY.format(folder=folder, psql=story.psql.program, ssh=ssh, session=story.session[:10]))
    with contextlib.suppress(KeyboardInterrupt):
        while story.house.process.poll() is None and story.shop.process.poll() is None:
            time.sleep(0.2)
        console.bad("the gateway or PostgreSQL has ended by itself; see gateway.log")
    console.say("\nStopping.")
