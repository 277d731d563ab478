"""The demo's story: an agent's psql at work, step by step, each step with a check that can fail.

One psql session from the beginning to the end: a read, a masked read, a change that is held until another person
approves it, a refusal that the connection survives. Then its recording: listed, verified, tampered with, replayed.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from proxy.demo.console import Console, Done, StepError, Terminal, run_line
from proxy.demo.house import AGENT, APPROVER, OWNER, House
from proxy.demo.shop import DATABASE, DemoError, Shop

PROMPT: Final = r"(?:^|\n)shop=> $"
_APPROVAL: Final = re.compile(r"\bap_[A-Za-z0-9]+")
_NO_TLS: Final = "not compiled in"


@dataclass(frozen=True, slots=True)
class Psql:
    """The psql that plays the agent, and how it reaches the gateway."""

    program: str
    version: str
    parameters: Mapping[str, str]

    @property
    def conninfo(self) -> str:
        """The parameters as one types them; none of them needs quotes."""
        return " ".join(f"{name}={value}" for name, value in self.parameters.items())

    @property
    def tls(self) -> bool:
        """Whether it speaks TLS to the gateway."""
        return "sslrootcert" in self.parameters


@dataclass(slots=True)
class Story:
    """What the steps share. checks: everything that was looked at, in order."""

    console: Console
    shop: Shop
    house: House
    psql: Psql
    terminal: Terminal
    checks: list[str] = field(default_factory=list)
    session: str = ""
    tape: str = ""

    def expect(self, good: bool, what: str) -> None:
        """Note a check. Raises StepError if it failed."""
        if not good:
            raise StepError(what)
        self.checks.append(what)
        self.console.good(what)

    def query(self, text: str) -> str:
        """Type a statement into psql and return what came up to the next prompt."""
        self.terminal.type(text)
        return self.terminal.until(PROMPT)

    def run(self, line: str, shown: str = "") -> Done:
        """Run a line in another terminal of the same machine."""
        return run_line(self.console, line, self.house.folder, self.house.environment, shown)


Step = Callable[[Story], None]


def find_psql(shop: Shop, house: House) -> Psql:
    """The system's psql with TLS; without one, the wheel's, which has none and takes the plain listener."""
    both = {"dbname": DATABASE, "user": "ana"}
    system = shutil.which("psql")
    if system is not None and _speaks_tls(system):
        there = {"host": "localhost", "port": str(house.tls_port)}
        return Psql("psql", _version(system), {**there, **both, "sslmode": "verify-full", "sslrootcert": "tls.crt"})
    there = {"host": "127.0.0.1", "port": str(house.plain_port)}
    return Psql(str(shop.psql), _version(str(shop.psql)), {**there, **both, "sslmode": "disable"})


def _speaks_tls(program: str) -> bool:
    """Whether psql's libpq was built with TLS: one that was not refuses the parameter before it connects."""
    try:
        asked = ["-X", "host=127.0.0.1 port=1 sslmode=verify-full connect_timeout=2", "-c", ""]
        done = subprocess.run([program, *asked], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return _NO_TLS not in done.stderr


def _version(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise DemoError(f"{program} does not run: install one with apt-get install postgresql-client") from error
    return done.stdout.split("(PostgreSQL)")[-1].split()[0]


# -- the steps --------------------------------------------------------------------------------------------


def allowed(story: Story) -> None:
    """A read that a rule allows."""
    how = "The connection is in TLS." if story.psql.tls else "This psql has no TLS: loopback."
    story.console.say(f"Its password is a gateway token: {AGENT} for {OWNER}.\n{how}")
    story.console.typed(f'{story.psql.program} -X -n "{story.psql.conninfo}"')
    story.terminal.until(PROMPT)
    output = story.query("SELECT id, item, total, status FROM orders ORDER BY id LIMIT 3;")
    story.expect("desk lamp" in output and "(3 rows)" in output, "the rows came, unchanged")


def masked(story: Story) -> None:
    """A read whose personal data are masked on their way back."""
    output = story.query("SELECT name, email, card FROM customers ORDER BY id LIMIT 3;")
    story.expect("Ana Abbott" in output and "(3 rows)" in output, "the rows came")
    story.expect("@" not in output and "4242 4242" not in output, "no e-mail address and no card number is in them")
    output = story.query("SELECT upper(email) AS e FROM customers WHERE id = 1;")
    story.expect("EXAMPLE.COM" not in output and "(1 row)" in output, "nor through a function")


def held(story: Story) -> None:
    """A change that waits until another person approves it."""
    story.terminal.type("UPDATE orders SET status = 'refunded' WHERE id = 3;")
    notice = story.terminal.until(r"NOTICE: [^\n]*\bap_[A-Za-z0-9]+[^\n]*\n")
    approval = _APPROVAL.search(notice)
    if approval is None:
        raise StepError("the notice names no approval")
    story.console.say("psql waits. In another terminal:")
    listed = story.run("gatecast approvals list")
    story.expect(approval[0] in listed.output, "the approval is listed")
    own = story.run(
        f'GATECAST_TOKEN="$PGPASSWORD" gatecast approvals approve {approval[0]}',
        f"GATECAST_TOKEN=<the agent's> gatecast approvals approve {approval[0]}",
    )
    story.expect(own.code != 0, "the agent cannot approve its own command")
    line = f"gatecast approvals approve {approval[0]} --reason 'order 3 came back'"
    token = shlex.quote(story.house.approver_token)
    done = story.run(f"GATECAST_TOKEN={token} {line}", f"GATECAST_TOKEN=<{APPROVER}'s> {line}")
    story.expect(done.code == 0 and APPROVER in done.output, f"{APPROVER} approved it")
    story.console.say("Back in psql:")
    output = story.terminal.until(PROMPT)
    story.expect("UPDATE 1" in output, "the statement ran once it was approved")


def denied(story: Story) -> None:
    """A refusal with an error of PostgreSQL's own kind, which the connection and its transaction survive."""
    output = story.query("DROP TABLE orders;")
    story.expect("ERROR:" in output and "no-ddl" in output, "psql shows an ordinary error that names the rule")
    output = story.query("SELECT id, status FROM orders WHERE id = 3;")
    story.expect("refunded" in output, "the table is there, and the connection lives on")
    story.terminal.type("\\q")
    story.expect(story.terminal.end() == 0, "psql ended as it does after a normal session")


def recorded(story: Story) -> None:
    """The recording is listed, genuine and complete; a changed copy is not."""
    row = _row(story)
    story.session, story.tape = str(row["sid"]), str(row["path"])
    listed = story.run("gatecast sessions list --limit 3")
    story.expect(story.session in listed.output and row["status"] == "closed", "the session is recorded and sealed")
    verified = story.run(f"gatecast verify {story.session}")
    story.expect(verified.code == 0, "the recording is genuine and complete: exit code 0")
    path = Path(story.tape)
    data = path.read_bytes()
    place = len(data) // 2
    story.console.say("The same with one byte changed, in a copy:")
    copy = story.house.folder / "changed" / path.name
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    changed = story.run(f"gatecast verify changed/{path.name}")
    story.expect(changed.code == 1, "the change is found: exit code 1")


def replayed(story: Story) -> None:
    """The recording is played, and holds what the agent saw, nothing more."""
    done = story.run(f"gatecast replay {story.session} | cat")
    story.expect(
        all(part in done.output for part in ("desk lamp", "UPDATE 1", "DROP TABLE orders", APPROVER)),
        "it shows the commands, the decisions and the results",
    )
    exported = story.run(f"gatecast export {story.session} --format jsonl -o session.jsonl")
    data = _content(story.house.folder / "session.jsonl")
    secrets = ("brandt", "4242 4242", story.shop.password, story.house.agent_token)
    story.expect(
        exported.code == 0 and b"Ana Abbott" in data and not any(word.encode() in data for word in secrets),
        "no masked value, no token and no password is in the recording",
    )


STEPS: Final[tuple[tuple[str, Step], ...]] = (
    ("An agent reads: a rule allows it", allowed),
    ("It reads personal data: masked on their way back", masked),
    ("It changes data: held until a person approves", held),
    ("It drops a table: denied, and the connection lives on", denied),
    ("What is left of it: a sealed recording", recorded),
    ("The recording, played", replayed),
)


def _content(path: Path) -> bytes:
    """All of an export jsonl, with the bytes of the wire as they passed."""
    lines = path.read_text().splitlines()
    wire = [base64.b64decode(entry["base64"]) for entry in map(json.loads, lines) if "base64" in entry]
    return b"\n".join([*(line.encode() for line in lines), b"".join(wire)])


def _row(story: Story) -> dict[str, object]:
    """The newest session, once its tape is sealed: psql can be gone before the gateway has closed it."""
    deadline = time.monotonic() + 10.0
    while True:
        line = ["gatecast", "sessions", "list", "--limit", "1", "--json"]
        done = subprocess.run(  # noqa: S603  # ourselves
            [str(story.house.folder / "bin" / line[0]), *line[1:]],
            cwd=story.house.folder,
            env=story.house.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        rows = json.loads(done.stdout or "[]")
        if rows and rows[0].get("status") == "closed":
            return dict(rows[0])
        if time.monotonic() > deadline:
            raise StepError(f"the session's tape was not sealed in time: {done.stdout or done.stderr}")
