"""The grammar of a POSIX shell: which simple commands a text may run. Sans-IO.

How: recursive descent over shell_words.Cursor. Lists, pipelines, groups, subshells, if, while, until, for, select,
case, functions, ``[[ ]]``, redirections and here-documents are read; every simple command goes to Findings, in the
order of the text. What a condition decides is not asked: each branch may run. What is beyond the grammar, or is read
otherwise by some common shell (``((..))`` is arithmetic to bash and two subshells to dash), raises Unreadable.

Specification: POSIX.1-2024 XCU 2.3, 2.4, 2.7, 2.9, 2.10; bash 5.2 manual 3.2.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.policy.shell_names import sets_safely
from proxy.policy.shell_words import BLANKS, DEPTH_LIMIT, Cursor, Findings, Simple, Unreadable, Word, runs_later

_REDIRECTION: Final = re.compile(r"&>>|&>|<<<|<<-|<<|<&|<>|<|>>|>&|>\||>")
_RESERVED: Final = frozenset({
    "!", "{", "}", "[[", "case", "coproc", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if",
    "select", "then", "until", "while",
})  # fmt: skip
_ELSEWHERE: Final = _RESERVED | {"foreach", "end", "repeat", "always", "in"}
_MISPLACED: Final = frozenset({"}", "do", "done", "elif", "else", "esac", "fi", "then"})
_FUNCTION: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]*")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DESCRIPTOR: Final = re.compile(r"[0-9]+-?|-")
_NUMERIC: Final = frozenset({"-eq", "-ne", "-lt", "-le", "-gt", "-ge"})
# Not worth telling a rule: nothing is kept there, and nothing read.
_NOWHERE: Final = frozenset({"/dev/null", "/dev/stdout", "/dev/stderr"})
# Nobody separates the parts of a comment from the next command; an interactive zsh takes '#' for a word.
_COMMENT_DOUBTS: Final = re.compile(r"[;&|$`<>(){}'\"\\]")


class Grammar(Cursor):
    """Reads a text of commands; the simple ones are in found.commands afterwards."""

    def __init__(self, text: str, found: Findings, depth: int = 0) -> None:
        super().__init__(text, found, depth)
        self._pending: list[tuple[str, bool, bool]] = []  # here-documents: end, quoted, tabs stripped
        self._last = ""  # the operator of the last redirection
        self._plain_end = 0  # where the word of _plain_ahead() ends

    def whole(self) -> None:
        """Read all of the text. Raises Unreadable."""
        self._commands(frozenset())
        if self.peek():
            raise Unreadable(f"an unexpected {self.peek()!r}")
        if self._pending:
            raise Unreadable("a here-document is not there")

    def inner(self, text: str) -> None:
        """Read a text inside of this one, that of backquotes."""
        Grammar(text, self.found, self.depth + 1).whole()

    def substitution(self) -> None:
        """Read commands up to a closing parenthesis, and it."""
        outer, self._pending = self._pending, []
        begin = self.place
        self._deeper()
        self._commands(frozenset())
        self._expect(")")
        self.depth -= 1
        if self._pending or (outer and "\n" in self.text[begin : self.place]):
            raise Unreadable("a here-document within a substitution, or across one")
        self._pending = outer

    # -- lists ------------------------------------------------------------------------------------------

    def _commands(self, stop: frozenset[str]) -> None:
        """Read a list of commands up to a reserved word of stop, ')', ';;' or the end."""
        while True:
            self._lines()
            char = self.peek()
            if not char or char == ")" or self._ahead(";;", ";&"):
                return
            if stop and self._reserved() in stop:
                return
            if char in ";&|":
                raise Unreadable(f"an unexpected {char!r}")
            self._and_or()
            self._blanks()
            char = self.peek()
            if char == ";" and not self._ahead(";;", ";&"):
                self.place += 1
            elif char == "&":
                self.place += 1
                if self.peek() == "|":
                    raise Unreadable("an unexpected '|'")  # zsh knows &|
            elif char and char not in ")\n" and not self._ahead(";;", ";&"):
                raise Unreadable(f"an unexpected {char!r}")

    def _and_or(self) -> None:
        while True:
            self._pipeline()
            self._blanks()
            if not self._takes("&&", "||"):
                return
            self._lines()

    def _pipeline(self) -> None:
        while self._reserved() == "!":
            self._take_reserved("!")
            self._blanks()
        while True:
            self._command()
            self._blanks()
            if self._ahead("||") or not self._takes("|&", "|"):
                return
            self._lines()

    def _command(self) -> None:
        self._blanks()
        if self.peek() == "(":
            self.place += 1
            if self.peek() == "(":
                raise Unreadable("double parentheses, which are arithmetic to one shell and commands to another")
            self._deeper()
            self._commands(frozenset())
            self._expect(")")
            self.depth -= 1
            self._redirections()
            return
        word = self._reserved()
        if word is None or word == "!":
            self._simple()
            return
        if word in _MISPLACED:
            raise Unreadable(f"an unexpected {word!r}")
        self._take_reserved(word)
        self._deeper()
        self._compound(word)
        self.depth -= 1
        self._redirections()

    def _compound(self, word: str) -> None:
        match word:
            case "{":
                self._until("}")
            case "if":
                self._until("then")
                while True:
                    ended = self._until("elif", "else", "fi")
                    if ended == "elif":
                        self._until("then")
                    elif ended == "fi":
                        break
            case "while" | "until":
                self._until("do")
                self._until("done")
            case "for" | "select":
                self._for()
            case "case":
                self._case()
            case "function":
                self._function()
            case "[[":
                self._condition()
            case _:
                raise Unreadable(f"the shell's {word!r} is not read here")

    def _until(self, *words: str) -> str:
        self._commands(frozenset(words))
        found = self._reserved()
        if found not in words:
            raise Unreadable(f"{' or '.join(words)} is missing")
        self._take_reserved(found)
        return found

    def _for(self) -> None:
        self._blanks()
        name = self.word()
        if name is None or not name.plain or name.text is None or not _VARIABLE.fullmatch(name.text):
            raise Unreadable("a for without a variable")
        if not sets_safely(name.text):
            self.found.doubt(f"it sets {name.text}, which may change what programs do")
        self._lines()
        if self._plain_ahead() == "in":
            self._take_reserved("in")
            while (word := self._next_word()) is not None:
                self._later(word)
        self._blanks()
        if self.peek() == ";":
            self.place += 1
        self._lines()
        if self._reserved() != "do":
            raise Unreadable("do is missing")
        self._take_reserved("do")
        self._until("done")

    def _case(self) -> None:
        if self._next_word() is None:
            raise Unreadable("a case without a word")
        self._lines()
        if self._plain_ahead() != "in":
            raise Unreadable("in is missing")
        self._take_reserved("in")
        while True:
            self._lines()
            if self._reserved() == "esac":
                self._take_reserved("esac")
                return
            self._blanks()
            self._takes("(")
            while True:
                if self._next_word() is None:
                    raise Unreadable("a case without a pattern")
                self._blanks()
                if not self._takes("|"):
                    break
            self._expect(")")
            self._commands(frozenset({"esac"}))
            if not self._takes(";;&", ";;", ";&") and self._reserved() != "esac":
                raise Unreadable("esac is missing")

    def _function(self) -> None:
        name = self._next_word()
        if name is None or not name.plain or name.text is None or not _FUNCTION.fullmatch(name.text):
            raise Unreadable("a function without a name")
        self._blanks()
        if self._takes("("):
            self._blanks()
            self._expect(")")
        self._body()

    def _body(self) -> None:
        self._lines()
        if self.peek() != "(" and self._reserved() not in ("{", "if", "while", "until", "for", "case"):
            raise Unreadable("a function without a body")
        self._deeper()
        self._command()
        self.depth -= 1

    def _condition(self) -> None:
        """Read ``[[ .. ]]``. dash takes it for a program, and what follows its && and || for others."""
        words: list[Word] = []
        starts = True
        while True:
            self._blanks()
            word = self._next_word()
            if word is None:
                if not self._takes("&&", "||"):
                    raise Unreadable("a condition that shells read differently")
                starts = True
                continue
            if word.plain and word.text == "]]":
                break
            if starts and words and not (word.text or "").startswith("-"):
                raise Unreadable("a condition that dash would run")
            starts = word.text == "!" and word.plain and starts
            words.append(word)
        self._beside(words)
        for word in words:
            self._later(word)

    def _beside(self, words: list[Word]) -> None:
        """Operands of numeric comparisons are arithmetic: a variable's text in them may run something."""
        for before, operator, after in zip(words, words[1:], words[2:], strict=False):
            if operator.text in _NUMERIC and not all((each.text or "x").isdecimal() for each in (before, after)):
                self.found.doubt("arithmetic with more than numbers in it")
        if any(word.text in ("-v", "-R") for word in words):
            self.found.doubt("a name that is looked up")

    # -- simple commands --------------------------------------------------------------------------------

    def _simple(self) -> None:
        words: list[Word] = []
        begun = False
        both: int | None = None
        while True:
            self._blanks()
            char = self.peek()
            if char and char in "<>&" and self._redirection():
                both = len(words) if self._last.startswith("&>") else both
                begun = True
                continue
            if char == "(":
                self._parenthesis_in(words)
                return
            word = self._next_word()
            if word is None:
                break
            if word.plain and (word.text or "").isdecimal() and self.text[self.place : self.place + 1] in ("<", ">"):
                if self.text.startswith("(", self.place + 1):
                    raise Unreadable("a number before a substitution")
                continue  # a descriptor; its redirection follows
            begun = True
            if not words and word.assigns is not None:
                self._assign(word)
                continue
            if word.plain and re.fullmatch(r"\{\w+\}", word.text or "") and self.peek() in ("<", ">"):
                raise Unreadable("a redirection that sets a variable")
            words.append(word)
        if not begun:
            raise Unreadable(f"an unexpected {self.peek()!r}" if self.peek() else "a command is missing")
        if both is not None and len(words) > both:
            self.found.doubt("words behind '&>', which dash takes for a command")
        if words and words[0].plain and words[0].text in _ELSEWHERE:
            raise Unreadable(f"{words[0].text!r} behind a redirection or assignment")  # zsh takes it for what it is
        if words:
            self.found.add(Simple(words))

    def _assign(self, word: Word) -> None:
        assert word.assigns is not None
        if not sets_safely(word.assigns):
            self.found.doubt(f"it sets {word.assigns}, which may change what programs do")
        if word.value is not None and runs_later(word.value):
            self.found.doubt("a text that a shell may run later")
        if word.value == "" and self.text[self.place : self.place + 1] == "(":
            self.place += 1
            self._lines()
            while (entry := self._next_word()) is not None:
                self._later(entry)
                self._lines()
            self._expect(")")

    def _parenthesis_in(self, words: list[Word]) -> None:
        """A parenthesis behind words is a function's, or a mistake."""
        name = words[0].text if len(words) == 1 and words[0].plain else None
        self.place += 1
        self._blanks()
        if name is None or not _FUNCTION.fullmatch(name) or not self._takes(")"):
            raise Unreadable("an unexpected '('")
        self._body()

    def _later(self, word: Word) -> None:
        if word.text is not None and runs_later(word.text):
            self.found.doubt("a text that a shell may run later")

    # -- redirections -----------------------------------------------------------------------------------

    def _redirections(self) -> None:
        """Read what follows a compound command."""
        while True:
            self._blanks()
            number = re.compile(r"[0-9]+(?=[<>])").match(self.text, self.place)
            if number is not None:
                self.place = number.end()
            char = self.peek()
            if not char or char not in "<>&" or not self._redirection():
                return

    def _redirection(self) -> bool:
        """Read one redirection, False where none begins here."""
        found = _REDIRECTION.match(self.text, self.place)
        if found is None or (found[0] in ("<", ">") and self.text.startswith("(", found.end())):
            return False
        operator = self._last = found[0]
        self.place = found.end()
        self._blanks()
        if operator in ("<<", "<<-"):
            self._here_end(strips=operator == "<<-")
            return True
        word = self.word()
        if word is None:
            raise Unreadable("a redirection without a file")
        if operator == "<<<":
            return True
        if operator in ("<&", ">&") and word.plain and _DESCRIPTOR.fullmatch(word.text or ""):
            return True
        if word.text is None:
            self.found.doubt("a redirection to a file that is known only when it runs")
        elif word.text not in _NOWHERE:
            if operator in ("<", "<>", "<&"):
                self.found.reads[word.text] = None
            if operator not in ("<", "<&"):
                self.found.writes[word.text] = None
        return True

    def _here_end(self, strips: bool) -> None:
        begin = self.place
        word = self.word()
        if word is None or word.text is None or "\n" in self.text[begin : self.place]:
            raise Unreadable("a here-document whose end is no plain word")
        self._pending.append((word.text, not word.plain, strips))

    def _here_documents(self) -> None:
        """Read the bodies that begin after this line's end. Source: POSIX 2.7.4."""
        pending, self._pending = self._pending, []
        for end, quoted, strips in pending:
            lines: list[str] = []
            while True:
                if self.place >= len(self.text):
                    raise Unreadable("a here-document is not closed")
                line, newline = self._line()
                if (line.lstrip("\t") if strips else line) == end:
                    break
                if not quoted and (len(line) - len(line.rstrip("\\"))) % 2:
                    raise Unreadable("a here-document with a continued line")
                lines.append(line + newline)
            if not quoted:
                Grammar("".join(lines), self.found, self.depth + 1).expansions()

    def _line(self) -> tuple[str, str]:
        end = self.text.find("\n", self.place)
        stop = len(self.text) if end < 0 else end
        line, self.place = self.text[self.place : stop], min(stop + 1, len(self.text))
        return line, "" if end < 0 else "\n"

    # -- tokens -----------------------------------------------------------------------------------------

    def _blanks(self) -> None:
        """Skip blanks, and a comment where one begins here."""
        while (char := self.peek()) and char in BLANKS:
            self.place += 1
        if char == "#" and (self.place == 0 or self.text[self.place - 1] in " \t\n;&|()"):
            end = self.text.find("\n", self.place)
            comment = self.text[self.place : end if end >= 0 else len(self.text)]
            if _COMMENT_DOUBTS.search(comment):
                self.found.doubt("a comment with more than words, which an interactive zsh would run")
            self.place += len(comment)

    def _lines(self) -> None:
        """Skip blanks, comments and line ends, and read the here-documents that begin behind these."""
        while True:
            self._blanks()
            if self.peek() != "\n":
                return
            self.place += 1
            if self._pending:
                self._here_documents()

    def _next_word(self) -> Word | None:
        self._blanks()
        return self.word()

    def _ahead(self, *texts: str) -> bool:
        self.peek()
        return self.text.startswith(texts, self.place)

    def _takes(self, *texts: str) -> bool:
        """Take the first of these operators that is here; one that is split over two lines is not read."""
        self.peek()
        for text in texts:
            if self.text.startswith(text, self.place):
                self.place += len(text)
                return True
            if len(text) > 1 and self.text.startswith(text[0] + "\\\n", self.place):
                raise Unreadable("an operator that goes on in the next line")
        return False

    def _expect(self, text: str) -> None:
        self._blanks()
        if not self._takes(text):
            raise Unreadable(f"{text!r} is missing")

    def _plain_ahead(self) -> str | None:
        """The unquoted word that begins here, without taking it; None where there is none, or a quoted one."""
        self._blanks()
        place = self.place
        found: list[str] = []
        while True:
            if self.text.startswith("\\\n", place):
                place += 2
                continue
            char = self.text[place : place + 1]
            if not char or char in " \t\n;&|<>()":
                self._plain_end = place
                return "".join(found) or None
            if char in "\\'\"$`" or len(found) > len("function"):
                return None
            found.append(char)
            place += 1

    def _reserved(self) -> str | None:
        """The reserved word that begins here, without taking it."""
        word = self._plain_ahead()
        return word if word in _RESERVED else None

    def _take_reserved(self, word: str) -> None:
        found = self._plain_ahead()
        assert found == word, "taken without a look"
        self.place = self._plain_end

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > DEPTH_LIMIT:
            raise Unreadable("commands are nested too deeply")
