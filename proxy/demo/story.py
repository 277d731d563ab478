"""The demo's story: an agent's psql at work, step by step, each step with a check that can fail.

One psql session from the beginning to the end: a read, a masked read, a change that is held until another person
approves it, a refusal that the connection survives. Then its recording: listed, searched, verified. A second psql has
the gateway killed under its hands, and what it saw answered is on a tape. A copy of the tapes is tampered with, and the
first recording is replayed and exported.

In between, the agent works on a machine by ssh and sftp: those of OpenSSH, or asyncssh's client where there are none.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from proxy.demo.box import REPORT, Box
from proxy.demo.console import COMMAND_SECONDS, Console, Done, StepError, Terminal, run_line
from proxy.demo.house import AGENT, APPROVER, OWNER, House, kill, restart
from proxy.demo.shop import DATABASE, DemoError, Shop
from recorder.cli import list_sessions
from recorder.reader import TapeReader
from recorder.seal import load_public_keys
from recorder.verify import verify
from recorder.verify_report import INCOMPLETE, VERIFIED

PROMPT: Final = r"(?:^|\n)shop=> $"
_APPROVAL: Final = re.compile(r"\bap_[A-Za-z0-9]+")
_NO_TLS: Final = "not compiled in"
PARCELS: Final = 5000  # statements of the psql that meets the kill; ten times what it gets through until then
ANSWERS: Final = 100
WAIT_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.02


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
    box: Box
    checks: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)  # sessions that were there before, of an earlier demo too
    session: str = ""
    tape: str = ""
    crashed: str = ""  # the session that the kill ended

    @property
    def tapes(self) -> Path:
        """Where the gateway keeps its recordings."""
        return self.house.folder / "state" / "tapes"

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
    line = f"gatecast approvals approve {approval[0]} --reason 'it came back'"
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
    """The recording is listed, found by a word of a statement, and proved genuine, complete, and one of all."""
    row = _row(story)
    story.session, story.tape = str(row["sid"]), str(row["path"])
    listed = story.run("gatecast sessions list --limit 3")
    story.expect(story.session in listed.output and row["status"] == "closed", "the session is recorded and sealed")
    found = story.run("gatecast sessions search 'drop table' --verdict deny")
    story.expect(
        story.session in found.output and "DROP TABLE orders" in found.output, "a search tells who tried that, and when"
    )
    _settle(story, VERIFIED)
    verified = story.run("gatecast verify state/tapes")
    story.expect(
        verified.code == 0 and "every session" in verified.output,
        "no byte is changed and no session is missing: exit code 0",
    )


def machine(story: Story) -> None:
    """Command lines on a machine, by ssh: one is allowed, one is denied with the exit code of what may not run."""
    openssh = _openssh()
    ssh = "ssh -F ssh_config" if openssh else "demo-ssh"
    client = "ssh is as it was installed" if openssh else "There is no ssh here: demo-ssh is asyncssh's client"
    story.console.say(
        f"{client}. The agent has a key; the machine lets in another one, the gateway's.\n"
        "ssh_config names that key, and known_hosts our host CA: gatecast ssh ca show --host."
    )
    story.run(
        f"gatecast ssh key add agent.key.pub --subject {OWNER} \\\n"
        f"    --agent {AGENT} --group agents | grep ssh-ed25519"
    )
    done = story.run(f"{ssh} box 'ls reports; wc -l reports/*.csv'")
    story.expect(done.code == 0 and "november.csv" in done.output, "the command ran, and said what it says without us")
    _row(story)
    done = story.run(f"{ssh} box 'ls -l; rm -r reports'")
    story.expect(
        done.code == 126 and "no-removal" in done.output, "denied as a whole, with the rule's name: exit code 126"
    )
    story.expect((story.box.files / REPORT).exists(), "the files are there")
    _row(story)


def fetched(story: Story) -> None:
    """A file by SFTP: its path, size and digest are on the tape."""
    name = REPORT.rpartition("/")[2]
    (story.house.folder / name).unlink(missing_ok=True)
    done = story.run(f"sftp -q -F ssh_config box:{REPORT} ." if _openssh() else f"demo-ssh box:{REPORT}")
    data = (story.box.files / REPORT).read_bytes()
    story.expect(done.code == 0 and (story.house.folder / name).read_bytes() == data, "the file came, unchanged")
    row = _row(story)
    shown = story.run(f"gatecast sessions show {row['sid']} | grep file-read")
    digest = hashlib.sha256(data).hexdigest()
    story.expect(f"/{REPORT}" in shown.output and digest in shown.output, "its path and its SHA-256 are on the tape")


def killed(story: Story) -> None:
    """The gateway is killed while psql works; what psql saw answered is on a tape when it is back."""
    folder, house = story.house.folder, story.house
    lines = (f"SELECT 'parcel {n}: ' || item FROM orders WHERE id = {1 + n % 6};" for n in range(PARCELS))  # noqa: S608
    (folder / "parcels.sql").write_text("\n".join(lines) + "\n")
    answered = folder / "answered.txt"
    story.console.typed(f'{story.psql.program} -XAtq -f parcels.sql "<as above>" >answered.txt &')
    with answered.open("wb") as out:
        psql = subprocess.Popen(  # noqa: S603  # as the terminal's psql
            [story.psql.program, "-XAtq", "-f", "parcels.sql", story.psql.conninfo],
            cwd=folder,
            env=house.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        _wait(lambda: answered.read_text().count("\n") >= ANSWERS, f"psql was not answered {ANSWERS} times")
        story.console.typed(f"kill -9 {house.process.pid}    # the gateway")
        kill(house)
        _, said = psql.communicate(timeout=COMMAND_SECONDS)
    finally:
        psql.kill()
        psql.wait()
    seen = [line for line in answered.read_text().split("\n")[:-1] if line]
    story.console.raw(said.splitlines()[0] + "\n" if said else "")
    story.expect(ANSWERS <= len(seen) < PARCELS, f"psql lost its connection after {len(seen)} answers")
    story.console.typed("gatecast serve -c gatecast.yaml &")
    restart(house)
    story.expect('"tape-recovered"' in house.log, "the next gateway found the tape and sealed what was on it")
    row = _row(story)
    story.crashed = str(row["sid"])
    tape = _payloads(Path(str(row["path"])))
    story.expect(
        all(line.encode() in tape for line in seen), f"all {len(seen)} answers that psql printed are on the tape"
    )
    _settle(story, INCOMPLETE)
    verified = story.run("gatecast verify state/tapes")
    story.expect(verified.code == 2, "genuine, and said to end in a crash: exit code 2")


def tampered(story: Story) -> None:
    """In a copy of all tapes, one byte is changed and one session is deleted: both are told."""
    folder = story.house.folder
    shutil.rmtree(folder / "copy", ignore_errors=True)
    story.run("cp -r state/tapes copy")
    crashed = next((folder / "copy").rglob(f"{story.crashed}.000.gct"))
    data = bytearray(crashed.read_bytes())
    data[len(data) // 2] ^= 1
    crashed.write_bytes(data)
    story.console.say(f"One byte of {crashed.name} is changed there, and the agent's session goes:")
    story.run(f"rm copy/*/*/*/{story.session}.000.gct")
    verified = story.run("gatecast verify copy")
    story.expect(verified.code == 1, "exit code 1")
    story.expect(
        any(line.startswith("altered") and crashed.name in line for line in verified.output.splitlines()),
        "the changed byte is found, with its place",
    )
    story.expect(f"missing: session {story.session}" in verified.output, "the deleted session is named")


def replayed(story: Story) -> None:
    """The recording is played, and holds what the agent saw, nothing more."""
    done = story.run(f"gatecast replay {story.session} | cat")
    story.expect(
        all(part in done.output for part in ("desk lamp", "UPDATE 1", "DROP TABLE orders", APPROVER)),
        "it shows the commands, the decisions and the results",
    )
    exported = story.run(f"gatecast export {story.session} --format html --force -o session.html")
    page = story.house.folder / "session.html"
    data = page.read_bytes() + _payloads(Path(story.tape))
    secrets = ("brandt", "4242 4242", story.shop.password, story.house.agent_token)
    story.expect(
        exported.code == 0 and b"Ana Abbott" in data and not any(word.encode() in data for word in secrets),
        "no masked value, no token and no password is in the recording and in the page",
    )
    story.expect(b"DROP TABLE orders" in page.read_bytes(), "session.html shows it in any browser")


STEPS: Final[tuple[tuple[str, Step], ...]] = (
    ("An agent reads: a rule allows it", allowed),
    ("It reads personal data: masked on their way back", masked),
    ("It changes data: held until a person approves", held),
    ("It drops a table: denied, and the connection lives on", denied),
    ("What is left of it: a sealed recording", recorded),
    ("The agent on a machine, by ssh: one command is allowed, one is denied", machine),
    ("It fetches a file by sftp: the recording has its SHA-256", fetched),
    ("kill -9, in the middle of another psql's work", killed),
    ("Somebody changes a recording and deletes another", tampered),
    ("The recording, played", replayed),
)


def _openssh() -> bool:
    return all(shutil.which(program) for program in ("ssh", "sftp"))


def _payloads(path: Path) -> bytes:
    """All that is on a tape: every record's payload, the bytes of the wire among them."""
    return b"\n".join(record.payload for record in TapeReader(path).records())


def _settle(story: Story, status: str) -> None:
    """Wait until the node's log, which is a second behind, has what the tapes have; the next command shows it."""
    keys = load_public_keys(story.tapes.parent / "seal.key.pub")
    _wait(lambda: verify(story.tapes, keys).status == status, f"the tapes are not {status}")


def _wait(done: Callable[[], bool], what: str) -> None:
    """Wait until it is done. Raises StepError that says what."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise StepError(what)
        time.sleep(POLL_SECONDS)


def _row(story: Story) -> dict[str, Any]:
    """The newest session, a new one, once its tape is sealed: psql can be gone before the gateway has closed it."""
    rows: list[dict[str, Any]] = []

    def sealed() -> bool:
        rows[:] = list_sessions(story.tapes)
        return bool(rows) and rows[0]["sid"] not in story.known and rows[0].get("status") in ("closed", "crashed")

    _wait(sealed, "the session's tape was not sealed in time")
    story.known.add(str(rows[0]["sid"]))
    return rows[0]
