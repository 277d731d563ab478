"""The command line's end of the admin socket: blocking, one connection a call, with a time limit."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any, Final

from proxy.admin.wire import ANSWER_LIMIT, PATH_LIMIT, REQUEST_LIMIT, AdminError, pack, unpack

DEFAULT_SECONDS: Final = 35.0  # a little more than the server gives its handlers


class AdminClient:
    """Calls the functions of a running gate."""

    def __init__(self, path: Path, *, timeout_seconds: float = DEFAULT_SECONDS) -> None:
        self.path = path
        self._timeout_seconds = timeout_seconds

    def call(self, method: str, **params: Any) -> Any:  # the result is whatever JSON the method's handler returns
        """Return a method's result. Raises AdminError: the gate's own, or one that says how to reach it."""
        request = pack({"method": method, "params": {key: value for key, value in params.items() if value is not None}})
        if len(request) > REQUEST_LIMIT:
            raise AdminError("malformed", f"a request has at most {REQUEST_LIMIT} bytes")
        answer = unpack(self._exchange(request))
        if answer.get("ok") is True:
            return answer.get("result")
        error = answer.get("error")
        if not isinstance(error, dict):
            raise AdminError("malformed", f"{self.path}: this is no gatecast that answers")
        raise AdminError(str(error.get("code", "failed")), str(error.get("text", "the gateway refused")))

    def _exchange(self, request: bytes) -> bytes:
        if len(str(self.path).encode()) > PATH_LIMIT:
            raise AdminError("unreachable", f"{self.path}: the path of a socket has at most {PATH_LIMIT} bytes")
        deadline = time.monotonic() + self._timeout_seconds
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._timeout_seconds)
                connection.connect(str(self.path))
                connection.sendall(request)
                return self._read_line(connection, deadline)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise AdminError("unreachable", f"nobody answers at {self.path}: is gatecast serve running?") from error
        except PermissionError as error:
            raise AdminError(
                "unreachable", f"{self.path} may be used by root and by the user that runs gatecast serve only"
            ) from error
        except TimeoutError as error:
            raise AdminError("timeout", f"gatecast serve did not answer in {self._timeout_seconds:g} s") from error
        except OSError as error:
            raise AdminError("unreachable", f"{self.path}: {error.strerror or error}") from error

    def _read_line(self, connection: socket.socket, deadline: float) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            data = connection.recv(256 * 1024)
            if not data:
                raise AdminError("unreachable", "gatecast serve hung up without an answer: did it just stop?")
            parts.append(data)
            size += len(data)
            if data.endswith(b"\n"):
                return b"".join(parts)
            if size > ANSWER_LIMIT:
                raise AdminError("malformed", "the answer is too long")
