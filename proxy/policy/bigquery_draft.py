"""A statement of BigQuery while it is being read: effects and facts are noted, then frozen into a Statement.

Here is also where a query's text meets the parser (sqlglot): its tokens must be those that we saw ourselves.

sqlglot with its compiled form (extra ``c``): 2 to 6 times as fast as pure Python on real queries. Compiled code has no
recursion limit of its own and can die of deep nesting, which is why texts of strangers are read in worker processes
(bigquery_workers.py), never in the gateway's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import sqlglot
from sqlglot import exp
from sqlglot.dialects.bigquery import BigQuery
from sqlglot.errors import SqlglotError

from proxy.core.warehouse import (
    KIND_OF,
    AnalysisLimits,
    Effect,
    Outputs,
    Statement,
    TableName,
    Verb,
    Where,
    gravest,
)
from proxy.policy.bigquery_functions import is_builtin, is_outside
from proxy.policy.bigquery_lex import Token, Unreadable, agrees, name_value
from proxy.policy.bigquery_names import Names
from proxy.policy.bigquery_query import QueryReader

_PATH: Final = re.compile(
    r"(?:`[^`\\\r\n]+`|[A-Za-z_][A-Za-z0-9_]*(?:-[A-Za-z0-9_]+)*)"
    r"(?:[ \t\r\n]*\.[ \t\r\n]*(?:`[^`\\\r\n]+`|[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*))*"
)
_PART: Final = re.compile(r"`[^`]+`|[^.\s`]+")
# Words before a name with brackets behind it that is no function: columns follow.
_NO_CALL: Final = frozenset(
    {"INTO", "INSERT", "TABLE", "MERGE", "VIEW", "EXISTS", "ON", "AS", "WITH", "INDEX", "REFERENCES"}
)
# Words that brackets follow, and that are no functions.
_GRAMMAR: Final = frozenset({
    "INSERT", "VALUES", "IN", "OVER", "AND", "OR", "NOT", "LIKE", "ANY", "SOME", "ALL", "EXISTS", "USING", "ROLLUP",
    "CUBE", "SETS", "EXCEPT", "REPLACE", "UNNEST",
})  # fmt: skip
_PARSER_KNOWS: Final = frozenset(BigQuery.Parser.FUNCTIONS) | frozenset(BigQuery.Parser.FUNCTION_PARSERS)


_UNKNOWN: Final = Effect("UNKNOWN")


@dataclass(slots=True)
class Script:
    """What of a text is known to all its statements."""

    text: str
    limits: AnalysisLimits
    names: Names
    variables: frozenset[str] = frozenset()
    functions: set[str] = field(default_factory=set)  # made by the text, lower case
    lost: str = ""  # why names cannot be told from here on


def parse(text: str, tokens: Sequence[Token]) -> exp.Expr:
    """Parse one query or DML statement, without its comments: the parser stumbles over some. Raises Unreadable."""
    offset = tokens[0].start
    text = _without_comments(text, tokens, offset)
    try:
        seen = BigQuery().tokenize(text)
        if not agrees(tokens, [(token.start, token.end) for token in seen], offset):
            raise Unreadable("the parser reads the text's tokens in another way")
        trees = sqlglot.parse(text, dialect="bigquery")
    except SqlglotError as error:
        first = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()[0][:200]
        raise Unreadable(f"the parser does not know this: {first}") from error
    except RecursionError as error:
        raise Unreadable("the text is nested too deeply to be read") from error
    if len(trees) != 1 or trees[0] is None:
        raise Unreadable("the parser sees no single statement")
    return trees[0]


def _without_comments(text: str, tokens: Sequence[Token], offset: int) -> str:
    """The same with spaces between the tokens, each at its place."""
    parts: list[str] = []
    at = 0
    for token in tokens:
        first, last = token.start - offset, token.end - offset
        parts += (" " * (first - at), text[first:last])
        at = last
    return "".join(parts)


class Draft:
    """One statement. tokens are its own; at is how far a reader came."""

    def __init__(self, script: Script, tokens: Sequence[Token], declared: bool = False) -> None:
        self.script = script
        self.tokens = tokens
        self.declared = declared
        self.at = 0
        self.word = tokens[0].word
        self.effects: dict[Effect, None] = {}
        self.hidden: dict[Effect, None] = {}
        self.reads: dict[TableName, None] = {}
        self.writes: dict[TableName, None] = {}
        self.functions: dict[str, None] = {}
        self.routines: dict[str, None] = {}
        self.doors: dict[str, None] = {}
        self.uris: list[str] = []
        self.outputs: Outputs | None = None
        self.moves = False
        self.where: Where | None = None
        self.reader = QueryReader(script.names, script.variables, script.limits.trusted_routines)
        self.whys: list[str] = []

    # Tokens

    @property
    def text(self) -> str:
        return self.text_of(self.tokens)

    def text_of(self, tokens: Sequence[Token]) -> str:
        return self.script.text[tokens[0].start : tokens[-1].end] if tokens else ""

    def peek(self, ahead: int = 0) -> str:
        index = self.at + ahead
        return self.tokens[index].word if index < len(self.tokens) else ""

    def take(self, *words: str) -> bool:
        """Step over these words if they come next."""
        if all(self.peek(ahead) == word for ahead, word in enumerate(words)):
            self.at += len(words)
            return True
        return False

    def path(self) -> list[str]:
        """Take a name with its dots. Raises Unreadable."""
        if self.at >= len(self.tokens) or self.tokens[self.at].kind not in ("word", "quoted"):
            raise Unreadable(f"{self.word} has no name where one is expected")
        first = self.tokens[self.at]
        match = _PATH.match(self.script.text, first.start)
        if match is None:
            raise Unreadable("a name cannot be read")
        while self.at < len(self.tokens) and self.tokens[self.at].end <= match.end():
            self.at += 1
        if self.peek() == "." or (self.at < len(self.tokens) and self.tokens[self.at].start < match.end()):
            raise Unreadable("a name cannot be read")
        return [part.strip("`") for part in _PART.findall(match.group())]

    def find(self, *words: str, start: int = 0) -> int | None:
        """The place of these words, one behind another, outside of brackets."""
        depth = 0
        for index in range(start, len(self.tokens)):
            word = self.tokens[index].word
            if word in ("(", "[", "{"):
                depth += 1
            elif word in (")", "]", "}"):
                depth -= 1
            elif not depth and all(
                index + n < len(self.tokens) and self.tokens[index + n].word == each for n, each in enumerate(words)
            ):
                return index
        return None

    def has(self, *words: str) -> bool:
        """Whether any of these words is anywhere in the statement, unquoted."""
        return any(token.word in words for token in self.tokens)

    # Facts

    def add(self, verb: Verb, *objects: TableName, type_: str = "table", where: Where | None = None) -> None:
        self.effects[Effect(verb, objects, type_, where)] = None

    def door(self, name: str) -> None:
        self.doors[name] = None

    def opaque(self, why: str, hidden: Effect | None = _UNKNOWN) -> None:
        """Something is hidden, which never counts as a read: what it may be is an effect of its own."""
        if hidden is not None:
            self.hidden[hidden] = None
        if why not in self.whys:
            self.whys.append(why)

    def target(self, parts: list[str]) -> TableName:
        """The table that a statement writes."""
        table = self.script.names.table(parts)
        if len(parts) == 1 and "." not in parts[0]:
            self.reader.bare[parts[0]] = None
        self.writes[table] = None
        return table

    def query(self, tokens: Sequence[Token]) -> Outputs | None:
        """Read a query's tokens; what cannot be read makes the statement opaque."""
        self.calls(tokens)
        if not tokens:
            self.opaque("a query is missing")
            return None
        try:
            tree = parse(self.text_of(tokens), tokens)
            if not isinstance(tree, exp.Query):
                raise Unreadable("what should be a query is none")
            piped = any(token.word == "|>" for token in tokens)
            if piped and any(name_value(t).lower().startswith("__tmp") for t in tokens if t.kind in ("word", "quoted")):
                raise Unreadable("a name begins like those that the parser makes up for pipes")
            outputs = self.reader.query(tree, None, {})
            self.reader.check(tree)
        except (Unreadable, RecursionError) as error:
            self.opaque(str(error) if isinstance(error, Unreadable) else "the text is nested too deeply to be read")
            return Outputs(taint="the query could not be read")
        return Outputs(outputs.columns, outputs.stars, outputs.also, "pipes are not followed") if piped else outputs

    def expression(self, tokens: Sequence[Token]) -> None:
        """Read an expression (or several with commas), as part of a control word or an argument."""
        self.calls(tokens)
        if not tokens:
            return
        offset = tokens[0].start
        text = self.text_of(tokens)
        try:
            lead = [Token("word", "SELECT", "SELECT", offset - 7, offset - 1)]
            tree = parse("SELECT " + text, [*lead, *tokens])
            if not isinstance(tree, exp.Select) or tree.args.get("from_") is not None:
                raise Unreadable("what should be an expression is none")
            self.reader.query(tree, None, {})
            self.reader.check(tree)
        except (Unreadable, RecursionError) as error:
            self.opaque(str(error) if isinstance(error, Unreadable) else "the text is nested too deeply to be read")

    def calls(self, tokens: Sequence[Token]) -> None:
        """Note the functions that are called, by the text: the parser gives some of them other names."""
        for index, token in enumerate(tokens):
            if token.kind == "word" and token.text.lower() in self.script.functions:
                self.routine(token.text, made=True)
                continue
            if token.kind != "word" or index + 1 >= len(tokens) or tokens[index + 1].word != "(":
                continue
            first = index
            while first >= 2 and tokens[first - 1].word == "." and tokens[first - 2].kind in ("word", "quoted"):
                first -= 2
            name = ".".join(part.text.strip("`") for part in tokens[first : index + 1 : 2])
            before = tokens[first - 1].word if first else ""
            if name.upper() in _GRAMMAR:
                continue
            if is_builtin(name.upper()):
                self.functions[name.upper()] = None
            elif before not in _NO_CALL and (first < index or name.upper() in _PARSER_KNOWS):
                self.routine(name)

    def routine(self, name: str, *, made: bool = False) -> None:
        """A function that is not BigQuery's own. made: the text makes it, so its body is read where it does."""
        self.routines[name] = None
        if made:
            return
        if str(self.script.names.table(name.split("."))) not in self.script.limits.trusted_routines:
            called = Effect("call", (self.script.names.table(name.split(".")),), "routine")
            self.opaque(f"{name} is a routine that nobody here has read", called)

    # The end

    def freeze(self) -> Statement:
        """Make the statement of all that was noted."""
        self._settle_functions()
        rows = tuple(table for table in (*self.reads, *self.reader.reads) if not table.is_metadata)
        views = tuple(table for table in self.reader.reads if table.is_metadata)
        if views:
            self.add("inspect", *views)
        if rows:
            self.add("read_rows", *dict.fromkeys(rows))
        if set(self.doors) - {"LOAD DATA", "URIS"} and not any(effect.verb == "export" for effect in self.effects):
            self.add("export", *dict.fromkeys(rows))
        if not self.effects:
            self.add("read_rows")
        self.effects.update(self.hidden)
        verb = gravest([effect.verb for effect in self.effects])
        outputs = self.outputs
        untrusted = any(not self._is_trusted(name) for name in self.routines)
        if outputs is not None and untrusted and not outputs.taint:
            outputs = Outputs(outputs.columns, outputs.stars, outputs.also, "a routine may read anything")
        if self._keeps_variables():
            outputs = outputs or Outputs()
            outputs = Outputs(outputs.columns, outputs.stars, outputs.also, outputs.taint or "a variable is kept in it")
            self.moves = True
        return Statement(
            self.word,
            verb,
            KIND_OF[verb],
            self.text,
            tuple(self.effects),
            tuple(dict.fromkeys((*self.reads, *self.reader.reads))),
            tuple(self.writes),
            self.where,
            tuple(self.functions),
            tuple(self.routines),
            tuple(self.doors),
            tuple(self.uris),
            outputs,
            self.moves,
            tuple(self.reader.filters),
            tuple(self.reader.bare),
            bool(self.whys),
            "; ".join(self.whys),
            self.declared,
        )

    def _keeps_variables(self) -> bool:
        """Whether a definition or an export may hold values of variables: in its OPTIONS, in a column's DEFAULT.

        What its query takes from them is told by the query's own columns.
        """
        if not any(effect.verb in ("define", "export", "grant") for effect in self.effects):
            return False
        if self.word.endswith("FUNCTION") or "PROCEDURE" in self.word:  # their own arguments are called variables too
            return False
        end = self.find("AS") if self.outputs is not None else None
        tokens = self.tokens[:end]
        return any(
            (token.kind in ("word", "quoted") and token.text.strip("`").lower() in self.script.variables)
            or (token.word == "@" and tokens[index - 1].word == "@")  # @@error.message
            for index, token in enumerate(tokens)
        )

    def _is_trusted(self, name: str) -> bool:
        return str(self.script.names.table(name.split("."))) in self.script.limits.trusted_routines

    def _settle_functions(self) -> None:
        for name in self.reader.functions:
            if is_builtin(name):
                self.functions[name] = None
            elif name.lower() not in self.script.functions:
                self.routine(name)
        for name in self.functions:
            if is_outside(name):
                self.door(name)
