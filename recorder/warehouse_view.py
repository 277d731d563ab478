"""What a RESULT of BigQuery says in words: the job, what it cost, what it changed, what was uploaded. Pure.

Specification of the keys: recorder/format.py, "RESULT".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from recorder.flows import whole
from recorder.wording import duration, size

POLL: Final = "poll"  # the verb of what asks for a job again, or for more of its rows
UPLOAD: Final = "upload"  # the verb of the pieces of a resumable upload
MORE: Final = 308  # what each but the last of them is answered with. Source: Google API docs, "Resumable upload"
SHA256_SHOWN: Final = 12  # digits: enough to compare by eye; sessions show and the exports have all
NEWS_KEYS: Final = frozenset({"affected", "processed", "billed", "slot_ms"})
COST_KEYS: Final = NEWS_KEYS | {"total_rows", "cache_hit", "destination"}
_JOB_REFERENCE: Final = re.compile(rb'"jobReference"\s*:\s*\{([^{}]{0,4096})\}')
_MEMBER: Final = re.compile(rb'"(projectId|jobId)"\s*:\s*"([A-Za-z0-9_.:-]+)"')
# A method's name is no statement, and no statement begins like one.
_METHOD: Final = re.compile(
    r"(?:datasets|jobs|models|projects|routines|rowAccessPolicies|tabledata|tables|upload|sts|storage|discovery"
    r"|BigQuery(?:Read|Write)|google\.[a-z0-9.]+)\.[A-Za-z]+(?=[\s/(]|$)"
    # The calls of the Storage API. Source: google.cloud.bigquery.storage.v1, BigQueryRead and BigQueryWrite.
    r"|(?:CreateReadSession|ReadRows|SplitReadStream|CreateWriteStream|AppendRows|GetWriteStream|FinalizeWriteStream"
    r"|BatchCommitWriteStreams|FlushRows)(?=[\s/(]|$)|read rows of projects/"
)


def is_method(text: str) -> bool:
    """Whether a command's text names a method ("tables.delete shop.d.t"), and is no SQL."""
    return _METHOD.match(text) is not None


def key_of(job: str) -> str:
    """What a job is told apart by: its name without the location, which not everybody says. "shop:EU.j" -> "shop:j"."""
    project, colon, name = job.rpartition(":")
    return f"{project}:{name.rpartition('.')[2]}" if colon else job


def key_in(body: bytes) -> str:
    """The key of the job that an answer (or its beginning) is about, "" where it names none."""
    found = _JOB_REFERENCE.search(body)
    members = {name: value.decode() for name, value in _MEMBER.findall(found[1])} if found is not None else {}
    return f"{members[b'projectId']}:{members[b'jobId']}" if len(members) == 2 else ""


def job_words(said: Mapping[str, Any]) -> str:
    """The job and its state: "job shop:EU.j  RUNNING"."""
    state = said.get("state")
    return f"job {said.get('job')}" + (f"  {state}" if isinstance(state, str) else "")


def cost_words(said: Mapping[str, Any]) -> str:
    """What came of it and what it took: "61 rows, 1.1 GiB processed, 953.7 MiB billed, 340.0 ms slots, cached"."""
    notes = []
    if (rows := whole(said.get("total_rows"))) >= 0:
        notes.append(_counted(rows, "row"))
    if (rows := whole(said.get("affected"))) >= 0:
        notes.append(f"{_counted(rows, 'row')} affected")
    if (amount := whole(said.get("processed"))) >= 0:
        notes.append(f"would process {size(amount)}" if said.get("dry_run") is True else f"{size(amount)} processed")
    if (amount := whole(said.get("billed"))) >= 0:
        notes.append(f"{size(amount)} billed")
    if (slot_ms := whole(said.get("slot_ms"))) >= 0:
        notes.append(f"{duration(slot_ms * 1_000_000)} slots")
    if said.get("cache_hit") is True:
        notes.append("cached")
    destination = said.get("destination")
    if isinstance(destination, str) and destination.split(".")[1:2] and not destination.split(".")[1].startswith("_"):
        notes.append(f"into {destination}")  # results that nobody named a table for are in hidden datasets
    return ", ".join(notes)


def estimate_words(value: object) -> str:
    """What a COMMAND says that it will cost: "estimate: 1.1 GiB, price 0.01"; "" where it says nothing."""
    match value:
        case [int(amount), int(price) | float(price)] if amount >= 0:
            return f"estimate: {size(amount)}, price {price:.2f}"
    return ""


def content_words(said: Mapping[str, Any], pieces: int = 1) -> str:
    """What was uploaded: "uploaded 12.3 MiB in 3 pieces  sha256 5c0e5c0e5c0e"; "" of what is no upload."""
    amount = whole(said.get("size"))
    if amount < 0 or said.get("direction") != "upload":
        return ""
    text = f"uploaded {size(amount)}" + (f" in {pieces} pieces" if pieces > 1 else "")
    if said.get("sha256"):
        text += f"  sha256 {str(said['sha256'])[:SHA256_SHOWN]}"
    elif said.get("in_order") is False:
        text += "  not in order: no sha256"
    return text + ("  not complete" if said.get("complete") is False else "")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
