"""The commented example: what ``gatecast serve`` starts on where there is no configuration yet.

write_example() makes .gatecast/ with a configuration, rules, a self-signed certificate for localhost, and a first
token that is printed once. What is there already is left alone. deploy/gatecast.example.yaml is the same text.
"""

from __future__ import annotations

import getpass
import socket
from pathlib import Path
from typing import Final, TextIO

from proxy.certificates import self_signed
from proxy.identity.commands import DATABASE_NAME, token_issue
from proxy.services import prepare_state

SUBJECT: Final = "you@example.com"
GROUP: Final = "developers"

EXAMPLE_CONFIG: Final = """\
# gatecast.yaml: the gateway's whole configuration. gatecast config check reads it and says what is wrong, with the
# line; gatecast config schema prints a JSON schema for editors. Paths are relative to this file. There is no
# interpolation of variables: secrets come from *_env or *_file keys, so that this file can be shown to anyone.

state: .                      # database, admin socket, keys and tapes

listeners:
  - name: pg
    protocol: postgres
    address: localhost:6432   # *:6432 listens on every IPv4 and IPv6 address
    tls: {cert: tls.crt, key: tls.key}   # read again when the files change
    login: token              # the password is a gateway token or a JWT; scram: users defined below
  # - name: ssh               # ssh login:target@host -p 2222; tokens, registered keys and certificates: gatecast ssh
  #   protocol: ssh
  #   address: '*:2222'
  #   ssh: {names: [gate.example.com]}
  # - name: kube              # kubectl: gatecast kubeconfig writes its file
  #   protocol: kubernetes
  #   address: '*:8443'
  #   tls: {cert: tls.crt, key: tls.key}
  # - name: bq                # Google's libraries, bq, dbt: gatecast bigquery config writes their files
  #   protocol: bigquery
  #   address: '*:443'
  #   tls: {cert: universe.crt, key: universe.key}       # for *.gw.example
  #   bigquery: {universe: gw.example, target: dwh}

targets:
  # psql connects to a target by name: dbname=local, or dbname=local/otherdb
  - name: local
    host: 127.0.0.1
    port: 5432
    database: postgres
    # What the gateway logs in with; its users never see it.
    credential: {user: postgres, password_env: GATECAST_LOCAL_PASSWORD}
    labels: {env: dev}
    recording: durable        # a command leaves when the disk has it; written: when the operating system has it;
                              # strict: answers, too, are on the disk before the user sees them
    # encrypt_to: [ana.key.pub]       # tapes that only the owners of these keys can read: gatecast keys generate
    # original_to: [auditor.key.pub]  # what masks change is kept as it was, too, for the owners of these keys alone
  # - name: web
  #   protocol: ssh
  #   host: web.internal
  #   credential: {user: deploy, key_file: web.key}     # or certificate_file beside it, passphrase_file, password_file
  #   ssh: {known_hosts: known_hosts, logins: [root]}   # ssh-keyscan web.internal, compared; or host_keys, host_ca
  #   labels: {env: prod}                               # exec_only: true: single commands and files, no shells
  # - name: cluster
  #   protocol: kubernetes
  #   host: api.cluster.internal
  #   port: 6443
  #   credential: {token_file: cluster.token}   # or certificate_file, key_file; kubeconfig; in_cluster: true; gcp
  #   kubernetes: {ca_file: cluster-ca.crt}     # a kubeconfig says host, port and authority itself, in_cluster too
  # - name: dwh
  #   protocol: bigquery
  #   database: acme-prod                       # the project that is billed by default
  #   credential: {gcp: {metadata: true}}       # or gcp: {key_file: sa.json}, token_file, token_env
  #   bigquery: {maximum_bytes_billed: 200GiB}  # accounts: service accounts by group; gatecast bigquery check

# identity:
#   tokens: {max_days: 30}
#   oidc:
#     - issuer: https://login.example.com
#       audience: gatecast
#       groups_claim: groups
#   users:                    # for listeners with login: scram
#     - {name: ana, groups: [dba], scram_verifier_file: ana.scram}
#   operators: {root: [oncall]}   # groups of this machine's users, as approvers

# recorder:                   # where tapes go: docs/tape.md
#   reserve: 256 MiB          # with less room than this on the disk, no session begins
#   anchors: [{url: "file:///mnt/other-host/anchors"}]    # the log's heads, where this gateway cannot take them back
#   witnesses: [{url: "https://witness.example.com", key: "witness.example.com+..."}]
# vault: {url: "s3://acme-tapes/gw1", keep_local_days: 90, retention_days: 400}    # docs/vault.md

# limits: {max_connections: 1000, login_seconds: 60, drain_seconds: 10}
# approvals: {url: "https://gatecast.example.com/approvals/{id}"}

rules_file: rules.yaml
"""

EXAMPLE_RULES: Final = """\
# What nobody allows is denied. All rules that match count: deny over hold over allow; masks add up. Try them with
#   gatecast policy explain local "DELETE FROM orders" --subject you@example.com --group developers
# A change counts at the next command of every session, also of those that run. A file with a mistake changes nothing.
rules:
  # Developers and their agents may read everything.
  - name: developers-read
    who: {groups: [developers]}
    on: {targets: [local]}
    commands: {kinds: [read]}
    allow: true

  # Whatever looks like a mail address or a card number is masked on its way back.
  - name: no-personal-data
    on: {targets: [local]}
    mask:
      - {detectors: [email, card], action: partial, keep: 4}

  # Writing waits for a human: gatecast approvals list, then approve or deny.
  - name: writes-need-approval
    who: {groups: [developers]}
    on: {targets: [local]}
    commands: {kinds: [write, define]}
    hold: {approvers: ["local:@USER@"], timeout: 10m, reason: "a human looks at every change"}

  # Emptying a whole table is nobody's business here.
  - name: no-delete-without-where
    on: {targets: [local]}
    commands: {kinds: [delete]}
    when: "sql.where_missing"
    deny: {reason: "say which rows: a DELETE needs a WHERE"}

  - name: deletes-need-approval
    who: {groups: [developers]}
    on: {targets: [local]}
    commands: {kinds: [delete]}
    hold: {approvers: ["local:@USER@"], timeout: 10m}

  # SSH, once there is a target for it (docs/ssh.md): look around and fetch logs; what else is typed waits for a human.
  # - name: look-around
  #   who: {groups: [developers]}
  #   on: {targets: [web]}
  #   commands: {verbs: [exec, line], objects: [ls, cat, head, tail, grep, df, uptime, ps]}
  #   when: shell.writes.size() == 0
  #   allow: true
  # - name: fetch-logs
  #   who: {groups: [developers]}
  #   on: {targets: [web]}
  #   commands: {verbs: [subsystem, file-read, file-list, file-stat], objects: [sftp, /var/log, "/var/log/*"]}
  #   allow: true
  # - name: the-rest-is-asked
  #   who: {groups: [developers]}
  #   on: {targets: [web]}
  #   commands: {verbs: [exec, line, shell, file-write]}
  #   hold: {approvers: ["local:@USER@"], timeout: 10m}

  # Kubernetes, once there is a target for it (docs/kubernetes.md): look around in dev, exec a few programs there; what
  # changes something waits for a human, and secrets stay where they are.
  # - name: cluster-read
  #   who: {groups: [developers]}
  #   on: {targets: [cluster]}
  #   commands: {kinds: [read], namespaces: [dev]}
  #   allow: true
  # - name: cluster-exec
  #   who: {groups: [developers]}
  #   on: {targets: [cluster]}
  #   commands: {verbs: [exec], namespaces: [dev], programs: [ls, cat, head, tail, grep, ps, df]}
  #   when: "!kube.tty && shell.writes.size() == 0"
  #   allow: true
  # - name: cluster-changes
  #   who: {groups: [developers]}
  #   on: {targets: [cluster]}
  #   commands: {kinds: [write, delete, execute, transfer, session], namespaces: [dev]}
  #   hold: {approvers: ["local:@USER@"], timeout: 10m}
  # - name: no-secrets
  #   on: {targets: [cluster]}
  #   commands: {resources: [secrets]}
  #   deny: {reason: "secrets do not leave the cluster"}

  # BigQuery, once there is a target for it (docs/bigquery.md): query two datasets; what is dear waits for a human, what
  # changes or exports something is denied, and addresses are masked in every result.
  # - name: warehouse-read
  #   who: {groups: [developers]}
  #   on: {targets: [dwh]}
  #   commands: {verbs: [read_rows, inspect], objects: ["acme-prod.crm.*", "acme-prod.shop.*"]}
  #   allow: true
  # - name: warehouse-costs
  #   on: {targets: [dwh]}
  #   when: "bigquery.price >= 5.0"
  #   hold: {approvers: ["local:@USER@"], timeout: 1h}
  # - name: warehouse-personal-data
  #   on: {targets: [dwh]}
  #   mask:
  #     - {columns: ["acme-prod.*.*.email"], action: hash}
"""


def write_example(directory: Path, out: TextIO) -> Path:
    """Make what is missing of the example in the directory and return the configuration's path. Raises ConfigError."""
    prepare_state(directory)
    config, rules = directory / "gatecast.yaml", directory / "rules.yaml"
    if not (directory / "tls.crt").exists():
        self_signed(directory, ["localhost", "127.0.0.1", "::1", socket.gethostname()])
    if not rules.exists():
        rules.write_text(EXAMPLE_RULES.replace("@USER@", getpass.getuser()))
    token = token_issue(directory / DATABASE_NAME, SUBJECT, groups=[GROUP], note="the example's first token")["token"]
    config.write_text(EXAMPLE_CONFIG)  # last: its presence says that the example is complete
    out.write(
        f"gatecast: no gatecast.yaml here, so a commented example was written to {directory}/\n"
        f"gatecast: a first token for {SUBJECT} ({GROUP}), shown this once:\n\n"
        f"    {token}\n\n"
        "gatecast: try it ('local' is the PostgreSQL on port 5432; its password is in GATECAST_LOCAL_PASSWORD):\n\n"
        f'    PGPASSWORD={token} psql "host=localhost port=6432 user=you dbname=local '
        f'sslmode=verify-full sslrootcert={directory}/tls.crt"\n\n'
    )
    out.flush()
    return config
