"""Properties of the reading of command lines, and the same lines given to real shells: no program runs unseen."""

from __future__ import annotations

import random
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.policy.shell import _read, read_shell

# Words that mean something in a shell, and pieces of them.
PIECES = (
    *("aa", "bb", "cc", "aa", "bb", " ", " ", " ", "\n", ";", "&", "|", "&&", "||", "(", ")", "{", "}", "{ ", "; }"),
    *("$(", "`", "'", '"', "\\", "\\\n", "#", " #", "<", "<<", "<<<", "<<-", "E", "\nE\n", "<<E\n", "<<'E'\n", "$"),
    *("${x:-", "${", "$x", "x=", "x=aa", "x=1 ", ">f", "2>f", "&>f", "<(", "[[ ", " ]]", "[ ", " ]", "if ", "; then "),
    *(
        "; fi",
        "for x in ",
        "; do ",
        "; done",
        "case x in x)",
        ";;",
        " esac",
        "while ",
        "!",
        "! ",
        "((",
        "))",
        "$((",
        "1",
    ),
    *(
        "=",
        "*",
        "?",
        "[",
        "]",
        "~",
        ",",
        "..",
        "eval ",
        "command ",
        "env ",
        "exec ",
        "sh -c ",
        "$'",
        "\\'",
        '\\"',
        "f()",
    ),
    *(
        "f",
        "function f",
        "time ",
        "\t",
        "%",
        "^",
        "-",
        "--",
        "@",
        "+",
        "é",
        "|&",
        "&|",
        "&!",
        ">|",
        ">&2",
        "<&",
        "xargs ",
    ),
    *("trap ", "EXIT", "noglob ", "- ", "alias ", "#}", "/", "x", "printf ", " in ", "then", "do", "done", "else "),
    *("select x in ", "until ", "coproc ", "$1", "$@", '"$@"', "{aa,bb}", "{aa", "a a", "repeat 2 ", "a=b ", "A=b "),
)
# Good lines; the test puts pieces into them. Whatever a shell makes of that, no program of it may be unseen.
BASES = (
    *("aa", "aa; bb", "aa | bb", "aa && bb || cc", "(aa; bb)", "{ aa; bb; }", "if aa; then bb; else cc; fi", "! aa"),
    *("for x in a b; do aa; done", "case x in x) aa;; esac", "f() { aa; }; bb", "aa $(bb)", "aa `bb`", 'aa "$(bb)"'),
    *(
        "aa <<E\nx $(bb)\nE\ncc",
        "aa <<'E'\n$(bb)\nE\ncc",
        "aa <(bb)",
        "x=1 aa",
        "x=$(aa)",
        "aa >f",
        "aa 2>&1 bb",
        "aa 'bb'",
    ),
    *(
        "aa # bb\ncc",
        "aa \\\n bb",
        "[[ a == a ]] && aa",
        "[ a ] && aa",
        "env aa",
        "sh -c 'aa; bb'",
        "eval aa",
        "aa &",
        "aa\nbb",
    ),
    *(
        "aa ${x:-$(bb)}",
        'aa "${x:-`bb`}"',
        'aa "\'"; bb; cc "\'"',
        "aa 'b\\'; bb",
        "aa {a,b}",
        "trap 'aa' EXIT",
        "aa $'a\\tb' bb",
    ),
    *(
        "command aa",
        "exec aa",
        "time aa",
        "aa &>f; bb",
        "aa <<< 'bb'",
        "aa $((1 + 2)); bb",
        "aa \\; bb",
        "[[ -n a ]]; aa",
    ),
)
SHELLS = {
    "bash": ["bash", "--norc", "-c"],
    "dash": ["dash", "-c"],
    "zsh": ["zsh", "-f", "-c"],
    "busybox": ["busybox", "sh", "-c"],
}
LINES_OF_EACH = 1_000


@given(st.text(max_size=200))
def test_no_text_raises(text: str) -> None:
    script = read_shell(text)
    assert script.opaque is bool(script.why)


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
@settings(max_examples=500)
def test_no_line_raises(text: str) -> None:
    script = _read(text)
    assert script.opaque is bool(script.why)
    assert hash(script) == hash(_read(text)) and script == _read(text)


WORDS = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x24F, exclude_characters="\x7f\xad\xa0"), max_size=20
).filter(lambda text: not any(0x7F <= ord(char) <= 0xA0 for char in text) and not text.endswith("\\"))


@given(st.lists(WORDS, min_size=1, max_size=8))
@settings(max_examples=500)
def test_quoted_words_are_words(words: list[str]) -> None:
    """Whatever is in quotes comes back as it is, as one word of one command."""
    script = _read("ls " + shlex.join(words))
    assert script.invocations[0].words == ("ls", *words) and len(script.invocations) == 1


@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
@settings(max_examples=300)
def test_what_stands_in_single_quotes_starts_nothing(text: str) -> None:
    assert set(_read("ls " + shlex.quote(text)).programs) == {"ls"}


@pytest.mark.peer
@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_real_shells_run_nothing_that_was_not_read(shell: str, tmp_path: Path) -> None:
    """Random lines of shell syntax: each program that a shell really starts is in a script that is not opaque."""
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    program = shutil.which(SHELLS[shell][0]) or ""
    folder, work, log = tmp_path / "bin", tmp_path / "work", tmp_path / "log"
    folder.mkdir()
    work.mkdir()
    for name in ("aa", "bb", "cc", "f"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {log}\n")
        (folder / name).chmod(0o755)
    for name in ("env", "xargs", "printf", "sh"):
        (folder / name).symlink_to(shutil.which(name) or "")
    source = random.Random(f"seed of {shell}")
    read = ran = 0
    for _ in range(LINES_OF_EACH):
        line = source.choice(BASES)
        for _ in range(source.randint(0, 3)):
            place = source.randint(0, len(line))
            line = line[:place] + source.choice(PIECES) + line[place + source.choice((0, 0, 0, 1, 2)) :]
        script = _read(line)
        if script.opaque or any(word in line for word in ("while", "until")):
            continue
        read += 1
        log.write_text("")
        subprocess.run(
            [program, *SHELLS[shell][1:], line],
            env={"PATH": str(folder)},
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            check=False,
            start_new_session=True,
        )
        started = set(log.read_text().split())
        ran += bool(started)
        assert started <= set(script.names), line
        for left in work.iterdir():
            left.unlink()
    assert read > LINES_OF_EACH // 5 and ran > read // 2
