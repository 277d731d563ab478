"""Reading BigQuery's SQL: all that a text does, as far as the text alone tells. analyse() is pure and never raises.

How: bigquery_lex cuts the text into tokens by BigQuery's rules; bigquery_script cuts those into statements and the
conditions of control flow; bigquery_statements and bigquery_ddl read each of them, queries with sqlglot's parser
(bigquery_draft, bigquery_query, bigquery_sources: tables and lineage; bigquery_where: always-true filters).

What cannot be read is opaque, and says why: the whole text where its statements cannot be told apart, else the one
statement. Opaque never counts as a read: it has an effect UNKNOWN, or a call. An opaque statement may have facts; they
are what is certain, not all there is. In a script, a result that takes from a variable, a routine or a temporary table
is tainted: its values may come from all that the script reads.

Deep nesting and long texts cost time and stack, which is why strangers' texts go through bigquery_workers.Analysts.

Left out: views and routines (the dry run's referencedTables has them), temporary tables of the session's earlier jobs,
what a dataset's own options make of names. Source: bigquery note 4, 9, 11, 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from proxy.core.warehouse import TEMPORARY, UNRESOLVED, Analysis, AnalysisLimits, Effect, Statement, unknown
from proxy.policy.bigquery_draft import Draft, Script
from proxy.policy.bigquery_lex import Token, Unreadable, tokens_of
from proxy.policy.bigquery_names import Names, State
from proxy.policy.bigquery_script import Piece, Splitter
from proxy.policy.bigquery_statements import READERS, immediate_text

DEFAULT_LIMITS: Final = AnalysisLimits()
# EXECUTE IMMEDIATE of a text with EXECUTE IMMEDIATE: BigQuery refuses the first such nesting already.
_IMMEDIATE_DEPTH_LIMIT: Final = 2
# Statements that name nothing, so that it does not matter what names mean.
_NAMELESS: Final = frozenset({"BEGIN", "COMMIT", "ROLLBACK", "BREAK", "LEAVE", "CONTINUE", "ITERATE", "RETURN"})


def analyse(text: str, project: str, dataset: str | None, limits: AnalysisLimits = DEFAULT_LIMITS) -> Analysis:
    """Read a text of GoogleSQL. project and dataset are the request's defaults. Never raises."""
    try:
        size = len(text.encode())
        if size > limits.text_bytes:
            return unknown(text, f"the text is longer than {limits.text_bytes} bytes")
        names = Names(project, dataset)
        return _analyse(Script(text, limits, names), 0)
    except Unreadable as error:
        return unknown(text, str(error))
    except UnicodeEncodeError:
        return unknown(text, "the text is not valid Unicode")
    except RecursionError:
        return unknown(text, "the text is nested too deeply to be read")
    except Exception as error:  # fails closed: whatever goes wrong here, the text is unreadable
        return unknown(text, f"the text could not be read ({type(error).__name__})")


def _analyse(script: Script, depth: int) -> Analysis:
    tokens = tokens_of(script.text, script.limits.tokens, script.limits.bracket_depth)
    splitter = Splitter(tokens, script.limits.statements)
    splitter.split()
    script.variables |= frozenset(splitter.variables)
    statements: list[Statement] = []
    entered: dict[int, State] = {}
    for piece in splitter.pieces:
        _leave(script, entered, piece.blocks)
        entered |= {block: script.names.state for block in piece.blocks if block in splitter.skippable - set(entered)}
        statements += _read(script, tokens[piece.first : piece.last], piece, depth)
        if len(statements) > script.limits.statements:
            raise Unreadable(f"the text has more than {script.limits.statements} statements")
    _leave(script, entered, ())
    if not statements:
        raise Unreadable("the text holds no statement")
    statements = [_past_temporary(statement) for statement in statements]
    why = next((statement.why for statement in statements if statement.opaque), "")
    return Analysis(tuple(statements), tuple(splitter.control), bool(why), why)


def _read(script: Script, tokens: Sequence[Token], piece: Piece, depth: int) -> list[Statement]:
    draft = Draft(script, tokens, piece.declared)
    outside = script.names.state
    if piece.declared:
        script.names.temporary = set()  # the text's are not there when the procedure is called
    before = script.names.state
    try:
        if script.lost and not (draft.word in _NAMELESS or (draft.word == "RAISE" and len(tokens) == 1)):
            draft.opaque(script.lost)
        if piece.word:
            draft.word = piece.word
            draft.expression(tokens)
            draft.add("session", type_="control")
        elif draft.word in READERS:
            READERS[draft.word](draft)
        else:
            draft.add("UNKNOWN")
            draft.opaque(f"{tokens[0].text[:40]} begins no statement that is known here")
        found = draft.freeze()
    except (Unreadable, RecursionError) as error:
        why = str(error) if isinstance(error, Unreadable) else "the text is nested too deeply to be read"
        found = _unread(draft, why)
    inner = _immediate(script, draft, depth) if draft.word == "EXECUTE IMMEDIATE" else []
    if script.names.state != before:
        _follow(script, piece)
    if piece.conditional or piece.declared:
        script.names.restore(outside)
    return [found, *inner]


def _unread(draft: Draft, why: str) -> Statement:
    effect = Effect("UNKNOWN")
    effects = (*draft.effects, effect)
    written = tuple(draft.writes)
    return Statement(
        draft.word, "UNKNOWN", "unknown", draft.text, effects, tables_written=written, opaque=True, why=why,
        declared=draft.declared,
    )  # fmt: skip


def _follow(script: Script, piece: Piece) -> None:
    """What control flow or a procedure's body may change of the names is not certain for what follows.

    In a loop it is not for what went before either. Raises Unreadable.
    """
    if piece.loop and not piece.declared:
        raise Unreadable("a loop changes what names mean")
    if piece.conditional or piece.declared:
        script.lost = script.lost or "control flow decides what names mean"


def _leave(script: Script, entered: dict[int, State], blocks: Sequence[int]) -> None:
    """What blocks changed of the names, whose statements may not all have run, is not certain behind their end."""
    for block in [block for block in entered if block not in blocks]:
        if entered.pop(block) != script.names.state:
            script.lost = script.lost or "control flow decides what names mean"


def _immediate(script: Script, draft: Draft, depth: int) -> list[Statement]:
    """The statements of a text that EXECUTE IMMEDIATE runs, if it is plain."""
    text = immediate_text(draft)
    if text is None:
        return []
    if depth >= _IMMEDIATE_DEPTH_LIMIT:
        return list(unknown(text, "EXECUTE IMMEDIATE within EXECUTE IMMEDIATE").statements)
    inner = Script(text, script.limits, script.names, script.variables, script.functions)
    try:
        found = _analyse(inner, depth + 1).statements
    except Unreadable as error:
        found = unknown(text, str(error)).statements
    script.lost = script.lost or inner.lost
    return [replace(statement, declared=statement.declared or draft.declared) for statement in found]


def _past_temporary(statement: Statement) -> Statement:
    """What comes from a temporary table may come from all that was read into it, here or in an earlier job."""
    outputs = statement.outputs
    if outputs is None or outputs.taint:
        return statement
    if any(table.dataset in (TEMPORARY, UNRESOLVED) for table in statement.tables_read):
        return replace(statement, outputs=replace(outputs, taint="a temporary table is not followed"))
    return statement
