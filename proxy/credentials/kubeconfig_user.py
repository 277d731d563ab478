"""The credential of a kubeconfig's user, as it is now: the file, its token file and its plugin, each when it changes.

fetch() is for renewal.Renewed. The kubeconfig is read anew when it or a file of its certificate has changed; its token
file at each look, as agents rotate such files; its plugin is run before the end of what it said, or after
PLUGIN_SECONDS where it named no end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from proxy.core.errors import ConfigError
from proxy.core.parties import Credential, Secret
from proxy.credentials.kubeconfig import FILE_LIMIT_BYTES, User, read_user
from proxy.credentials.plugin import Answer, run_plugin
from proxy.credentials.renewal import Fetched, Unusable

LOOK_SECONDS: Final = 1.0  # as static.py
PLUGIN_SECONDS: Final = 600.0  # client-go asks again after a 401 only, which is not seen here; ours
EARLY_SECONDS: Final = 300.0  # as gcp.py
LEAST_SECONDS: Final = 10.0
_TOKEN: Final = re.compile(r"[!-~]+")

Mark = tuple[int, int, int, int]


class UserOfKubeconfig:
    """The user of one context of one file. Used from one thread at a time."""

    def __init__(
        self, path: Path, context: str, clock: Callable[[], float], check_mode: Callable[[Path], None]
    ) -> None:
        """check_mode: warns of a file that others may read."""
        self._path = path
        self._context = context
        self._clock = clock
        self._check_mode = check_mode
        self._marks: tuple[Mark, ...] = ()
        self._user = User("")
        self._answered: tuple[Answer, float, float] | None = None  # with soft and hard

    def fetch(self) -> Fetched:
        """Look at all of it. Blocks. Raises Unusable, which names no secret."""
        try:
            self._read()
            return self._fetched()
        except ConfigError as error:
            raise Unusable(str(error)) from None

    def _read(self) -> None:
        if self._marks and self._marks == self._marks_of(self._user):
            return
        self._check_mode(self._path)
        # Read twice, for which files there are and then for what is in them: what is older than its mark is never used.
        marks = self._marks_of(read_user(self._path, self._context))
        self._user = read_user(self._path, self._context)
        self._marks, self._answered = marks, None

    def _marks_of(self, user: User) -> tuple[Mark, ...]:
        try:
            found = [file.stat() for file in (self._path, *user.files)]
        except OSError as error:
            raise Unusable(f"{error.filename}: cannot be read: {error.strerror}") from None
        return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found)

    def _fetched(self) -> Fetched:
        user, now = self._user, self._clock()
        if user.plugin is not None:
            answer, soft, hard = self._ask(now)
            certificate, key = answer.certificate or user.certificate, answer.key or user.key
            made = self._credential(answer.token, certificate, key, answer.expires_at)
            return Fetched(made, soft, hard)
        token = user.token
        if user.token_file is not None:
            try:
                with user.token_file.open("rb") as file:
                    token = file.read(FILE_LIMIT_BYTES).decode("ascii", "replace").strip()
            except OSError as error:
                raise Unusable(f"{user.token_file}: cannot be read: {error.strerror}") from None
            if not token:
                raise Unusable(f"{user.token_file}: holds no token")
        until = now + LOOK_SECONDS
        return Fetched(self._credential(token, user.certificate, user.key, None), until, until)

    def _ask(self, now: float) -> tuple[Answer, float, float]:
        """Run the plugin, unless what it said is good and early."""
        assert self._user.plugin is not None
        if self._answered is not None and now < self._answered[1]:
            return self._answered
        answer = run_plugin(self._user.plugin)
        now = self._clock()
        if answer.expires_at is None:
            soft = hard = now + PLUGIN_SECONDS
        elif answer.expires_at <= now:
            raise Unusable(f"the credential plugin of user {self._user.name} gives what has expired")
        else:
            early = min(EARLY_SECONDS, (answer.expires_at - now) / 4)
            soft, hard = answer.expires_at - early, answer.expires_at - min(LEAST_SECONDS, early)
        self._answered = (answer, soft, hard)
        return self._answered

    def _credential(self, token: str, certificate: str, key: str, expires_at: float | None) -> Credential:
        if token and not _TOKEN.fullmatch(token):
            raise Unusable(f"the token of user {self._user.name} is none: a token is one word")
        return Credential(
            self._user.name,
            Secret(token) if token else None,
            expires_at=expires_at,
            certificate=Secret(certificate) if certificate else None,
            key=Secret(key) if key else None,
        )
