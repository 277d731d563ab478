"""From simple commands to the programs that run: what stands behind sudo, env, xargs, find -exec, sh -c and others.

How: each simple command is looked at word by word. Itself it is an invocation; what it starts is another one, or,
where that is a text (sh -c, eval, trap), the text is read as a whole of its own. A word that is known only when it
runs, where an option or a program is awaited, makes the line opaque; so does a shell that reads its input or a file,
a text of another language, and whatever shell_names.py knows to start programs in ways that are not read here.

What a program does by its own means (tar --to-command, vim, awk's system, git's aliases) is not looked into: who
allows a program by its name allows what it can do. Sources: as in shell_names.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxy.core.script import Invocation
from proxy.policy.shell_grammar import Grammar
from proxy.policy.shell_names import (
    ASSIGNING,
    DECLARING,
    INTERPRETERS,
    LOOKING,
    MEDDLERS,
    OPERANDS,
    OPTION_WORDS,
    READING,
    REFUSED_OPTIONS,
    RUNNERS,
    SHELL_FLAGS,
    SHELL_WORDS,
    SHELLS,
    sets_safely,
)
from proxy.policy.shell_words import COMMANDS_LIMIT, DEPTH_LIMIT, Findings, Unreadable, Word, runs_later

_FIND_ACTIONS: Final = frozenset({"-exec", "-execdir", "-ok", "-okdir"})
_LOADERS: Final = ("ld-linux", "ld.so", "ld-musl", "ld64.so")
_UNKNOWN: Final = Word(None, False, True)


class Programs:
    """Collects the invocations of a line."""

    def __init__(self) -> None:
        self.found = Findings()
        self.invocations: list[Invocation] = []

    def text(self, text: str, depth: int = 0) -> None:
        """Read a text of commands and all that it starts. Raises Unreadable, with what was found till then kept."""
        if depth > DEPTH_LIMIT:
            raise Unreadable("commands are nested too deeply")
        begin = len(self.found.commands)
        try:
            Grammar(text, self.found, depth).whole()
        finally:
            # Taken out, so that each is looked at once; COMMANDS_LIMIT counts invocations from here on.
            commands, self.found.commands[begin:] = self.found.commands[begin:], []
            for command in commands:
                self.command(command.words, depth)

    def command(self, words: Sequence[Word], depth: int) -> None:
        """Note one command, and look at what it starts."""
        if len(self.invocations) >= COMMANDS_LIMIT:
            raise Unreadable(f"it has more than {COMMANDS_LIMIT} commands")
        self.invocations.append(Invocation(tuple(word.text for word in words)))
        program = words[0].text
        if program is None or words[0].splits:
            self._doubt("a program whose name is known only when it runs")
            return
        if program.startswith(("=", "{")):
            self._doubt("a program's name that zsh reads otherwise")
        name = program.rpartition("/")[2]
        rest = words[1:]
        if name.startswith(_LOADERS):
            self._doubt(f"{name} starts another program")
        elif name in ("busybox", "toybox"):
            if rest:
                self.command(rest, self._deeper(depth))
        elif name in OPTION_WORDS:
            self._prefix(name, rest, depth)
        elif name == "find":
            self._find(rest, depth)
        elif name in SHELLS:
            self._shell(name, rest, depth)
        elif name in RUNNERS:
            self._doubt(f"{name} runs commands that are not read here")
        else:
            self._builtin(name, rest, depth)
            self._interpreter(name, rest)

    def _doubt(self, why: str) -> None:
        self.found.doubt(why)

    @staticmethod
    def _deeper(depth: int) -> int:
        if depth >= DEPTH_LIMIT:
            raise Unreadable("commands are nested too deeply")
        return depth + 1

    # -- prefixes ---------------------------------------------------------------------------------------

    def _prefix(self, name: str, words: Sequence[Word], depth: int) -> None:
        """Find the command behind a prefix's options."""
        if name == "command" and words and (words[0].text or "") in ("-v", "-V"):
            return  # tells where it is, and runs nothing
        replaced = name == "xargs" and any((word.text or "").startswith(("-I", "-i", "--replace")) for word in words)
        place = self._behind_options(name, words)
        if place is None:
            return
        rest = list(words[place:])
        if not rest:
            if name in ("sudo", "doas"):
                self._doubt(f"{name} without a command")
            return
        if name == "xargs":
            # What comes from the input is added behind, or takes the place of a mark within the words.
            rest = [rest[0], *(_UNKNOWN if replaced else word for word in rest[1:]), _UNKNOWN]
            if replaced:
                self._doubt("xargs -I puts its input into the command")
        self.command(rest, self._deeper(depth))

    def _behind_options(self, name: str, words: Sequence[Word]) -> int | None:
        """The place of the first word that is no option, operand or assignment; None where it cannot be told."""
        takes = OPTION_WORDS[name]
        place = 0
        while place < len(words):
            word = words[place]
            text = word.text
            if name in ASSIGNING and (sets := _set_by(word)) is not None:
                self._sets(sets)
                place += 1
                continue
            if text is None or word.splits:
                self._doubt(f"a word behind {name} that is known only when it runs")
                return None
            if not text.startswith("-") or text == "-" != name:
                if text == "-" and name == "env":
                    place += 1
                    continue
                break
            if text == "--":
                place += 1
                break
            if text in REFUSED_OPTIONS.get(name, ()) or self._clustered(name, text):
                self._doubt(f"{name} {text} starts something that is not read here")
                return None
            place += 2 if text in takes else 1
        if name in ASSIGNING:
            while place < len(words) and (sets := _set_by(words[place])) is not None:
                self._sets(sets)
                place += 1
        for _ in range(OPERANDS.get(name, 0)):
            if place < len(words) and (words[place].text is None or words[place].splits):
                self._doubt(f"a word behind {name} that is known only when it runs")
                return None
            place += 1
        return place

    @staticmethod
    def _clustered(name: str, text: str) -> bool:
        """Tell whether an option of several letters hides one that takes a word or is refused: -nu root."""
        if text.startswith("--") or len(text) == 2:
            return "=" in text and text.partition("=")[0] in REFUSED_OPTIONS.get(name, ())
        takes = OPTION_WORDS[name]
        if text[:2] in takes or (name in ("nice", "xargs") and not text[1:].isalpha()):
            return False  # the word is in the same: -uroot, -n5, -10
        letters = {f"-{letter}" for letter in text[1:]}
        return bool(letters & REFUSED_OPTIONS.get(name, frozenset())) or bool(letters & takes)

    def _sets(self, name: str) -> None:
        if not sets_safely(name):
            self._doubt(f"it sets {name}, which may change what programs do")

    def _find(self, words: Sequence[Word], depth: int) -> None:
        place = 0
        while place < len(words):
            word = words[place]
            if word.splits:
                self._doubt("words of find that are known only when it runs")
            place += 1
            if word.text not in _FIND_ACTIONS:
                continue
            command: list[Word] = []
            while place < len(words):
                each = words[place]
                place += 1
                if each.text == ";" or (each.text == "+" and command and command[-1].text is None):
                    break
                command.append(_UNKNOWN if each.text is not None and "{}" in each.text else each)
            if command:
                self.command(command, self._deeper(depth))

    # -- texts ------------------------------------------------------------------------------------------

    def _shell(self, name: str, words: Sequence[Word], depth: int) -> None:
        """A shell with -c and a literal text is looked through; one that reads its input or a file is not."""
        place = 0
        commands = False
        while place < len(words):
            word = words[place]
            text = word.text
            if text is None or word.splits:
                self._doubt(f"a word behind {name} that is known only when it runs")
                return
            if not text.startswith(("-", "+")) or text in ("-", "--"):
                place += text in ("-", "--")
                break
            if text.startswith("--") and text not in SHELL_FLAGS:
                if text in ("--version", "--help"):
                    return
                self._doubt(f"{name} {text} is not read here")
                return
            if not text.startswith("--"):
                commands = commands or (text[0] == "-" and "c" in text)
                if set(text[1:]) & {"s", "i"}:
                    self._doubt(f"{name} reads its commands from its input")
                    return
                if text[1:] and text not in SHELL_WORDS and text[-1] in "oO":
                    place += 1  # -eo pipefail
            place += 2 if text in SHELL_WORDS else 1
        if not commands:
            what = "runs a script" if place < len(words) else "reads its commands from its input"
            self._doubt(f"{name} {what}")
        elif place >= len(words) or words[place].text is None:
            self._doubt(f"the text of {name} -c is known only when it runs")
        else:
            self.text(words[place].text or "", self._deeper(depth))

    def _interpreter(self, name: str, words: Sequence[Word]) -> None:
        """A program of another language in the words or on the input is not read."""
        letters = INTERPRETERS.get(name, INTERPRETERS.get(name.rstrip("0123456789.")))
        if letters is None:
            return
        for word in words:
            text = word.text
            if text is None:
                self._doubt(f"a word behind {name} that is known only when it runs")
                return
            if text == "-":
                break
            if not text.startswith("-"):
                return  # a file of the target, taken at its name
            if text in ("--version", "-V", "--help", "-m"):
                return
            long = text.startswith(("--eval", "--print", "--run", "--command", "--init-eval"))
            if long or (not text.startswith("--") and set(text[1:]) & set(letters)):
                self._doubt(f"a text in the language of {name}")
                return
        self._doubt(f"{name} reads its program from its input")

    def _builtin(self, name: str, words: Sequence[Word], depth: int) -> None:
        """The shell's own commands that run texts or change what names mean."""
        texts = [word.text for word in words]
        if name in MEDDLERS:
            self._doubt(f"{name} changes or runs what is not read here")
        elif name == "eval":
            known = [text for text in texts if text is not None]
            if len(known) < len(texts) or any(word.splits for word in words):
                self._doubt("eval of a text that is known only when it runs")
            elif known:
                self.text(" ".join(known[1:] if known[0] == "--" else known), self._deeper(depth))
        elif name == "trap" and words and texts[0] not in ("-", "-l", "-p", "--", ""):
            if texts[0] is None:
                self._doubt("trap of a text that is known only when it runs")
            else:
                self.text(texts[0], self._deeper(depth))
        if name in LOOKING:
            self._looks(name, words)

    def _looks(self, name: str, words: Sequence[Word]) -> None:
        for word in words:
            if word.text is not None and runs_later(word.text):
                self._doubt("a text that a shell may run later")
        if name in DECLARING or name in READING:
            for word in words:
                self._declares(name, word)
        elif name == "printf" and words and words[0].text != "--" and (words[0].text or "-").startswith("-"):
            self._doubt("printf to a variable, or of a format that is known only when it runs")
        elif name in ("test", "[") and any(word.text in ("-v", "-R") for word in words):
            self._doubt("a name that is looked up")

    def _declares(self, name: str, word: Word) -> None:
        text = word.text
        if word.assigns is not None:
            self._sets(word.assigns)
        elif text is None:
            self._doubt(f"a word behind {name} that is known only when it runs")
        elif text.startswith(("-", "+")):
            if set(text[1:]) & set("nfFA" if name in DECLARING else "C"):
                self._doubt(f"{name} {text} is not read here")
        else:
            self._sets(text.partition("=")[0] if name in DECLARING else text) if _named(text) else None


def _set_by(word: Word) -> str | None:
    """The variable that a word sets for env and sudo, which take any word with an equals sign in it."""
    if word.assigns is not None and not word.splits:
        return word.assigns
    return word.text.partition("=")[0] if word.text and "=" in word.text and word.text[0] != "-" else None


def _named(text: str) -> bool:
    return text.partition("=")[0].isidentifier()
