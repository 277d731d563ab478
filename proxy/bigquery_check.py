"""``gatecast bigquery check``: see whether targets of BigQuery can be reached, and what the gateway may do there.

The way there is the gateway's own: its credentials (proxy/credentials), each account of the target apart, and a first
connection by the dial of the protocol, so that what is wrong with address, certificate or credential is told in the
same words. Questions are then asked by Google's own client over the same TLS context: a dry run, datasets, tables,
tables.testIamPermissions, the policy tags of columns. The project's rights are asked of the Resource Manager, where the
target is Google itself. Of the Storage API only the handshake is tried (TLS, HTTP/2). The client is imported here and
nowhere else; it follows no redirects, asks nothing twice and uses no proxy of the environment.

Exit codes: 0 all targets work; 1 one does not, or misses a right (with --strict: or has too many); 2 wrong arguments.
Left out: a query that runs, which would bill; rights on more than a few tables. Nothing is changed, and secrets are in
no output: texts of the server are searched for the token.
Source: BigQuery REST v2; "BigQuery IAM roles and permissions"; "Introduction to column-level access control".
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import ssl
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from protocols.bigquery.dial import dial
from protocols.bigquery.dial_settings import API_HOST, Settings, read_settings
from proxy.commands import CommandError, _print, config_path
from proxy.core.errors import GatecastError
from proxy.core.parties import Credential, Identity, Target
from proxy.core.text import fields, harmless
from proxy.credentials.static import StaticCredential, StaticCredentials
from proxy.http.dialing import authorization, tls_context
from proxy.kube_check import _OPERATOR, CheckFailed, _operators_words
from proxy.kube_sections import BIGQUERY
from proxy.services import credentials_of
from proxy.snapshot import read_snapshot

READ_SECONDS: Final = 30.0  # for one answer: a dry run resolves names, which takes some seconds at a cold start
WORDS_LIMIT: Final = 300  # characters of what a server says of an error
SHOWN: Final = 8  # names in one line
DATASETS_LIMIT: Final = 50  # that are listed
LOOKED_DATASETS: Final = 5  # in which tables are looked for
LOOKED_TABLES: Final = 3  # of each, whose rights and columns are looked at
RESOURCE_MANAGER: Final = "https://cloudresourcemanager.googleapis.com"
_WHO: Final = Identity("gatecast bigquery check")
_ASKED: Final = re.compile(r"^(?:GET|POST) \S+: ")  # what the client puts before the service's own words
_UNREACHED: Final = "look at the target's host and port, and at firewalls between; proxies are not used"

# Rights at a project, and why; asked of the Resource Manager.
PROJECT_NEEDED: Final = {
    "bigquery.jobs.create": "queries are jobs",
    "bigquery.readsessions.create": "to_dataframe() reads by the Storage API",
    "bigquery.readsessions.getData": "to_dataframe() reads by the Storage API",
}
PROJECT_TOO_MUCH: Final = {
    "bigquery.jobs.listAll": "shows the SQL of everybody in the project",
    "resourcemanager.projects.setIamPolicy": "can give itself every right",
    "iam.serviceAccountKeys.create": "can make keys of other accounts",
    "iam.serviceAccounts.getAccessToken": "can act as other accounts",
}
# Rights at a table.
READ: Final = "bigquery.tables.getData"
TABLE_NOTED: Final = {"bigquery.tables.updateData": "write", "bigquery.tables.delete": "delete"}
TABLE_TOO_MUCH: Final = {"bigquery.tables.setIamPolicy": "can share tables with anybody, past the gateway"}


@dataclass(slots=True)
class Findings:
    """What a check found of one account, filled as it goes on. account: its groups, "" for the target's own."""

    target: str
    account: str = ""
    address: str = ""
    storage: str = ""
    user: str = ""
    project: str = ""
    datasets: list[str] = field(default_factory=list)
    tagged: list[str] = field(default_factory=list)  # columns with policy tags, of the tables that were looked at
    held: list[str] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    too_much: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    advice: str = ""

    def passes(self, strict: bool) -> bool:
        """Whether it works; strict: and the account has no more rights than it needs."""
        return not self.error and not self.missing and not (strict and self.too_much)


def check(options: Namespace) -> int:
    """gatecast bigquery check."""
    snapshot = read_snapshot(config_path(options), secrets.token_bytes(32))
    known = {name: target for name, target in snapshot.targets.items() if target.protocol == BIGQUERY}
    wanted = list(dict.fromkeys(options.target or known))
    if not wanted:
        raise CommandError("no target of the configuration is of BigQuery")
    for name in wanted:
        if name not in known:
            hint = f"those of BigQuery are {', '.join(sorted(known))}" if known else "none is of BigQuery"
            raise CommandError(f"{name}: is no target of BigQuery; {hint}")
    sources = credentials_of(snapshot)
    found = [look(known[name], source, account) for name in wanted for account, source in accounts_of(sources[name])]
    code = 0 if all(each.passes(options.strict) for each in found) else 1
    shown = [_json(each, options.strict) for each in found]
    return _print(options, {"ok": code == 0, "targets": shown}, "\n".join(_render(each) for each in found), code)


def accounts_of(source: StaticCredential) -> Iterator[tuple[str, StaticCredential]]:
    """The credentials of a target, each with the groups that it is for."""
    if not source.absent:
        yield "", replace(source, accounts=())
    for account in source.accounts:
        yield ", ".join(account.groups), account.credential


def look(target: Target, source: StaticCredential, account: str = "", resource_manager: str | None = None) -> Findings:
    """Check one account; what is wrong with it is in the findings. resource_manager: None for Google's, if it is it."""
    found = Findings(target.name, account)
    try:
        with _operators_words() as words:
            settings, credential = asyncio.run(_reached(target, source, found))
            if resource_manager is None:
                resource_manager = RESOURCE_MANAGER if settings.host == API_HOST else ""
            with closing(_Client(settings, credential, target.database)) as client:
                _ask(client, found, target, resource_manager)
            _ask_storage(settings, found)
    except CheckFailed as error:
        found.error, found.advice = str(error), error.advice
    except GatecastError as error:
        # Users are told to ask the operator, for whose log the reason was: here the operator asks.
        found.error = _OPERATOR.sub("", str(error))
        told = "; ".join(words)  # a text about the certificate says itself what to do
        found.advice = told if told or "bigquery." in found.error else _UNREACHED
    return found


async def _reached(target: Target, source: StaticCredential, found: Findings) -> tuple[Settings, Credential]:
    """Connect once as the gateway does. Raises GatecastError."""
    settings = read_settings(target)
    found.address = _origin(settings)
    credential = await StaticCredentials({target.name: source}).get(_WHO, target)
    stream = await dial(target, credential)
    await stream.close()
    return settings, credential


def _origin(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"https://{host}" if settings.port == 443 else f"https://{host}:{settings.port}"


# -- the questions ------------------------------------------------------------------------------------


def _session(settings: Settings, credential: Credential) -> Any:
    """A session of requests that shows the credential, over the context of the gateway's own connections."""
    import requests
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
            more |= {"ssl_context": tls_context(settings, credential), "server_hostname": settings.server_name}
            if settings.server_name != settings.host:
                more["assert_hostname"] = settings.server_name
            super().init_poolmanager(*arguments, **more)

        def cert_verify(self, *_: Any) -> None:
            """The context says who is trusted; requests would add all public authorities to it."""

    class Session(requests.Session):
        def request(self, *arguments: Any, **more: Any) -> Any:
            return super().request(*arguments, **{**more, "allow_redirects": False})

    session = Session()
    session.trust_env = False
    session.headers.update(dict(authorization(credential)))
    session.mount(_origin(settings), Adapter())
    return session


class _Client:
    """Google's own client; every question is asked once."""

    def __init__(self, settings: Settings, credential: Credential, project: str) -> None:
        from google.api_core import exceptions
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import bigquery

        self._api = bigquery
        self._exceptions = exceptions
        self._secret = credential.secret
        self._http = _session(settings, credential)
        self._client = bigquery.Client(
            project or "-",  # the client wants one; it is replaced by the first that is visible
            AnonymousCredentials(),  # type: ignore[no-untyped-call]  # the session shows the token
            _http=self._http,
            client_options={"api_endpoint": _origin(settings)},
        )
        self._once: dict[str, Any] = {"retry": None, "timeout": READ_SECONDS}

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def projects(self) -> list[str]:
        """Some projects that the account sees."""
        found = self._call(lambda: list(self._client.list_projects(max_results=SHOWN, **self._once)))
        return [str(project.project_id) for project in found]

    def dry_run(self, project: str, sql: str) -> Any:
        """The job that a query would be. Raises CheckFailed."""
        settings = self._api.QueryJobConfig(dry_run=True, use_query_cache=False)
        return self._call(lambda: self._client.query(sql, settings, project=project, job_retry=None, **self._once))

    def datasets(self, project: str) -> list[str]:
        """Some datasets of a project. Raises CheckFailed."""
        found = self._call(lambda: list(self._client.list_datasets(project, max_results=DATASETS_LIMIT, **self._once)))
        return [f"{each.project}.{each.dataset_id}" for each in found]

    def tables(self, dataset: str) -> list[str]:
        """The first tables of a dataset. Raises CheckFailed."""
        found = self._call(lambda: list(self._client.list_tables(dataset, max_results=2 * LOOKED_TABLES, **self._once)))
        return [str(each.reference) for each in found if each.table_type == "TABLE"][:LOOKED_TABLES]

    def tagged(self, table: str) -> list[str]:
        """The columns of a table that have policy tags, as paths. Raises CheckFailed."""
        return list(_tagged(self._call(lambda: self._client.get_table(table, **self._once)).schema))

    def held(self, table: str, rights: Sequence[str]) -> frozenset[str]:
        """Which of these rights the account has at a table. Raises CheckFailed."""
        answer = self._call(lambda: self._client.test_iam_permissions(table, list(rights), **self._once))
        return frozenset(answer.get("permissions", ()))

    def held_at(self, manager: str, project: str, rights: Sequence[str]) -> frozenset[str]:
        """Which of these rights the account has at the project, as the Resource Manager says. Raises CheckFailed."""

        def ask() -> Any:
            url = f"{manager}/v1/projects/{project}:testIamPermissions"
            answer = self._http.post(url, json={"permissions": list(rights)}, timeout=READ_SECONDS)
            if answer.status_code != 200:
                raise self._exceptions.from_http_response(answer)
            return answer.json()

        return frozenset(self._call(ask).get("permissions", ()))

    def _call(self, call: Callable[[], Any]) -> Any:
        import requests

        try:
            return call()
        except self._exceptions.GoogleAPICallError as error:
            raise self._explained(error) from None
        except requests.RequestException as error:
            raise CheckFailed(f"BigQuery does not answer: {self._clean(str(error))}", _UNREACHED) from None
        except (ValueError, TypeError, KeyError, AttributeError):  # what the client makes of an answer of another form
            advice = "look at what host and port lead to: perhaps it is a proxy, or another service"
            raise CheckFailed("what answers there is no BigQuery", advice) from None

    def _explained(self, error: Any) -> CheckFailed:
        status = int(error.code or 0)
        said = (str(error.message) or "nothing more").splitlines()[0]  # below, the client names the job
        text = f"BigQuery answers {status}: {self._clean(_ASKED.sub('', said))}"
        if status == 401:
            advice = "it does not take the credential: expired, revoked, or no access token; issue a new one"
        elif status == 403:
            advice = "give the account roles/bigquery.jobUser at the project, and roles/bigquery.dataViewer at the data"
        elif status == 404:
            advice = "database: names a project that is not there, or host leads elsewhere"
        elif 300 <= status < 400:
            advice = "it sends elsewhere, where the gateway never follows: name the endpoint itself as host"
        else:
            advice = "the trouble is on the service's side"
        return CheckFailed(text, advice)

    def _clean(self, text: str) -> str:
        """A peer's text without our token, and not without end."""
        if self._secret is not None:
            text = text.replace(self._secret.reveal(), "[token]")
        return text if len(text) <= WORDS_LIMIT else text[:WORDS_LIMIT] + "..."


def _tagged(columns: Sequence[Any], before: str = "") -> Iterator[str]:
    for column in columns:
        path = f"{before}{column.name}"
        if column.policy_tags is not None and column.policy_tags.names:
            yield path
        yield from _tagged(column.fields, f"{path}.")


def _ask(client: _Client, found: Findings, target: Target, manager: str) -> None:
    """Ask everything, in order. Raises CheckFailed."""
    found.project = target.database
    if not found.project:
        projects = client.projects()
        if not projects:
            raise CheckFailed("the account sees no project", "say which one is billed: database: PROJECT")
        found.project = projects[0]
        found.notes.append(f"database: names no project, so {projects[0]} was asked; callers bill the one they name")
    job = client.dry_run(found.project, "SELECT 1")
    found.held.append("bigquery.jobs.create")
    found.user = str(job.user_email or "")
    found.datasets = client.datasets(found.project)
    if not found.datasets:
        found.notes.append(f"no dataset of {found.project} is visible; those of other projects were not looked for")
    _look_at_tables(client, found)
    if manager:
        _ask_project(client, found, manager)


def _look_at_tables(client: _Client, found: Findings) -> None:
    """Ask for rights and policy tags of a few tables; what a dataset hides is a note."""
    looked: dict[str, frozenset[str]] = {}
    rights = (READ, *TABLE_NOTED, *TABLE_TOO_MUCH)
    for dataset in found.datasets[:LOOKED_DATASETS]:
        try:
            for table in client.tables(dataset):
                looked[table] = client.held(table, rights)
                columns = client.tagged(table)
                found.tagged += [f"{table}.{column}" for column in columns]
                if columns:
                    _read_tagged(client, found, table, columns)
        except CheckFailed as error:
            found.notes.append(f"{dataset}: {error}")
    if not looked:
        return
    readable = [table for table, held in looked.items() if READ in held]
    if readable:
        found.held.append(READ)
        if len(readable) < len(looked):
            found.notes.append(f"{READ}: on {len(readable)} of the {len(looked)} tables that were looked at")
    else:
        found.missing.append((READ, f"none of the {len(looked)} tables that were looked at can be read"))
    may = [word for right, word in TABLE_NOTED.items() if any(right in held for held in looked.values())]
    if may:
        found.notes.append(f"the account may {' and '.join(may)}: so may whom the rules allow it")
    for right, why in TABLE_TOO_MUCH.items():
        if any(right in held for held in looked.values()):
            found.too_much.append((right, why))


def _read_tagged(client: _Client, found: Findings, table: str, columns: Sequence[str]) -> None:
    """See whether BigQuery's own policy tags mean anything to this account."""
    chosen = ", ".join(".".join(f"`{part}`" for part in column.split(".")) for column in columns if "." not in column)
    if not chosen:
        return
    try:
        client.dry_run(found.project, f"SELECT {chosen} FROM `{table}`")  # noqa: S608  # names that BigQuery gave us
    except CheckFailed:
        found.notes.append(f"{table}: BigQuery keeps tagged columns from this account, or masks them")
        return
    found.notes.append(
        f"{table}: the account may ask for columns with policy tags; rules and masks decide, or its roles"
    )


def _ask_project(client: _Client, found: Findings, manager: str) -> None:
    try:
        held = client.held_at(manager, found.project, (*PROJECT_NEEDED, *PROJECT_TOO_MUCH))
    except CheckFailed as error:  # its API may be turned off in the project
        found.notes.append(f"the project's rights cannot be asked for: {error}")
        return
    for right, why in PROJECT_NEEDED.items():
        if right in held:
            found.held += [right] if right not in found.held else []
        elif right not in found.held:
            found.missing.append((right, why))
    found.too_much += [(right, why) for right, why in PROJECT_TOO_MUCH.items() if right in held]


def _ask_storage(settings: Settings, found: Findings) -> None:
    """Shake hands with the Storage API. Raises CheckFailed, GatecastError."""
    host = f"[{settings.storage_host}]" if ":" in settings.storage_host else settings.storage_host
    place = f"{host}:{settings.storage_port}"
    found.storage = f"{place}, without TLS" if settings.storage_plain else place
    advice = "bigquery: {storage: host:port} says where it is; to_dataframe() needs it"
    try:
        address = (settings.storage_host, settings.storage_port)
        with socket.create_connection(address, settings.connect_timeout_seconds) as sock:
            if settings.storage_plain:
                return
            # A context of its own: tls_context() keeps those that it made, and they offer HTTP/1.1.
            context = ssl.create_default_context(cafile=settings.ca_file or None)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.set_alpn_protocols(["h2"])
            with context.wrap_socket(sock, server_hostname=settings.storage_host) as tls:
                if tls.selected_alpn_protocol() != "h2":
                    raise CheckFailed(f"{place}: what answers there speaks no HTTP/2", advice)
    except ssl.SSLCertVerificationError as error:
        why = f"{place}: its certificate is not good: {error.verify_message}"
        raise CheckFailed(why, "bigquery: {ca_file: ...} names who certifies it") from None
    except OSError as error:
        raise CheckFailed(f"{place}: the Storage API does not answer: {error.strerror or error}", advice) from None


# -- what is printed ----------------------------------------------------------------------------------


def _json(found: Findings, strict: bool) -> dict[str, Any]:
    def pairs(those: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        return [{"right": right, "why": why} for right, why in those]

    return {
        "target": found.target,
        "account": found.account,
        "ok": found.passes(strict),
        "address": found.address,
        "storage": found.storage,
        "user": found.user,
        "project": found.project,
        "datasets": found.datasets,
        "tagged": found.tagged,
        "held": found.held,
        "missing": pairs(found.missing),
        "too_much": pairs(found.too_much),
        "notes": found.notes,
        "error": found.error,
        "advice": found.advice,
    }


def _render(found: Findings) -> str:
    def some(names: Sequence[str]) -> str:
        more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return ", ".join(names[:SHOWN]) + more

    lines = [("target", f"{found.target}, for {found.account}" if found.account else found.target)]
    lines += [("address", found.address), ("storage", found.storage), ("we are", found.user)]
    lines += [("project", found.project), ("datasets", some(found.datasets)), ("tagged", some(found.tagged))]
    lines += [("has", ", ".join(found.held))]
    lines += [("MISSING", f"{right}: {why}") for right, why in found.missing]
    lines += [("TOO MUCH", f"{right}: {why}") for right, why in found.too_much]
    lines += [("note", note) for note in found.notes]
    if found.error:
        lines += [("FAILED", found.error), ("next", found.advice)]
    return harmless(fields(lines), lines=True)
