"""The gaps of bqemulator 1.4.0, each with the public documentation of what the real service does there.

FILLED says what the layer adds; OPEN what nobody does here: no test may lean on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REST: Final = "https://cloud.google.com/bigquery/docs/reference/rest/v2"


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that the emulator does otherwise."""

    name: str
    what: str
    documentation: str


FILLED: Final[tuple[Gap, ...]] = (
    Gap(
        "token",
        "any token passes: 401 with reason authError here",
        "https://cloud.google.com/bigquery/docs/error-messages",
    ),
    Gap(
        "sts",
        "no exchange of tokens at /v1/token",
        "https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token",
    ),
    Gap("universe", "no TLS, no names", "https://google.aip.dev/auth/4117"),
    Gap("discovery", "no discovery document", "https://developers.google.com/discovery/v1/reference/apis/getRest"),
    Gap("batch", "404 for /batch too, but with the framework's own body", "https://cloud.google.com/bigquery/batch"),
    Gap("override", "X-HTTP-Method-Override is not looked at", "https://cloud.google.com/apis/docs/system-parameters"),
    Gap(
        "fields",
        "partial answers are not known; here the top level alone is cut",
        "https://cloud.google.com/apis/docs/system-parameters",
    ),
    Gap("gzip", "answers are never compressed", "https://cloud.google.com/bigquery/docs/api-performance"),
    Gap(
        "emulator-host",
        "paths without /bigquery/v2 (node's BIGQUERY_EMULATOR_HOST) are not served",
        "https://github.com/googleapis/nodejs-bigquery",
    ),
    Gap(
        "any-type",
        "parts of multipart uploads of type */* are refused",
        "https://cloud.google.com/bigquery/docs/reference/api-uploads",
    ),
    Gap(
        "upload-location",
        "Location of resumable uploads names the emulator",
        "https://cloud.google.com/bigquery/docs/reference/api-uploads",
    ),
    Gap("upload-job-id", "an upload's jobReference is ignored", f"{REST}/jobs/insert"),
    Gap("duplicate", "a job id that exists is overwritten: 409 duplicate here", f"{REST}/JobReference"),
    Gap("running", "jobs.insert answers when all is done: state RUNNING first here", f"{REST}/Job#JobStatus"),
    Gap(
        "query-errors",
        "jobs.query answers 200 with errors, getQueryResults 404: the error's own status here",
        f"{REST}/jobs/query",
    ),
    Gap("default-dataset", "jobs.query ignores defaultDataset: it runs as jobs.insert here", f"{REST}/jobs/query"),
    Gap("request-id", "a repeated requestId runs again", f"{REST}/jobs/query"),
    Gap("job-optional", "JOB_CREATION_OPTIONAL is ignored: queryId and no jobReference here", f"{REST}/jobs/query"),
    Gap("job-reference", "no location in the jobReference of results, no user_email, jobType, selfLink", f"{REST}/Job"),
    Gap(
        "destination",
        "destinationTable and writeDisposition are ignored: CREATE or INSERT of the same query here",
        f"{REST}/Job#JobConfigurationQuery",
    ),
    Gap(
        "anonymous",
        "results have no table: made on first use here, by running the query again",
        "https://cloud.google.com/bigquery/docs/cached-results",
    ),
    Gap(
        "dry-run",
        "no referencedTables, 0 bytes: by sqlglot, the catalogue and estimate.py here, views beside their tables",
        "https://cloud.google.com/bigquery/docs/estimate-costs",
    ),
    Gap(
        "bytes-billed",
        "maximumBytesBilled is ignored: bytesBilledLimitExceeded here",
        f"{REST}/Job#JobConfigurationQuery",
    ),
    Gap("views", "tables have no view: its query comes from INFORMATION_SCHEMA.VIEWS here", f"{REST}/tables#Table"),
    Gap("numeric-id", "projects have no numericId, which Python needs", f"{REST}/projects/list"),
    Gap("bytes", "tables have no numRows and numBytes", f"{REST}/tables#Table"),
    Gap("dml-stats", "no dmlStats (MERGE still has none)", f"{REST}/DmlStats"),
    Gap(
        "timestamps",
        "always integers: seconds as a float unless useInt64Timestamp is set, here",
        f"{REST}/DataFormatOptions",
    ),
    Gap("insert-unknown", "insertAll takes unknown fields: insertErrors here", f"{REST}/tabledata/insertAll"),
    Gap("csv-header", "a CSV load without skipLeadingRows loses its first row", f"{REST}/Job#JobConfigurationLoad"),
    Gap(
        "storage-tls",
        "the Storage API has neither TLS nor a token",
        "https://cloud.google.com/bigquery/docs/reference/storage",
    ),
)

OPEN: Final[tuple[Gap, ...]] = (
    Gap("children", "scripts have no child jobs", f"{REST}/jobs/list"),
    Gap(
        "temporary",
        "temporary tables are global, sessions share them",
        "https://cloud.google.com/bigquery/docs/sessions-intro",
    ),
    Gap(
        "routines",
        "no referencedRoutines: nobody says what a query calls",
        f"{REST}/Job#JobStatistics2",
    ),
    Gap(
        "ddl-targets",
        "no ddlTargetTable, ddlTargetRoutine, ddlTargetDataset",
        f"{REST}/Job#JobStatistics2",
    ),
    Gap(
        "materialized-views",
        "they have no query, so that a dry run names them alone; those of tables.insert are tables",
        f"{REST}/tables#MaterializedViewDefinition",
    ),
    Gap(
        "wildcards",
        "a wildcard table is listed as the text names it; whether the service lists what it covers is not documented",
        f"{REST}/Job#JobStatistics2",
    ),
    Gap("estimate-accuracy", "totalBytesProcessedAccuracy is always PRECISE", f"{REST}/Job#JobStatistics2"),
    Gap("list-end", "referencedTables has all tables: the service's list may end at 50", f"{REST}/Job#JobStatistics2"),
    Gap("script-types", "CREATE TEMP FUNCTION before a query makes a SCRIPT of it", f"{REST}/Job#JobStatistics2"),
    Gap("etags", "If-Match and If-None-Match are ignored", "https://cloud.google.com/bigquery/docs/api-performance"),
    Gap(
        "drift",
        "an anonymous table has the rows of its first use, not of the job's end",
        "https://cloud.google.com/bigquery/docs/cached-results",
    ),
    Gap(
        "accuracy",
        "byte estimates are ours: clustering, cache, LIMIT, pruning, columns of pipes and views count for nothing",
        "https://cloud.google.com/bigquery/docs/estimate-costs",
    ),
    Gap("long-poll", "no job is ever PENDING or slow", f"{REST}/jobs/getQueryResults"),
    Gap("selected-nested", "selectedFields of a nested field is an internal error", f"{REST}/tabledata/list"),
    Gap("rights", "every token may do everything", "https://cloud.google.com/bigquery/docs/access-control"),
    Gap(
        "parameters",
        "@`quoted` parameters and some escapes in bytes fail",
        "https://cloud.google.com/bigquery/docs/parameterized-queries",
    ),
)
