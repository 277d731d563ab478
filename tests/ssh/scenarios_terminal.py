"""Scenarios of a person at a terminal: shells, editors, sizes, keys; tmux plays the person (ssh note, 5)."""

from __future__ import annotations

import time
from shlex import quote

from tests.peers.ssh import program
from tests.ssh.running import Runner, scenario, until
from tests.ssh.terminal import Terminal, terminal

# A prompt that a test recognises, whatever the shell would show. "READY" is built so that typing it is not seeing it.
BASH = "PS1='p> ' exec bash --norc --noprofile -i"


def _shell(seat: Terminal) -> None:
    """Work at a prompt 'p> ': a command, its output, its exit status, another."""
    seat.until("p>")
    seat.line("echo one$((1+1))three")
    seat.until_line("one2three")
    seat.line("false; echo status=$?")
    seat.until_line("status=1")
    seat.line("printf '%s\\n' a b c | tail -n 1; echo ok | tr a-z A-Z")
    seat.until_line("OK")


@scenario(main=True)
def bash(run: Runner) -> None:
    with terminal(run, "-t", "box", BASH) as seat:
        _shell(seat)
        seat.type("echo wrong")
        seat.press("C-u")
        seat.line("echo ri''ght")
        seat.until_line("right")
        seat.press("Up", "Enter")  # history
        seat.until_count("\nright\n", 2)
        seat.line("exit 7")
        seat.until("ENDED 7")


@scenario()
def login_shell(run: Runner) -> None:
    """No command at all: the login shell, with a terminal, as everybody uses it."""
    with terminal(run, "-o", "SetEnv=LC_X=1", "box") as seat:
        until(lambda: seat.screen().strip(), "prompt")
        seat.line("PS1='p> '")
        _shell(seat)
        seat.line("tty | cut -c 1-9; echo $TERM")
        seat.until_line("/dev/pts/")
        seat.until_line("tmux-256color" if "tmux-256color" in seat.screen() else "screen")
        seat.press("C-d")
        seat.until("ENDED 0")


@scenario()
def dash(run: Runner) -> None:
    with terminal(run, "-t", "box", "PS1='p> ' exec sh -i") as seat:
        _shell(seat)
        seat.line("exit 3")
        seat.until("ENDED 3")


@scenario()
def zsh(run: Runner) -> None:
    program("zsh")
    with terminal(run, "-t", "box", "PS1='p> ' exec zsh -f -i") as seat:
        _shell(seat)
        seat.type("echo com")
        seat.type("pleted")
        seat.press("C-a")
        seat.type(": x; ")
        seat.press("C-e", "Enter")
        seat.until_line("completed")
        seat.line("exit 4")
        seat.until("ENDED 4")


@scenario()
def vim(run: Runner) -> None:
    program("vim")
    file = run.remote / "edited"
    with terminal(run, "-t", "box", f"vim -u NONE -n {quote(str(file))}") as seat:
        seat.until("~")
        seat.type("ifirst line")
        seat.press("Enter")
        seat.type("second ümläut")
        seat.press("Escape")
        seat.type(":w")
        seat.press("Enter")
        until(lambda: file.exists() and file.read_text() == "first line\nsecond ümläut\n", "saved file")
        seat.type(":!echo from''vim")
        seat.press("Enter")
        seat.until("fromvim")
        seat.press("Enter")
        seat.type(":q")
        seat.press("Enter")
        seat.until("ENDED 0")


@scenario()
def less(run: Runner) -> None:
    program("less")
    file = run.remote / "long"
    file.write_text("".join(f"line {i} of many\n" for i in range(5_000)))
    with terminal(run, "-t", "box", f"LESS= less {quote(str(file))}") as seat:
        seat.until("line 0 of many")
        seat.type("G")
        seat.until("line 4999 of many")
        seat.type("/line 77 of")
        seat.press("Enter")
        seat.type("g")
        seat.until("line 0 of many")
        seat.type("/line 777 of")
        seat.press("Enter")
        seat.until("line 777 of many", gone="line 0 of many")
        seat.type("q")
        seat.until("ENDED 0")


@scenario(main=True)
def sizes(run: Runner) -> None:
    with terminal(run, "-t", "box", BASH, columns=91, rows=31) as seat:
        seat.until("p>")
        seat.line("stty size")
        seat.until_line("31 91")
        seat.size(133, 37)
        seat.line("stty size")
        seat.until_line("37 133")
        for columns in range(60, 120):  # a storm
            seat.size(columns, 30)
        seat.size(77, 22)
        # The sizes come one by one; the last one stands in the end.
        deadline = time.monotonic() + 20
        while "22 77" not in seat.screen().splitlines():
            assert time.monotonic() < deadline, seat.screen()
            seat.line("stty size")
            time.sleep(0.2)


@scenario(main=True)
def interrupts(run: Runner) -> None:
    with terminal(run, "-t", "box", BASH) as seat:
        seat.until("p>")
        seat.line("sleep 300")
        seat.until("sleep 300")
        time.sleep(0.3)  # the shell starts it; there is nothing to see of that
        seat.press("C-c")
        seat.until("^C")
        seat.line("echo status $?")
        seat.until_line("status 130")
        seat.line("echo re''ady; cat")  # what is typed before would reach it as the line editor left it
        seat.until_line("ready")
        seat.line("into cat")
        seat.until_count("into cat", 2)
        seat.press("C-z")
        seat.until("Stopped")
        seat.line("echo on''ward; fg")
        seat.until_line("onward")
        seat.line("again")
        seat.until_count("again\n", 2)
        seat.press("C-d")
        seat.line("echo at the prom''pt")
        seat.until_line("at the prompt")


@scenario()
def escape_ends_it(run: Runner) -> None:
    with terminal(run, "-t", "box", BASH) as seat:
        seat.until("p>")
        seat.line("sleep 300")
        seat.press("Enter")
        seat.type("~.")
        seat.until("ENDED 255")


@scenario()
def a_flood_on_the_screen_is_interrupted(run: Runner) -> None:
    with terminal(run, "-t", "box", BASH) as seat:
        seat.until("p>")
        seat.line("yes all work and no play")
        seat.until("all work and no play\nall work and no play")
        seat.press("C-c")
        seat.line("echo st''ill here")
        seat.until_line("still here")


@scenario()
def tmux_inside(run: Runner) -> None:
    program("tmux")
    path = run.remote / "inner"
    inner = f"tmux -u -S {quote(str(path))} -f /dev/null new-session {quote(BASH)}"
    with terminal(run, "-t", "box", inner) as seat:
        _shell(seat)
        seat.press("C-b")
        seat.type('"')  # a second pane
        until(lambda: "─" in seat.screen(), "line between two panes")
        seat.line("tmux kill-server")
        seat.until("ENDED")


@scenario()
def pasted_lines(run: Runner) -> None:
    """Several lines at once, faster than any shell reads them."""
    with terminal(run, "-t", "box", BASH) as seat:
        seat.until("p>")
        lines = [f"echo row{i}''x" for i in range(40)]
        seat.type("\n".join(lines) + "\n")
        seat.line("echo en''d")
        seat.until_line("end")
        seat.line("clear; history | grep -c 'echo row[0-9]'")
        seat.until_line("40")


@scenario()
def a_password_is_not_echoed(run: Runner) -> None:
    with terminal(run, "-t", "box", BASH) as seat:
        seat.until("p>")
        seat.line("read -s -p 'Password: ' word")
        seat.until("Password:")
        seat.line("open-sesame")
        seat.line("echo len=${#word}")
        assert "open-sesame" not in seat.until_line("len=11")
