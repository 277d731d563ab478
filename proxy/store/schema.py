"""The tables, as numbered migrations: PRAGMA user_version says how many of them a file has seen.

A migration is never changed once it is released; a new one is added behind it. All times are seconds since
the epoch. Lists are JSON arrays. No column holds a secret: tokens.hash is the SHA-256 of a 256-bit token.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """
        CREATE TABLE tokens (
            id      TEXT PRIMARY KEY,
            hash    TEXT NOT NULL UNIQUE,           -- SHA-256 of the whole token, hex; a tape's login names it too
            subject TEXT NOT NULL,
            groups  TEXT NOT NULL,
            agents  TEXT NOT NULL,
            note    TEXT NOT NULL,
            created REAL NOT NULL,
            expires REAL NOT NULL,                  -- always: a token without an end is not made
            revoked REAL,
            used    REAL                            -- written lazily, up to a minute late
        ) STRICT
        """,
        """
        CREATE TABLE locks (
            subject TEXT PRIMARY KEY,               -- may not log in, whatever the proof
            reason  TEXT NOT NULL,
            created REAL NOT NULL
        ) STRICT
        """,
        """
        CREATE TABLE approvals (
            id          TEXT PRIMARY KEY,
            process     TEXT NOT NULL,              -- of the serving process that waits for it
            session     TEXT NOT NULL,
            subject     TEXT NOT NULL,
            agents      TEXT NOT NULL,
            issuer      TEXT NOT NULL,
            target      TEXT NOT NULL,
            protocol    TEXT NOT NULL,
            verb        TEXT NOT NULL,
            kind        TEXT NOT NULL,
            objects     TEXT NOT NULL,
            exact       INTEGER NOT NULL,
            text        TEXT NOT NULL,              -- cut for display
            text_bytes  INTEGER NOT NULL,
            text_sha256 TEXT NOT NULL,
            wire_sha256 TEXT NOT NULL,
            rule        TEXT NOT NULL,
            reason      TEXT NOT NULL,
            approvers   TEXT NOT NULL,
            created     REAL NOT NULL,
            expires     REAL NOT NULL,
            state       TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'expired', 'withdrawn')),
            decided     REAL,
            decided_by  TEXT NOT NULL DEFAULT '',
            decided_as  TEXT NOT NULL DEFAULT '',   -- the entry of approvers that the approver matched
            decided_why TEXT NOT NULL DEFAULT ''
        ) STRICT
        """,
        "CREATE INDEX approvals_created ON approvals (created DESC, id)",
        "CREATE INDEX approvals_pending ON approvals (process) WHERE state = 'pending'",
    ),
    (
        """
        CREATE TABLE ssh_keys (
            id      TEXT PRIMARY KEY,
            hash    TEXT NOT NULL,                  -- SHA-256 of the key's blob, hex; a tape's login names it too
            key     TEXT NOT NULL,                  -- as in a .pub file
            subject TEXT NOT NULL,
            groups  TEXT NOT NULL,
            agents  TEXT NOT NULL,
            logins  TEXT NOT NULL,                  -- at targets; ["*"]: all
            note    TEXT NOT NULL,
            created REAL NOT NULL,
            expires REAL NOT NULL,
            revoked REAL,
            used    REAL                            -- written lazily, up to a minute late
        ) STRICT
        """,
        "CREATE INDEX ssh_keys_hash ON ssh_keys (hash)",
        """
        CREATE TABLE ssh_certificates (             -- those that this gateway's own authority has signed
            authority TEXT NOT NULL,                -- its fingerprint, SHA256:...
            serial    TEXT NOT NULL,                -- 64 bits without a sign: too large for an INTEGER
            hash      TEXT NOT NULL UNIQUE,         -- SHA-256 of the certificate's blob, hex
            key_id    TEXT NOT NULL,
            subject   TEXT NOT NULL,
            groups    TEXT NOT NULL,
            agents    TEXT NOT NULL,
            logins    TEXT NOT NULL,
            origin    TEXT NOT NULL,                -- the proof that it was made for, '' for the operator's word
            created   REAL NOT NULL,
            expires   REAL NOT NULL,
            PRIMARY KEY (authority, serial)
        ) STRICT
        """,
        """
        CREATE TABLE ssh_revoked (                  -- certificates of any authority, ours or not
            authority TEXT NOT NULL,
            serial    TEXT NOT NULL,
            reason    TEXT NOT NULL,
            created   REAL NOT NULL,
            PRIMARY KEY (authority, serial)
        ) STRICT
        """,
    ),
    ("ALTER TABLE approvals ADD COLUMN database TEXT NOT NULL DEFAULT ''",),  # or the login, as in Target
    (
        """
        CREATE TABLE jobs (                         -- ids at targets that outlive connections: proxy/core/jobs.py
            target      TEXT NOT NULL,
            kind        TEXT NOT NULL,
            project     TEXT NOT NULL,
            id          TEXT NOT NULL,
            subject     TEXT NOT NULL,              -- subject, issuer and agents: the owner
            issuer      TEXT NOT NULL,
            agents      TEXT NOT NULL,
            location    TEXT NOT NULL,
            state       TEXT NOT NULL,
            created     REAL NOT NULL,
            expires     REAL NOT NULL,
            changed     REAL NOT NULL,
            rule        TEXT NOT NULL,
            masks       TEXT NOT NULL,
            facts       TEXT NOT NULL,
            schema      TEXT NOT NULL,              -- JSON; null while unknown
            destination TEXT NOT NULL,
            parent      TEXT NOT NULL,
            digest      TEXT NOT NULL,
            mark        TEXT NOT NULL,
            request     BLOB NOT NULL,              -- of a job that is or was held here, else empty
            approval    TEXT NOT NULL,
            reason      TEXT NOT NULL,
            deadline    REAL,
            reply_status INTEGER NOT NULL,
            reply       BLOB NOT NULL,
            session     TEXT NOT NULL,
            process     TEXT NOT NULL,
            PRIMARY KEY (target, kind, project, id, subject, issuer, agents)
        ) STRICT
        """,
        "CREATE INDEX jobs_expires ON jobs (expires)",
        "CREATE INDEX jobs_owner ON jobs (subject, issuer, agents, created)",
        "CREATE INDEX jobs_unsettled ON jobs (process) WHERE state IN ('claimed', 'held', 'approved', 'sent')",
    ),
)
