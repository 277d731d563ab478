"""Access tokens of Google Cloud, by the google-auth library: of a service account's key file, or the metadata server's.

A token holds for an hour. It is fetched anew EARLY_SECONDS before its end, while the old one is still used. The texts
of errors name the endpoint's error code at most: an answer may quote what was sent.

The scopes are those of Google's own kubectl plugin: without the e-mail address GKE knows an account by its number.
Left out: user accounts (gcloud auth application-default), workload identity federation from outside of Google Cloud.
Source: Google's "Using OAuth 2.0 for Server to Server Applications"; "About VM metadata"; kubernetes note 9.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from proxy.core.parties import Credential, Secret
from proxy.credentials.renewal import Fetched, Unusable

if TYPE_CHECKING:
    from google.auth.credentials import Credentials as GoogleCredentials

SCOPES: Final = (
    "https://www.googleapis.com/auth/cloud-platform",
    "https://www.googleapis.com/auth/userinfo.email",
)
EARLY_SECONDS: Final = 300.0  # the metadata server itself has a new token only for the last five minutes of the old
LEAST_SECONDS: Final = 30.0  # a request is not begun with a token that ends while it is on its way
REQUEST_SECONDS: Final = 20.0  # one exchange with the token endpoint; the library tries a few times
KEY_LIMIT_BYTES: Final = 64 << 10  # a key file has 2.4 KB
_CODE: Final = re.compile(r"[a-z_]{1,40}")  # RFC 6749 5.2


@dataclass(frozen=True, slots=True)
class GcpSource:
    """Whose tokens: those of a key file, or of the account that this machine or pod has."""

    key_file: Path | None = None


class GcpTokens:
    """The tokens of one source. fetch() is for renewal.Renewed: it runs on one thread at a time."""

    def __init__(self, source: GcpSource, clock: Callable[[], float] = time.time) -> None:
        self._source = source
        self._clock = clock

    def fetch(self) -> Fetched:
        """Fetch a new token. Blocks. Raises Unusable."""
        # Here, as they take 33 MB of memory and 0.1 s, which only targets with gcp: are to pay for.
        from google.auth import exceptions

        try:
            credentials = self._credentials()
            credentials.refresh(_bounded)  # type: ignore[no-untyped-call]
        except exceptions.RefreshError as error:
            raise Unusable(f"{self._who()}: the token endpoint refuses it{_code_of(error)}") from None
        except exceptions.TransportError:
            raise Unusable(f"{self._who()}: the token endpoint cannot be reached") from None
        except exceptions.GoogleAuthError as error:
            raise Unusable(f"{self._who()}: no token ({type(error).__name__})") from None
        if not credentials.token or credentials.expiry is None:
            raise Unusable(f"{self._who()}: the token endpoint gave no token")
        end = credentials.expiry.replace(tzinfo=UTC).timestamp()  # the library's times are UTC, without saying so
        user = str(getattr(credentials, "service_account_email", "") or "")
        early = min(EARLY_SECONDS, max(end - self._clock(), 0) / 4)
        return Fetched(
            Credential(user, Secret(str(credentials.token)), expires_at=end),
            soft=end - early,
            hard=end - min(LEAST_SECONDS, early),
        )

    def _who(self) -> str:
        return str(self._source.key_file) if self._source.key_file is not None else "the machine's own account"

    def _credentials(self) -> GoogleCredentials:
        """Made anew each time, so that a rotated key file counts."""
        if self._source.key_file is None:
            from google.auth import compute_engine

            return compute_engine.Credentials(scopes=list(SCOPES))  # type: ignore[no-untyped-call]
        from google.oauth2 import service_account

        information = self._key(self._source.key_file)
        try:
            make = service_account.Credentials.from_service_account_info
            made: GoogleCredentials = make(information, scopes=list(SCOPES))  # type: ignore[no-untyped-call]
        except ValueError:  # whose text may quote the key
            raise Unusable(f"{self._source.key_file}: holds no key that can be used") from None
        return made

    def _key(self, path: Path) -> Mapping[str, Any]:
        try:
            with path.open("rb") as file:
                data = file.read(KEY_LIMIT_BYTES + 1)
            document = json.loads(data) if len(data) <= KEY_LIMIT_BYTES else None
        except OSError as error:
            raise Unusable(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or document.get("type") != "service_account":
            raise Unusable(f"{path}: is no key file of a service account (JSON)")
        return document


def _bounded(url: str, method: str = "GET", body: Any = None, headers: Any = None, **more: Any) -> Any:
    """google-auth's transport, with a limit of time. Any: as google.auth.transport.Request has it."""
    from google.auth.transport import requests

    more["timeout"] = min(float(more.get("timeout") or REQUEST_SECONDS), REQUEST_SECONDS)
    return requests.Request()(url, method=method, body=body, headers=headers, **more)


def _code_of(error: Exception) -> str:
    """The endpoint's own word for what is wrong, where it is one of OAuth's."""
    answer = error.args[1] if len(error.args) > 1 else None
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except ValueError:
            return ""
    code = answer.get("error") if isinstance(answer, Mapping) else None
    return f" ({code})" if isinstance(code, str) and _CODE.fullmatch(code) else ""
