"""gatecast.yaml: one file, read into frozen models; every error says ``file:line: path: message``.

load_config() reads the file, checks it against the models of proxy/sections.py (an unknown key is an error) and
across sections (unique names, protocols that exist), and reports everything it found at once. json_schema() is the
same for editors. Relative paths are relative to the file; tapes and keys to the state directory.
Specification: docs/operations.md, and the schema that ``gatecast config schema`` prints.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from proxy.bigquery_sections import misplaced_bigquery
from proxy.core.errors import ConfigError
from proxy.kube_sections import misplaced_kubernetes
from proxy.lines import Document, Place, read_document
from proxy.sections import Config
from proxy.ssh_sections import misplaced


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that was read and checked, with what is needed to point at its lines."""

    path: Path
    config: Config
    document: Document

    @property
    def directory(self) -> Path:
        """What relative paths are relative to."""
        return self.path.parent

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.directory / self.config.state

    def resolve(self, path: Path) -> Path:
        """Make a path of the file absolute."""
        return self.directory / path


class ConfigErrors(ConfigError):
    """Everything that is wrong with a configuration, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def load_config(path: Path, protocols: frozenset[str]) -> Loaded:
    """Read and check a file. protocols: the names of those that exist. Raises ConfigError with every problem."""
    path = path.absolute()
    document = read_document(path)
    try:
        config = Config.model_validate(document.data)
    except ValidationError as error:
        raise ConfigErrors(_explain(error, document)) from None  # pydantic's own text would repeat it
    problems = [document.error(where, message) for where, message in _cross_check(config, protocols)]
    if problems:
        raise ConfigErrors(problems)
    return Loaded(path, config, document)


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of gatecast.yaml."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "gatecast.yaml"}


def _cross_check(config: Config, protocols: frozenset[str]) -> list[tuple[Place, str]]:
    """What no single section can know."""
    problems: list[tuple[Place, str]] = []
    for section, names in (
        ("listeners", [listener.name for listener in config.listeners]),
        ("targets", [target.name for target in config.targets]),
    ):
        for index, name in enumerate(names):
            if name in names[:index]:
                problems.append(((section, index, "name"), f"the name {name} is taken"))
    users = [user.name for user in config.identity.users]
    for index, name in enumerate(users):
        if name in users[:index]:
            problems.append((("identity", "users", index, "name"), f"the name {name} is taken"))
    issuers = [issuer.issuer for issuer in config.identity.oidc]
    for index, issuer in enumerate(issuers):
        if issuer in issuers[:index]:
            problems.append((("identity", "oidc", index, "issuer"), "the issuer appears twice"))
    for index, listener in enumerate(config.listeners):
        if listener.protocol not in protocols:
            problems.append((("listeners", index, "protocol"), _unknown("protocol", listener.protocol, protocols)))
        elif listener.login == "scram" and not users:
            problems.append((("listeners", index, "login"), "login: scram needs identity.users"))
        elif listener.login == "oauth" and not issuers:
            problems.append((("listeners", index, "login"), "login: oauth needs identity.oidc"))
    for index, target in enumerate(config.targets):
        if target.protocol not in protocols:
            problems.append((("targets", index, "protocol"), _unknown("protocol", target.protocol, protocols)))
    return problems + misplaced(config) + misplaced_kubernetes(config) + misplaced_bigquery(config)


def _explain(error: ValidationError, document: Document) -> list[str]:
    """One line for each problem that pydantic found, in the order of the file."""
    found: dict[tuple[int, str], None] = {}
    for detail in error.errors(include_url=False, include_input=False):
        path: Place = tuple(detail["loc"])
        match detail["type"]:
            case "extra_forbidden":
                known = _known_keys(path[:-1])
                message = "unknown key" + _suggestion(str(path[-1]), known)
            case "missing":
                message = "is missing"
            case "value_error":
                message = str(detail["ctx"]["error"])
            case "model_type" | "dict_type":
                message = "should be a mapping (key: value)"
            case "string_pattern_mismatch":
                message = f"should match {detail['ctx']['pattern']}"
            case _:
                message = detail["msg"].removeprefix("Input ")
        # Members of a union add their own name to the path; it is no part of the file.
        while path and detail["type"] != "missing" and path not in document.lines:
            path = path[:-1]
        found[(document.line(path), document.error(path, message))] = None
    return [text for _, text in sorted(found)]


def _known_keys(path: Place) -> frozenset[str]:
    """The keys that a section may have, found by walking the models along the path."""
    model: type[BaseModel] = Config
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        if field is None:
            return frozenset()
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        found = [one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)]
        if not found:
            return frozenset()
        model = found[0]
    return frozenset(model.model_fields)


def _unknown(what: str, name: str, known: frozenset[str]) -> str:
    return f"there is no {what} {name}{_suggestion(name, known)}"


def _suggestion(word: str, known: frozenset[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
