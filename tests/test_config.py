"""gatecast.yaml: what is read, and that each error names its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy.config import ConfigErrors, Loaded, json_schema, load_config
from proxy.core.errors import ConfigError
from proxy.lines import DEPTH_LIMIT, TEXT_LIMIT, parse_document, read_document
from proxy.sections import is_loopback, parse_address

PROTOCOLS = frozenset({"postgres"})
GOOD = """\
listeners:
  - name: pg
    protocol: postgres
    address: 127.0.0.1:6432
    plain: true
targets:
  - name: shop
    host: db.internal
    credential: {user: gate, password_env: SHOP_PASSWORD}
    connect_timeout: 1500ms
rules_file: rules.yaml
"""


def load(tmp_path: Path, text: str) -> Loaded:
    path = tmp_path / "gatecast.yaml"
    path.write_text(text)
    return load_config(path, PROTOCOLS)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path, text)
    prefix = f"{tmp_path / 'gatecast.yaml'}:"
    assert all(problem.startswith(prefix) for problem in caught.value.problems)
    return [problem.removeprefix(prefix) for problem in caught.value.problems]


def test_reads_a_file_with_its_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD)
    target = loaded.config.targets[0]
    assert (target.name, target.port, target.connect_timeout, target.recording) == ("shop", None, 1.5, "durable")
    assert loaded.state == tmp_path / ".gatecast"
    assert loaded.config.limits.login_seconds == 60
    assert loaded.resolve(Path(str(loaded.config.rules_file))) == tmp_path / "rules.yaml"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("    host:", "    hots:", "8: targets[0].hots: unknown key; did you mean host?"),
        ("protocol: postgres", "protocol: postgre", "3: listeners[0].protocol: there is no protocol postgre"),
        ("127.0.0.1:6432", "0.0.0.0:6432", "2: listeners[0]: plain: true is for loopback"),
        ("127.0.0.1:6432", "'*:6432'", "2: listeners[0]: plain: true is for loopback"),
        ("127.0.0.1:6432", "::1:6432", "4: listeners[0].address: write an IPv6 address in brackets"),
        ("127.0.0.1:6432", "127.0.0.1:65536", "4: listeners[0].address: write an address as"),
        ("    plain: true\n", "", "2: listeners[0]: give tls:"),
        ("plain: true", "plain: maybe", "5: listeners[0].plain: should be True, False or 'allow-remote'"),
        ("password_env: SHOP_PASSWORD", "password: x", "9: targets[0].credential.password: unknown key"),
        ("1500ms", "ten", "10: targets[0].connect_timeout: write a duration like"),
        ("name: shop", "name: 'a b'", "7: targets[0].name: should match"),
        ("rules_file: rules.yaml", "rules_fil: r", "11: rules_fil: unknown key; did you mean rules_file?"),
        ("rules_file: rules.yaml", "limits: {max_connections: 0}", "11: limits.max_connections: should be greater"),
        ("rules_file: rules.yaml", "limits: 3", "11: limits: should be a mapping"),
        ("    plain: true", "    plain: true\n    login: scram", "6: listeners[0].login: login: scram needs"),
        ("    plain: true", "    plain: true\n    login: oauth", "6: listeners[0].login: login: oauth needs"),
    ],
)
def test_an_error_names_its_line_and_its_path(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new))
    assert any(line.startswith(problem) for line in found), found


def test_rules_are_given_once(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD.replace("rules_file: rules.yaml\n", ""))[0].startswith("1: give rules or rules_file")
    assert problems(tmp_path, GOOD + "rules: []\n")[0].startswith("1: give rules or rules_file")
    assert problems(tmp_path, GOOD + "timezone: Europe/Vienna\n")[0].startswith("1: timezone belongs")


def test_two_passwords_are_one_too_many(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD.replace("password_env:", "password_file: f, password_env:"))
    assert found == ["9: targets[0].credential: give password_env or password_file, not both"]


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("host:", "hots:").replace("plain: true", "plane: true")
    found = problems(tmp_path, text)
    # plane is unknown (so nothing says plain yet, which waits for it), hots is unknown, host is missing
    assert [line.split(":")[0] for line in found] == ["5", "7", "8"]


def test_names_are_unique(tmp_path: Path) -> None:
    second = "  - {name: shop, host: h, credential: {user: u}}\n"
    text = GOOD.replace("rules_file", second + "rules_file")
    assert problems(tmp_path, text) == ["11: targets[1].name: the name shop is taken"]


def test_a_value_is_not_quoted_in_an_error(tmp_path: Path) -> None:
    """Somebody may write a secret in a wrong place; the error goes to logs."""
    text = GOOD.replace("password_env: SHOP_PASSWORD", "password_env: [CANARY-7431]")
    assert "CANARY" not in "\n".join(problems(tmp_path, text))


@pytest.mark.parametrize(
    "issuer", ["http://idp.example.com", "ftp://x", "idp.example.com", "http://localhost.evil.com"]
)
def test_an_issuer_is_reached_by_https(tmp_path: Path, issuer: str) -> None:
    text = GOOD + f"identity:\n  oidc:\n    - issuer: {issuer}\n      audience: gatecast\n"
    assert problems(tmp_path, text) == [
        "14: identity.oidc[0]: an issuer is reached by https, or by http on this machine"
    ]


@pytest.mark.parametrize("algorithm", ["none", "HS256", "hs512", "NONE"])
def test_an_issuer_signs_with_a_private_key(tmp_path: Path, algorithm: str) -> None:
    text = GOOD + f"identity:\n  oidc:\n    - {{issuer: https://i, audience: a, algorithms: [{algorithm}]}}\n"
    assert "should be 'RS256'" in problems(tmp_path, text)[0]


def test_a_password_is_no_verifier(tmp_path: Path) -> None:
    text = GOOD + "identity:\n  users:\n    - {name: ana, scram_verifier: CANARY-hunter2}\n"
    found = problems(tmp_path, text)
    assert "should match ^SCRAM-SHA-256" in found[0]
    assert "CANARY" not in found[0]


SSH = """\
listeners:
  - name: ssh
    protocol: ssh
    address: '*:2222'
targets:
  - name: web
    protocol: ssh
    host: web.internal
    credential: {user: deploy, key_file: id_ed25519}
    ssh: {known_hosts: known_hosts}
rules_file: rules.yaml
"""


def ssh_problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "gatecast.yaml"
    path.write_text(text)
    with pytest.raises(ConfigErrors) as caught:
        load_config(path, frozenset({"postgres", "ssh"}))
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


def test_ssh_needs_no_certificate_of_tls(tmp_path: Path) -> None:
    path = tmp_path / "gatecast.yaml"
    path.write_text(SSH)
    config = load_config(path, frozenset({"ssh"})).config
    target = config.targets[0]
    assert config.listeners[0].ssh is None
    assert target.ssh is not None
    assert target.ssh.env == ("LANG", "LC_*", "TERM", "COLORTERM", "GATECAST_*")
    assert (target.ssh.rekey, target.ssh.exec_only, target.ssh.logins) == (1 << 30, False, ())
    assert target.credential.key_file == Path("id_ed25519")
    assert config.identity.ssh.certificate_max == 12 * 3600


def test_authorities_of_others_are_files_or_more(tmp_path: Path) -> None:
    path = tmp_path / "gatecast.yaml"
    more = "    ssh: {user_cas: [a.pub, {file: b.pub, subject: principal, groups: ops}], login: [publickey]}\ntargets:"
    path.write_text(SSH.replace("targets:", more, 1))
    section = load_config(path, frozenset({"ssh"})).config.listeners[0].ssh
    assert section is not None
    assert [(str(one.file), one.subject, one.groups) for one in section.user_cas] == [
        ("a.pub", "key_id", ()),
        ("b.pub", "principal", ("ops",)),
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("    ssh: {known_hosts: known_hosts}\n", "", "6: targets[0]: needs ssh: {known_hosts, host_keys or host_ca}"),
        (
            "{known_hosts: known_hosts}",
            "{exec_only: true}",
            "10: targets[0].ssh: say how the target's host key is known",
        ),
        ("{known_hosts: known_hosts}", "{known_host: x}", "10: targets[0].ssh.known_host: unknown key; did you mean"),
        ("known_hosts: known", "rekey: 1KiB, known_hosts: known", "10: targets[0].ssh.rekey: should be greater"),
        ("    ssh:", "    sslmode: require\n    ssh:", "10: targets[0].sslmode: means nothing to protocol ssh"),
        ("    ssh:", "    database: x\n    ssh:", "10: targets[0].database: means nothing to protocol ssh"),
        (
            "    host:",
            "    conninfo: sslmode=require\n    host:",
            "8: targets[0].conninfo: means nothing to protocol ssh",
        ),
        ("    address", "    plain: true\n    address", "4: listeners[0].plain: means nothing to protocol ssh: it enc"),
        ("    address", "    login: token\n    address", "4: listeners[0].login: means nothing to protocol ssh; ssh:"),
        (
            "    address",
            "    tls: {cert: a, key: b}\n    address",
            "4: listeners[0].tls: means nothing to protocol ssh",
        ),
        ("    address", "    ssh: {login: []}\n    address", "4: listeners[0].ssh.login: "),
        ("    address", "    ssh: {login: [hostbased]}\n    address", "4: listeners[0].ssh.login[0]: should be 'publ"),
        ("    address", "    ssh: {user_cas: [{fil: x}]}\n    address", "4: listeners[0].ssh.user_cas[0].fil: unknown"),
        ("key_file: id_ed25519", "passphrase_env: X", "9: targets[0].credential: passphrase_env goes with key_file"),
        ("key_file: id_ed25519", "certificate_file: x", "9: targets[0].credential: certificate_file goes with"),
        ("key_file: id", "passphrase_env: A, passphrase_file: b, key_file: id", "9: targets[0].credential: give pass"),
        (
            "protocol: ssh\n    host",
            "protocol: postgres\n    host",
            "10: targets[0].ssh: means nothing to protocol pos",
        ),
        ("protocol: ssh\n    host", "protocol: postgres\n    host", "9: targets[0].credential.key_file: means nothing"),
        (
            "rules_file",
            "identity: {ssh: {certificate_max: 8d}}\nrules_file",
            "11: identity.ssh.certificate_max: should",
        ),
        ("rules_file", "identity: {ssh: {certificate_max: 59s}}\nrules_file", "11: identity.ssh.certificate_max: shou"),
    ],
)
def test_an_error_of_ssh_names_its_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in SSH
    found = ssh_problems(tmp_path, SSH.replace(old, new, 1))
    assert any(line.startswith(problem) for line in found), found


def test_ssh_means_nothing_to_a_listener_of_postgres(tmp_path: Path) -> None:
    text = GOOD.replace("    plain: true", "    plain: true\n    ssh: {banner: hello}")
    assert problems(tmp_path, text) == ["6: listeners[0].ssh: means nothing to protocol postgres"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:5", ("127.0.0.1", 5)),
        ("[::1]:5", ("::1", 5)),
        ("*:5", ("", 5)),
        (":5", ("", 5)),
        ("db.example:65535", ("db.example", 65535)),
        ("unix:/run/x", Path("/run/x")),
    ],
)
def test_addresses(text: str, place: object) -> None:
    assert parse_address(text) == place


@pytest.mark.parametrize("text", ["", "5432", "h:", "h:-1", "h:65536", "::1:5", "[::g]:5", "h:٣"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|IPv6|permitted"):
        parse_address(text)


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.9.9.9:1", True), ("[::1]:1", True), ("localhost:1", True), ("unix:/x", True), ("*:1", False),
     ("0.0.0.0:1", False), ("[::]:1", False), ("10.0.0.1:1", False), ("localhost.evil.com:1", False)],
)  # fmt: skip
def test_loopback(address: str, local: bool) -> None:
    assert is_loopback(address) is local


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "f:2: a: the key appears twice"),
        ("a: !!python/object:os.system x\n", "f:1: the tag"),
        ("a: &a [*a]\n", "too large or too deep"),
        ("a: 1\nb: [1\n", "f:3:"),
        ("x: {<<: {a: 1}}", "merge keys"),
        ("? [a]\n: b\n", "a key is not a word"),
        ("--- 1\n--- 2\n", "f:2:"),
        ("a: \x01", "f:1:"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "f")
    assert message in str(caught.value)


def test_an_alias_bomb_ends() -> None:
    text = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(ConfigError, match="too large"):
        parse_document(text, "f")


def test_depth_limit() -> None:
    fits = "[" * (DEPTH_LIMIT) + "]" * (DEPTH_LIMIT)
    assert parse_document(fits, "f").data
    with pytest.raises(ConfigError, match="too deep"):
        parse_document(f"[{fits} , [{fits}]]", "f")


def test_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_text("#" * TEXT_LIMIT)
    assert read_document(path).data == {}
    path.write_text("#" * (TEXT_LIMIT + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_document(path)


def test_a_file_that_is_missing_or_binary(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_document(tmp_path / "none.yaml")
    (tmp_path / "latin").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"latin:2: is not UTF-8"):
        read_document(tmp_path / "latin")


def test_one_section_keeps_its_line_numbers() -> None:
    document = parse_document("a: 1\nrules:\n  - name: x\n    deny: y\nb:\n  - 2\n", "f")
    assert document.only("a", "b").splitlines() == ["a: 1", "", "", "", "b:", "  - 2"]
    assert document.only("rules").splitlines() == ["", "rules:", "  - name: x", "    deny: y", "", ""]


def test_the_schema_describes_every_key() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert json.loads(json.dumps(schema)) == schema
    listener = schema["$defs"]["Listener"]["properties"]
    assert set(listener) == {"name", "protocol", "address", "tls", "plain", "login", "ssh", "bigquery"}
    assert "JWT" in listener["login"]["description"]
    authorities = schema["$defs"]["ListenerSsh"]["properties"]["user_cas"]
    assert {"type": "string"} in authorities["items"]["anyOf"], "a file's path will do"
    assert "known_hosts" in schema["$defs"]["TargetSsh"]["properties"]
