"""A script of BigQuery cut into its statements, by its control flow.

A statement ends at a semicolon. Between them, BEGIN .. EXCEPTION .. END, IF, CASE, LOOP, WHILE, REPEAT and FOR hold
lists of statements, and conditions; so does a procedure that CREATE PROCEDURE makes. A keyword counts only unquoted,
outside of brackets and of CASE .. END, and not after a dot. BEGIN before TRANSACTION, a semicolon or the end is no
block. What does not fit raises Unreadable: nothing of such a text is known, and nothing of it is run here.

Left out: whether labels match, whether variables are declared. Source: GoogleSQL, "Procedural language".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from proxy.policy.bigquery_lex import Token, Unreadable

# As deep as BigQuery itself lets blocks be nested. Source: GoogleSQL, "Procedural language", BEGIN.
BLOCK_DEPTH_LIMIT: Final = 50

_BEFORE_ARGUMENTS: Final = frozenset({"(", ",", "IN", "OUT", "INOUT"})
_LOOPS: Final = frozenset({"BEGIN", "LOOP", "WHILE", "REPEAT", "FOR"})
_LEAVES: Final = frozenset({"LEAVE", "BREAK", "CONTINUE", "ITERATE"})


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [first, last) of a script: a statement (word ""), or an expression of the control word ``word``.

    declared: in the body of a procedure. conditional: control flow decides whether, and how often, it runs. loop: it
    may run again. blocks: the BEGIN blocks that it is in, but for their EXCEPTION parts.
    """

    first: int
    last: int
    word: str = ""
    declared: bool = False
    conditional: bool = False
    loop: bool = False
    blocks: tuple[int, ...] = ()


class Splitter:
    """Cuts the tokens of one text; split() once."""

    def __init__(self, tokens: Sequence[Token], statements_limit: int) -> None:
        self._tokens = tokens
        self._at = 0
        self._limit = statements_limit
        self._depth = 0
        self._declared = 0
        self._conditional = 0
        self._loops = 0
        self._leaves = 0
        self._blocks = 0
        self._open: list[int] = []
        self.skippable: set[int] = set()  # blocks whose statements may not all have run when the text goes on
        self.pieces: list[Piece] = []
        self.control: list[str] = []
        self.variables: set[str] = set()

    def split(self) -> None:
        """Fill pieces, control and variables. Raises Unreadable."""
        self._statements(frozenset())
        if self._at < len(self._tokens):
            raise Unreadable(f"{self._word()} is out of place")

    def _word(self, ahead: int = 0) -> str:
        index = self._at + ahead
        return self._tokens[index].word if index < len(self._tokens) else ""

    def _expect(self, word: str) -> None:
        if self._word() != word:
            raise Unreadable(f"{word} is missing")
        self._at += 1

    def _add(self, first: int, last: int, word: str = "") -> None:
        conditional, loop = self._conditional > 0, self._loops > 0
        self.pieces.append(Piece(first, last, word, self._declared > 0, conditional, loop, tuple(self._open)))
        if len(self.pieces) > self._limit:
            raise Unreadable(f"the text has more than {self._limit} statements")

    def _statements(self, ends: frozenset[str]) -> None:
        while self._at < len(self._tokens):
            word = self._word()
            if word == ";":
                self._at += 1
            elif word in ends:
                return
            else:
                self._statement(word)

    def _statement(self, word: str) -> None:
        if self._tokens[self._at].kind in ("word", "quoted") and self._word(1) == ":":
            self._at += 2
            word = self._word()
            if word not in _LOOPS:
                raise Unreadable("a label is before no block")
        after = self._word(1)
        if word == "BEGIN" and not (after in ("TRANSACTION", ";") or self._at + 1 == len(self._tokens)):
            self._nested(self._block, word)
        elif word in ("IF", "CASE", "LOOP", "WHILE", "REPEAT", "FOR"):
            self._nested(getattr(self, "_" + word.lower()), word)
        elif word == "CREATE" and self._makes_procedure():
            self._procedure()
        else:
            self._plain()
            return
        if self._at < len(self._tokens):
            self._expect(";")

    def _nested(self, read: object, word: str) -> None:
        self.control.append(word)
        self._depth += 1
        if self._depth > BLOCK_DEPTH_LIMIT:
            raise Unreadable(f"blocks are nested deeper than {BLOCK_DEPTH_LIMIT}")
        conditional = word != "BEGIN"
        loop = word in _LOOPS and conditional
        self._conditional += conditional
        self._loops += loop
        assert callable(read)
        read()
        self._loops -= loop
        self._conditional -= conditional
        self._depth -= 1

    def _plain(self) -> None:
        first = self._at
        self._at = self._seek(";", first)
        if self._word() == ";" and first == self._at:
            raise Unreadable("a statement is empty")
        self._note_variables(first)
        self._leaves += self._tokens[first].word in _LEAVES
        self._add(first, self._at)

    def _seek(self, mark: str, start: int) -> int:
        """The next such mark outside of brackets, or the end."""
        depth = 0
        for index in range(start, len(self._tokens)):
            word = self._tokens[index].word
            if word in ("(", "[", "{"):
                depth += 1
            elif word in (")", "]", "}"):
                depth -= 1
            elif word == ";":
                if depth:
                    raise Unreadable("a semicolon is within brackets")
                return index
            elif word == mark and not depth:
                return index
        return len(self._tokens)

    def _expression(self, owner: str, *ends: str) -> None:
        """Take an expression up to a keyword (which stays), as a piece of its owner."""
        first = self._at
        depth = cases = 0
        while self._at < len(self._tokens):
            word = self._word()
            if self._at > first and self._tokens[self._at - 1].word in (".", "@"):
                word = ""
            if word == ";":
                break
            if word in ("(", "[", "{"):
                depth += 1
            elif word in (")", "]", "}"):
                depth -= 1
            elif word == "CASE":
                cases += 1
            elif word in ends and not depth and not cases:
                if self._at == first:
                    raise Unreadable(f"{owner} has no condition")
                self._add(first, self._at, owner)
                return
            elif word == "END":
                cases -= 1
            self._at += 1
        raise Unreadable(f"{owner} is without {ends[0]}")

    def _block(self) -> None:
        self._expect("BEGIN")
        self._blocks += 1
        block, leaves = self._blocks, self._leaves
        self._open.append(block)
        self._statements(frozenset({"END", "EXCEPTION"}))
        self._open.pop()
        if self._leaves > leaves or self._word() == "EXCEPTION":
            self.skippable.add(block)
        if self._word() == "EXCEPTION":
            self.control.append("EXCEPTION")
            self._at += 1
            for word in ("WHEN", "ERROR", "THEN"):
                self._expect(word)
            self._conditional += 1
            self._statements(frozenset({"END"}))
            self._conditional -= 1
        self._end("")

    def _end(self, word: str) -> None:
        self._expect("END")
        if word:
            self._expect(word)
        if self._at < len(self._tokens) and self._word() != ";" and self._tokens[self._at].kind in ("word", "quoted"):
            self._at += 1  # the label again

    def _if(self) -> None:
        self._expect("IF")
        self._expression("IF", "THEN")
        self._expect("THEN")
        ends = frozenset({"ELSEIF", "ELSE", "END"})
        self._statements(ends)
        while self._word() == "ELSEIF":
            self._at += 1
            self._expression("ELSEIF", "THEN")
            self._expect("THEN")
            self._statements(ends)
        if self._word() == "ELSE":
            self._at += 1
            self._statements(frozenset({"END"}))
        self._expect("END")
        self._expect("IF")

    def _case(self) -> None:
        self._expect("CASE")
        if self._word() != "WHEN":
            self._expression("CASE", "WHEN")
        ends = frozenset({"WHEN", "ELSE", "END"})
        while self._word() == "WHEN":
            self._at += 1
            self._expression("WHEN", "THEN")
            self._expect("THEN")
            self._statements(ends)
        if self._word() == "ELSE":
            self._at += 1
            self._statements(frozenset({"END"}))
        self._expect("END")
        self._expect("CASE")

    def _loop(self) -> None:
        self._expect("LOOP")
        self._statements(frozenset({"END"}))
        self._end("LOOP")

    def _while(self) -> None:
        self._expect("WHILE")
        self._expression("WHILE", "DO")
        self._expect("DO")
        self._statements(frozenset({"END"}))
        self._end("WHILE")

    def _repeat(self) -> None:
        self._expect("REPEAT")
        self._statements(frozenset({"UNTIL"}))
        self._expect("UNTIL")
        self._expression("REPEAT", "END")
        self._end("REPEAT")

    def _for(self) -> None:
        self._expect("FOR")
        self.variables.add(self._tokens[self._at].text.strip("`").lower() if self._at < len(self._tokens) else "")
        self._at += 1
        self._expect("IN")
        self._expression("FOR", "DO")
        self._expect("DO")
        self._statements(frozenset({"END"}))
        self._end("FOR")

    def _makes_procedure(self) -> bool:
        words = [self._word(ahead) for ahead in range(1, 4)]
        return words[0] == "PROCEDURE" or words == ["OR", "REPLACE", "PROCEDURE"]

    def _procedure(self) -> None:
        """The head is a statement of its own, up to the BEGIN of the body, if it has one."""
        first = self._at
        self._at = self._seek("BEGIN", first)
        self._add(first, self._at)
        for index in range(first, self._at):  # its arguments are variables in the body
            token, before = self._tokens[index], self._tokens[index - 1].word
            if token.kind in ("word", "quoted") and before in _BEFORE_ARGUMENTS:
                self.variables.add(token.text.strip("`").lower())
        if self._word() != "BEGIN":
            return
        self._declared += 1
        self._nested(self._block, "BEGIN")
        self._declared -= 1

    def _note_variables(self, first: int) -> None:
        if self._tokens[first].word != "DECLARE":
            return
        for index in range(first + 1, self._at):
            token = self._tokens[index]
            if token.kind in ("word", "quoted") and self._tokens[index - 1].word in ("DECLARE", ","):
                self.variables.add(token.text.strip("`").lower())
            elif token.word != ",":
                return
