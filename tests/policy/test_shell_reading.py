"""Command lines read: a corpus of lines with the programs that they run, and of lines that nobody can read."""

from __future__ import annotations

import codecs
import re
import time

import pytest

from proxy.core.script import Invocation, Script
from proxy.policy import shell
from proxy.policy.shell import KEPT_TEXT_LIMIT, READ_LIMIT, read_shell
from proxy.policy.shell_words import COMMANDS_LIMIT, DEPTH_LIMIT
from tests.policy.shell_lines import LINES, OPAQUE


def entries() -> list[tuple[str, tuple[str, ...]]]:
    """The corpus: line and programs, each program once; 'more X' adds some to what stands before the first '::'."""
    found = []
    for entry in LINES.strip().splitlines():
        first, _, rest = entry.partition(":: ")
        if entry.startswith(":: "):
            first, rest = "", entry[3:]
        elif entry.startswith(": :: "):
            first, rest = ":", entry[5:]
        line, *notes = re.split(r" :: (?=more|less|names|fails)", rest)
        programs = first.split()
        for note in notes:
            word, *names = note.split()
            if word == "more":
                programs += names
            elif word == "less":
                programs = [each for each in programs if each not in names]
            elif word == "names":
                programs = names
        found.append((decoded(line), tuple(dict.fromkeys(programs))))
    return found


def opaque_lines() -> list[str]:
    return [decoded(line) for line in OPAQUE.strip().splitlines()]


def decoded(line: str) -> str:
    line = re.sub(
        r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|r(?=rm))", lambda found: codecs.decode(found[0], "unicode_escape"), line
    )
    return line.replace("\\n", "\n").replace("\\t", "\t").replace("\\\\", "\\")


def test_the_corpus_is_large() -> None:
    assert len(entries()) > 180 and len(opaque_lines()) > 200


@pytest.mark.parametrize(("line", "programs"), entries())
def test_a_line_that_can_be_read(line: str, programs: tuple[str, ...]) -> None:
    script = read_shell(line)
    assert not script.opaque, script.why
    assert set(script.names) == set(programs)


@pytest.mark.parametrize("line", opaque_lines())
def test_a_line_that_cannot_be_read_is_opaque_and_says_why(line: str) -> None:
    script = read_shell(line)
    assert script.opaque
    assert script.why and "\n" not in script.why


@pytest.mark.parametrize(
    "line",
    [
        "ls;rm x", "ls\nrm x", "ls&rm x", "ls|rm x", "ls||rm x", "ls&&rm x", "ls $(rm x)", "ls `rm x`", "ls <(rm x)",
        "ls >(rm x)", 'ls "$(rm x)"', 'ls "`rm x`"', "ls ${y:-$(rm x)}", 'ls "${y:-`rm x`}"', "x=$(rm x)",
        "x=`rm x` ls",
        r"\rm x",
        r"r\m x", "'rm' x", '"r"m x', "r''m x", 'r""m x', "$'\\x72m' x", "$'r\\155' x", "/bin/rm x", "r\\\nm x",
        "env rm x", "sudo rm x", "nohup rm x", "command rm x", "exec rm x", "xargs rm", "find . -exec rm {} +",
        "! rm x",
        "ls | xargs -n1 rm", "timeout 1 rm x", "nice rm x", "time rm x", "busybox rm x", "sh -c 'rm x'", "eval rm x",
        "sh -c \"sh -c 'rm x'\"", "if rm x; then ls; fi", "while rm x; do ls; done", "for i in $(rm x); do ls; done",
        "case $(rm x) in a) ls;; esac", "f() { rm x; }; f", "{ rm x; }", "(rm x)", "ls # x\nrm x",
        "cat <<E\n$(rm x)\nE",
        "cat <<E\nx\nE\nrm x", "cat <<E;rm x\ny\nE", "ls &\nrm x", "ls & rm x", "trap 'rm x' EXIT",
        "2>/dev/null rm x",
        "<x rm", "x=1 rm x", "ls >$(rm x)", "[[ -n $(rm x) ]]", "cat <<< $(rm x)", "noglob rm x",
        "sudo -u root env rm x",
        "ls 'a\\'; rm x", "ls |& rm x", "- rm x", "cat <<'E'\n'\nE\nrm x", "echo \"'\"; rm x; echo \"'\"",
        "echo '\"';rm x",
        "echo \\'; rm x; echo \\'", "echo \\\\; rm x", "echo a\\\\\nrm x", "set -- a; rm x",
    ],
)  # fmt: skip
def test_a_program_does_not_hide(line: str) -> None:
    script = read_shell(line)
    assert "rm" in script.names or script.opaque


@pytest.mark.parametrize(
    "line", ["ls 'rm'", "ls \\;rm", "echo 'a;rm'", 'echo "a|rm"', "echo a\\&rm", "ls # rm", "ls;rmx"]
)
def test_a_word_is_not_taken_for_a_program(line: str) -> None:
    script = read_shell(line)
    assert not script.opaque and "rm" not in script.names


def test_look_alikes_are_other_programs() -> None:
    assert read_shell("r\u043c x").names == ("r\u043c",)  # a Cyrillic letter


def test_words_are_as_the_program_gets_them() -> None:
    script = read_shell('grep -e \'a b\' "$x" *.c a\\ b "c"d >out <in 2>>err')
    assert script == Script(
        (Invocation(("grep", "-e", "a b", None, None, "a b", "cd")),), False, "", ("in",), ("out", "err")
    )
    assert script.commands == ("grep -e 'a b' <?> <?> 'a b' cd",)
    assert read_shell("echo '<?>' it\\'s").commands == ("echo '<?>' 'it'\\''s'",)
    assert read_shell("/usr/bin/sudo /opt/x/rm y").commands == ("sudo /opt/x/rm y", "/opt/x/rm y")


def test_what_xargs_and_find_add_is_unknown() -> None:
    assert read_shell("xargs rm -f").invocations[1] == Invocation(("rm", "-f", None))
    assert read_shell("find . -exec rm x{} {} +").invocations[1] == Invocation(("rm", None, None))


@pytest.mark.parametrize(
    ("line", "reads", "writes"),
    [
        ("cat </etc/passwd", ("/etc/passwd",), ()),
        ("echo a >~/.bashrc", (), ("~/.bashrc",)),
        ("ls 2>/dev/null >/dev/stdout", (), ()),
        ("ls 2>&1 >&2", (), ()),
        ("ls >& both", (), ("both",)),
        ("ls <>both", ("both",), ("both",)),
        ("{ ls; } >a 2>'b c'", (), ("a", "b c")),
        ("for i in a; do ls; done >>x", (), ("x",)),
        ("sh -c 'ls >x'", (), ("x",)),
        ("ls >a >|b", (), ("a", "b")),
    ],
)
def test_files_of_redirections(line: str, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
    script = read_shell(line)
    assert (script.opaque, script.reads, script.writes) == (False, reads, writes)


def test_what_was_found_before_a_mistake_is_kept() -> None:
    script = read_shell("ls; rm x; )")
    assert script.opaque and script.programs == ("ls", "rm")


def test_nothing_is_nothing() -> None:
    for line in ("", " ", "\n\n", "# a comment"):
        assert read_shell(line) == Script()


# -- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_length_that_is_read(over: int) -> None:
    assert read_shell("ls " + "x" * (READ_LIMIT - 3 + over)).opaque is (over > 0)


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_number_of_commands(over: int) -> None:
    assert read_shell(";".join(["a"] * (COMMANDS_LIMIT + over))).opaque is (over > 0)


@pytest.mark.parametrize(("begin", "end"), [("echo $(", ")"), ("( ", ")"), ("{ ", "; }"), ("eval ", "")])
def test_the_depth(begin: str, end: str) -> None:
    for depth, opaque in ((DEPTH_LIMIT - 1, False), (DEPTH_LIMIT + 2, True)):
        assert read_shell(begin * depth + "a" + end * depth).opaque is opaque


HOSTILE = [
    "$(", "(", "{ ", "`", "'", "<<E ", "a ", "${a:-", "[[", "case x in ", "$((", "a|", '"$(', "if ", "<(", "a;", "#",
    "\\\n", "{a,", "sh -c ", "sudo ", "\\`", "a=", '"$a', "a", "é", "find . -exec a ", "[a", "x[*{", "!", "&",
    "<", "$'",
    "$'\\x41", "<<E\n", "f()", "for x in ", "a$a", "xargs ", "''", "a\n", "[[ a ]] && ",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_texts_take_no_time(piece: str) -> None:
    """Twice the text takes at most about twice the time: nothing is quadratic. The slowest takes 0.3 s."""
    started = time.process_time()
    shell._read((piece * READ_LIMIT)[:READ_LIMIT])
    assert time.process_time() - started < 3.0


def test_lines_are_kept_and_let_go() -> None:
    first = read_shell("ls kept")
    assert read_shell("ls kept") is first
    long = "ls " + "x" * KEPT_TEXT_LIMIT
    assert read_shell(long) is not read_shell(long)
    for number in range(shell.KEPT_LIMIT + 1):
        read_shell(f"ls {number}")
    assert len(shell._kept) == shell.KEPT_LIMIT and read_shell("ls kept") is not first
