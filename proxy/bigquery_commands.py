"""What ``gatecast bigquery config`` and ``bigquery token`` do: clients of BigQuery reach a target through the gateway.

They run where the client does, and need no configuration of the gateway. config writes files, or prints them, for two
doors (docs/bigquery.md says how they differ):

- a universe: an external_account credential, which Google's libraries exchange for access tokens at the gateway; REST
  and the Storage API both follow. environment.sh has what they and gcloud read.
- an endpoint: the address of the REST API alone; clients are given it in code, as in python.py and node.mjs.

No file holds a token: all name the user's own file, which is read again as it changes. Nothing is overwritten. token
is that exchange by itself, for bq: gcloud would show an exchanged credential to Google, which knows nothing of it
(sts.googleapis.com/v1/introspect).

Left out: a login that fetches tokens by itself, until gatecast has such a command.
Source: bigquery note 2; AIP-4117 (external accounts); RFC 8693 2.1.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import ssl
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from cryptography import x509

from proxy.bigquery_sections import PROJECT_PATTERN, UNIVERSE_LIMIT, UNIVERSE_PATTERN
from proxy.commands import CommandError, _print
from proxy.values import NAME_PATTERN

CA_LIMIT_BYTES: Final = 1 << 20  # as proxy/kube_commands.py
TOKEN_LIMIT_BYTES: Final = 65_535  # PROOF_LIMIT of proxy/identity/proof.py
ANSWER_LIMIT_BYTES: Final = 64 << 10  # an access token has 6 KiB at most (protocols/bigquery/sts.py)
EXCHANGE_SECONDS: Final = 30.0
MODE: Final = 0o600

JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  # a type's name


@dataclass(frozen=True, slots=True)
class Door:
    """How a client reaches a target. universe or endpoint (https://host:port) is "". folder: where files will be."""

    target: str
    universe: str
    endpoint: str
    token_file: Path
    ca: Path | None
    project: str
    folder: Path

    @property
    def origin(self) -> str:
        """Where tokens are exchanged."""
        return f"https://sts.{self.universe}" if self.universe else self.endpoint


def config(options: Namespace) -> int:
    """gatecast bigquery config."""
    door = door_of(options)
    files = files_of(door, bundled=bool(options.out))
    shown = {"target": door.target, "door": "universe" if door.universe else "endpoint", "files": files}
    shown |= {"environment": environment_of(door, bool(options.out))}
    if not options.out:
        return _print(options, shown, "".join(f"# {name}\n{text}\n" for name, text in files.items()))
    _write(door.folder, files)
    shown["directory"] = str(door.folder)
    return _print(options, shown, f"{door.folder} is written: {', '.join(files)}.\n{_next(door)}")


def token(options: Namespace) -> int:
    """gatecast bigquery token."""
    door = door_of(options)
    found, seconds = exchange(door)
    if options.output == "-":
        return _print(options, {"access_token": found, "expires_in": seconds}, f"{found}\n")
    _replace(Path(options.output), found + "\n")
    shown = {"file": options.output, "expires_in": seconds}
    return _print(options, shown, f"{options.output} is written; it holds for {seconds // 60} minutes.\n")


def door_of(options: Namespace) -> Door:
    """Read the arguments. Raises CommandError."""
    if not re.fullmatch(NAME_PATTERN, options.target):
        raise CommandError(f"{options.target}: a target is called so nowhere; it is its name in gatecast.yaml")
    universe = (options.universe or "").lower().rstrip(".")
    if options.universe and (len(universe) > UNIVERSE_LIMIT or not re.fullmatch(UNIVERSE_PATTERN, universe)):
        raise CommandError("--universe is a domain, gw.example, as in the gateway's listener")
    token_file = Path(options.token_file).absolute()
    if not token_file.is_file():
        raise CommandError(f"{token_file}: is not there; gatecast token issue prints a token; put it there, mode 0600")
    project = getattr(options, "project", None) or ""
    if project and not PROJECT_PATTERN.fullmatch(project):
        raise CommandError(f"--project {project}: is no id of a project in Google Cloud")
    ca = Path(options.ca).absolute() if options.ca else None
    if ca is not None:
        _authorities(ca)
    folder = Path(getattr(options, "out", None) or ".").absolute()
    return Door(options.target, universe, _origin(options.endpoint), token_file, ca, project, folder)


# -- the files ----------------------------------------------------------------------------------------


def environment_of(door: Door, bundled: bool) -> dict[str, str]:
    """The variables of the client. bundled: the gateway's authority stands in a bundle beside the files."""
    made: dict[str, str] = {}
    if door.project:
        made |= {"GOOGLE_CLOUD_PROJECT": door.project, "CLOUDSDK_CORE_PROJECT": door.project}
    if door.universe:
        made |= {
            "GOOGLE_APPLICATION_CREDENTIALS": str(door.folder / "credential.json"),
            "GOOGLE_CLOUD_UNIVERSE_DOMAIN": door.universe,
            "CLOUDSDK_CORE_UNIVERSE_DOMAIN": door.universe,
        }
    else:
        made["CLOUDSDK_API_ENDPOINT_OVERRIDES_BIGQUERY"] = f"{_endpoint(door)}/"
    made["CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"] = str(door.token_file)
    if door.ca is not None:
        authority = str(door.folder / "ca-bundle.pem" if bundled else door.ca)
        names = (
            "REQUESTS_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS",
            "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
        )  # fmt: skip
        made |= dict.fromkeys(names, authority)
    return made


def files_of(door: Door, bundled: bool) -> dict[str, str]:
    """The files, by name."""
    files = {"environment.sh": _shell(door, environment_of(door, bundled))}
    if door.universe:
        files["credential.json"] = json.dumps(credential_of(door), indent=2) + "\n"
    files |= {"python.py": _python(door), "node.mjs": _node(door), "profiles.yml": _dbt(door)}
    if bundled and door.ca is not None:
        files["ca-bundle.pem"] = _bundle(door.ca)
    return files


def credential_of(door: Door) -> dict[str, Any]:
    """What google-auth reads: where the token is, and where it is exchanged. It holds no secret.

    The audience has no segment "projects/", or google-auth would ask another service for that project's name.
    """
    return {
        "type": "external_account",
        "audience": f"//gatecast/{door.target}",
        "subject_token_type": JWT,
        "token_url": f"{door.origin}/v1/token",
        "credential_source": {"file": str(door.token_file)},
        "universe_domain": door.universe,
    }


def _shell(door: Door, environment: Mapping[str, str]) -> str:
    lines = ["# Read by Google's libraries, gcloud and bq:  . ./environment.sh"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    if not door.project:
        lines.append("# export GOOGLE_CLOUD_PROJECT=  # the project that is billed")
    lines += [
        "# bq shows this token as it is, and it names no target: so bq reaches the default target of the listener. For",
        f"# another, once an hour: gatecast bigquery token {door.target} ... --output FILE, and FILE in its place.",
    ]
    if not door.universe:
        lines += [
            "# This is REST alone. With google-cloud-bigquery-storage installed, to_dataframe() leaves for Google,",
            "# with this token: leave the package out, or use the universe.",
            'export DBT_ENV_SECRET_GATECAST_TOKEN="$(cat ' + shlex.quote(str(door.token_file)) + ')"',
        ]
    return "\n".join(lines) + "\n"


def _python(door: Door) -> str:
    project = f"{door.project!r}" if door.project else ""
    if door.universe:
        return (
            "# With environment.sh: nothing of gatecast is in the code.\n"
            "from google.cloud import bigquery\n\n"
            f"client = bigquery.Client({project})\n"
            'print(list(client.query_and_wait("SELECT 1 AS one")))\n'
        )
    return (
        "from pathlib import Path\n\n"
        "from google.cloud import bigquery\n"
        "from google.oauth2.credentials import Credentials\n\n"
        "client = bigquery.Client(\n"
        + (f"    project={project},\n" if project else "")
        + f"    credentials=Credentials(Path({str(door.token_file)!r}).read_text().strip()),\n"
        f'    client_options={{"api_endpoint": {_endpoint(door)!r}}},\n'
        ")\n"
        "# With the storage package installed, to_dataframe() needs create_bqstorage_client=False.\n"
        'print(list(client.query_and_wait("SELECT 1 AS one")))\n'
    )


def _node(door: Door) -> str:
    project = f"projectId: {json.dumps(door.project)}, " if door.project else ""
    head = "import { BigQuery } from '@google-cloud/bigquery';\n"
    ask = "const [rows] = await bigquery.query('SELECT 1 AS one');\nconsole.log(rows);\n"
    if door.universe:
        made = f"const bigquery = new BigQuery({{ {project}universeDomain: {json.dumps(door.universe)} }});\n"
        return "// With environment.sh; node does not read the universe from there.\n" + head + made + ask
    return (
        "import { readFileSync } from 'node:fs';\nimport { OAuth2Client } from 'google-auth-library';\n"
        + head
        + "const authClient = new OAuth2Client();\n"
        + f"const token = readFileSync({json.dumps(str(door.token_file))}, 'utf8').trim();\n"
        + "authClient.setCredentials({ access_token: token });\n"
        + f"const bigquery = new BigQuery({{ {project}authClient, apiEndpoint: {json.dumps(_endpoint(door))} }});\n"
        + ask
    )


def _dbt(door: Door) -> str:
    lines = [
        "# A profile of dbt-bigquery; dataset is where models are built.",
        "gatecast:",
        "  target: dev",
        "  outputs:",
        "    dev:",
        "      type: bigquery",
        f"      project: {door.project or 'PROJECT'}",
        "      dataset: DATASET",
    ]
    if door.universe:
        lines.append("      method: oauth")
    else:
        lines += [
            "      method: oauth-secrets",
            "      token: \"{{ env_var('DBT_ENV_SECRET_GATECAST_TOKEN') }}\"",
            f"      api_endpoint: {_endpoint(door)}",
        ]
    return "\n".join(lines) + "\n"


def _next(door: Door) -> str:
    lines = ["Try it:", f"  . {shlex.quote(str(door.folder / 'environment.sh'))}"]
    lines.append(f"  python {shlex.quote(str(door.folder / 'python.py'))}")
    if not door.project:
        lines.append("No project is named: set GOOGLE_CLOUD_PROJECT, or give --project.")
    if not door.universe:
        lines.append("This is REST alone: close the way to Google, as docs/bigquery.md says.")
    return "\n".join(lines) + "\n"


def _endpoint(door: Door) -> str:
    return f"{door.endpoint}/bq/{door.target}"


def _origin(url: str | None) -> str:
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if (
        not good
        or "@" in parts.netloc
        or parts.path.strip("/")
        or parts.query
        or parts.fragment
        or url.split() != [url]
    ):
        raise CommandError("--endpoint is https://host:port; no token is sent without TLS, and the path is ours")
    return f"https://{parts.netloc}"


def _authorities(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(CA_LIMIT_BYTES + 1)
    if len(data) > CA_LIMIT_BYTES:
        raise CommandError(f"{path}: is longer than {CA_LIMIT_BYTES} bytes")
    if b"PRIVATE KEY" in data:
        raise CommandError(f"{path}: holds a private key; give the certificate alone")
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError:
        raise CommandError(f"{path}: holds no certificate in PEM form") from None
    return data


def _bundle(ca: Path) -> str:
    """The public authorities with the gateway's: the variables take the place of a client's own list."""
    system = ssl.get_default_verify_paths().cafile
    if system is None:
        from requests import certs

        system = certs.where()
    return Path(system).read_text(errors="replace").rstrip() + "\n" + _authorities(ca).decode("ascii", "replace")


def _write(folder: Path, files: Mapping[str, str]) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        hint = "give another --out, or move it away"
        raise CommandError(f"{folder}: is there already, and is not overwritten; {hint}") from None
    for name, text in files.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)


def _replace(path: Path, text: str) -> None:
    """Write a file that somebody may be reading: the old one is whole until the new one is."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# -- the exchange -------------------------------------------------------------------------------------


def exchange(door: Door) -> tuple[str, int]:
    """Ask the gateway for an access token, and return it with its seconds. Raises CommandError; it names no token."""
    import requests

    with door.token_file.open("rb") as file:
        proof = file.read(TOKEN_LIMIT_BYTES + 1).strip()
    form = urlencode({
        "grant_type": GRANT, "audience": f"//gatecast/{door.target}", "requested_token_type": ACCESS_TOKEN,
        "subject_token_type": JWT, "subject_token": proof.decode("ascii", "replace"),
    })  # fmt: skip
    url, verify = f"{door.origin}/v1/token", str(door.ca) if door.ca is not None else True
    try:
        with requests.Session() as session:
            session.trust_env = False  # a proxy's, or a .netrc's, is no matter of this exchange
            answer = session.post(
                url, data=form, verify=verify, timeout=EXCHANGE_SECONDS, allow_redirects=False, stream=True,
                headers={"Content-Type": "application/x-www-form-urlencoded", "Accept-Encoding": "identity"},
            )  # fmt: skip
            body = answer.raw.read(ANSWER_LIMIT_BYTES + 1)
    except requests.exceptions.SSLError:
        raise CommandError(f"{url}: its certificate is not of an authority that is known; --ca names it") from None
    except (requests.RequestException, OSError):
        raise CommandError(f"{url}: the gateway does not answer; is that its address?") from None
    try:
        said = json.loads(body) if len(body) <= ANSWER_LIMIT_BYTES else None
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise CommandError(f"{url}: what answers there ({answer.status_code}) is no gatecast")
    found, seconds = said.get("access_token"), said.get("expires_in")
    if answer.status_code == 200 and isinstance(found, str) and found and isinstance(seconds, int):
        return found, seconds
    raise CommandError(f"the exchange failed: {str(said.get('error_description') or said.get('error'))[:300]}")
