"""The bodies of the channel types and requests that are known: what comes behind the fields that all of them have.

Each class reads its body with read(body, error) and writes it with encode(). A name that is in none of the tables here
is unknown, and refused as the specification says. Bodies without fields need no class (shell, keepalive@openssh.com,
eow@openssh.com, auth-agent-req@openssh.com, no-more-sessions@openssh.com).

Specification: RFC 4254 4, 5, 6, 7; RFC 4335 (break); OpenSSH's PROTOCOL, sections 2.1 to 2.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from protocols.ssh.wire import Fields, boolean, string, u32
from proxy.core.errors import PeerError

TTY_OP_END: Final = 0  # RFC 4254 8
TTY_OP_LIMIT: Final = 160  # opcodes from here on have no defined argument: parsing stops (RFC 4254 8)


# -- channel requests ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pty:
    """pty-req, RFC 4254 6.2. Sizes in characters and in pixels; modes as encoded, see terminal_modes."""

    term: str
    columns: int
    rows: int
    width: int = 0
    height: int = 0
    modes: bytes = b"\x00"

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> Pty:
        """Decode a body."""
        fields = Fields(body, error, "pty-req")
        found = cls(fields.text(), fields.u32(), fields.u32(), fields.u32(), fields.u32(), fields.string())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        sizes = u32(self.columns) + u32(self.rows) + u32(self.width) + u32(self.height)
        return string(self.term) + sizes + string(self.modes)


def terminal_modes(modes: bytes, error: type[PeerError]) -> dict[int, int]:
    """Decode the modes of a pty-req: opcode -> argument. Source: RFC 4254 8."""
    found: dict[int, int] = {}
    at = 0
    while at < len(modes) and TTY_OP_END < modes[at] < TTY_OP_LIMIT:
        if len(modes) - at < 5:
            raise error("malformed terminal modes")
        found[modes[at]] = int.from_bytes(modes[at + 1 : at + 5], "big")
        at += 5
    return found


def encode_modes(modes: Mapping[int, int]) -> bytes:
    """Return terminal modes as a pty-req holds them."""
    return b"".join(bytes((code,)) + u32(value) for code, value in modes.items()) + bytes((TTY_OP_END,))


@dataclass(frozen=True, slots=True)
class WindowChange:
    """window-change, RFC 4254 6.7."""

    columns: int
    rows: int
    width: int = 0
    height: int = 0

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> WindowChange:
        """Decode a body."""
        fields = Fields(body, error, "window-change")
        found = cls(fields.u32(), fields.u32(), fields.u32(), fields.u32())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return u32(self.columns) + u32(self.rows) + u32(self.width) + u32(self.height)


@dataclass(frozen=True, slots=True)
class Env:
    """env, RFC 4254 6.4."""

    name: str
    value: str

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> Env:
        """Decode a body."""
        fields = Fields(body, error, "env")
        found = cls(fields.text(), fields.text())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return string(self.name) + string(self.value)


@dataclass(frozen=True, slots=True)
class Word:
    """One string: exec's command line, subsystem's name (RFC 4254 6.5), signal's name (6.9)."""

    text: str

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> Word:
        """Decode a body."""
        fields = Fields(body, error, "request")
        found = cls(fields.text())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return string(self.text)


@dataclass(frozen=True, slots=True)
class Number:
    """One number: exit-status (RFC 4254 6.10), the length of a break in milliseconds (RFC 4335 3)."""

    value: int

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> Number:
        """Decode a body."""
        fields = Fields(body, error, "request")
        found = cls(fields.u32())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return u32(self.value)


@dataclass(frozen=True, slots=True)
class Flag:
    """One boolean: xon-xoff (RFC 4254 6.8)."""

    value: bool

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> Flag:
        """Decode a body."""
        fields = Fields(body, error, "request")
        found = cls(fields.boolean())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return boolean(self.value)


@dataclass(frozen=True, slots=True)
class Nothing:
    """No fields; what some send all the same is ignored."""

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> Nothing:
        """Decode a body."""
        return cls()

    def encode(self) -> bytes:
        """Return the body."""
        return b""


@dataclass(frozen=True, slots=True)
class ExitSignal:
    """exit-signal, RFC 4254 6.10."""

    name: str
    core: bool = False
    text: str = ""
    language: str = ""

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> ExitSignal:
        """Decode a body."""
        fields = Fields(body, error, "exit-signal")
        found = cls(fields.text(), fields.boolean(), fields.text(), fields.text())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return string(self.name) + boolean(self.core) + string(self.text) + string(self.language)


@dataclass(frozen=True, slots=True)
class X11Request:
    """x11-req, RFC 4254 6.3.1."""

    single: bool
    method: str
    cookie: str
    screen: int

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> X11Request:
        """Decode a body."""
        fields = Fields(body, error, "x11-req")
        found = cls(fields.boolean(), fields.text(), fields.text(), fields.u32())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return boolean(self.single) + string(self.method) + string(self.cookie) + u32(self.screen)


RequestBody = Pty | WindowChange | Env | Word | Number | Flag | Nothing | ExitSignal | X11Request

REQUESTS: Final[Mapping[str, type[RequestBody]]] = {
    "pty-req": Pty,
    "env": Env,
    "exec": Word,
    "shell": Nothing,
    "subsystem": Word,
    "window-change": WindowChange,
    "signal": Word,
    "break": Number,
    "xon-xoff": Flag,
    "exit-status": Number,
    "exit-signal": ExitSignal,
    "auth-agent-req@openssh.com": Nothing,
    "x11-req": X11Request,
    "eow@openssh.com": Nothing,
    "keepalive@openssh.com": Nothing,
}


# -- channel opens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tcpip:
    """direct-tcpip and forwarded-tcpip, RFC 4254 7.2: where it goes or was connected to, and who connects."""

    host: str
    port: int
    origin: str
    origin_port: int

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> Tcpip:
        """Decode a body."""
        fields = Fields(body, error, "channel open")
        found = cls(fields.text(), fields.u32(), fields.text(), fields.u32())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return string(self.host) + u32(self.port) + string(self.origin) + u32(self.origin_port)


@dataclass(frozen=True, slots=True)
class DirectStreamlocal:
    """direct-streamlocal@openssh.com, OpenSSH's PROTOCOL 2.4."""

    path: str
    reserved: str = ""
    reserved_number: int = 0

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> DirectStreamlocal:
        """Decode a body."""
        fields = Fields(body, error, "channel open")
        found = cls(fields.text(), fields.text(), fields.u32())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return string(self.path) + string(self.reserved) + u32(self.reserved_number)


@dataclass(frozen=True, slots=True)
class ForwardedStreamlocal:
    """forwarded-streamlocal@openssh.com, OpenSSH's PROTOCOL 2.4."""

    path: str
    reserved: str = ""

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> ForwardedStreamlocal:
        """Decode a body."""
        fields = Fields(body, error, "channel open")
        found = cls(fields.text(), fields.text())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return string(self.path) + string(self.reserved)


@dataclass(frozen=True, slots=True)
class Origin:
    """x11, RFC 4254 6.3.2: who connects."""

    host: str
    port: int

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> Origin:
        """Decode a body."""
        fields = Fields(body, error, "channel open")
        found = cls(fields.text(), fields.u32())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return string(self.host) + u32(self.port)


@dataclass(frozen=True, slots=True)
class Tun:
    """tun@openssh.com, OpenSSH's PROTOCOL 2.3: 1 = layer 3, 2 = layer 2; unit 0x7fffffff = any."""

    mode: int
    unit: int

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> Tun:
        """Decode a body."""
        fields = Fields(body, error, "channel open")
        found = cls(fields.u32(), fields.u32())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return u32(self.mode) + u32(self.unit)


OpenBody = Tcpip | DirectStreamlocal | ForwardedStreamlocal | Origin | Tun | Nothing

OPENS: Final[Mapping[str, type[OpenBody]]] = {
    "session": Nothing,
    "direct-tcpip": Tcpip,
    "forwarded-tcpip": Tcpip,
    "direct-streamlocal@openssh.com": DirectStreamlocal,
    "forwarded-streamlocal@openssh.com": ForwardedStreamlocal,
    "x11": Origin,
    "auth-agent@openssh.com": Nothing,
    "tun@openssh.com": Tun,
}


# -- global requests ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listen:
    """tcpip-forward and cancel-tcpip-forward, RFC 4254 7.1. Port 0: the other side chooses."""

    host: str
    port: int

    @classmethod
    def read(cls, body: bytes, error: type[PeerError]) -> Listen:
        """Decode a body."""
        fields = Fields(body, error, "global request")
        found = cls(fields.text(), fields.u32())
        fields.end()
        return found

    def encode(self) -> bytes:
        """Return the body."""
        return string(self.host) + u32(self.port)


GlobalBody = Listen | Word | Nothing

GLOBALS: Final[Mapping[str, type[GlobalBody]]] = {
    "tcpip-forward": Listen,
    "cancel-tcpip-forward": Listen,
    "streamlocal-forward@openssh.com": Word,
    "cancel-streamlocal-forward@openssh.com": Word,
    "hostkeys-00@openssh.com": Nothing,
    "hostkeys-prove-00@openssh.com": Nothing,
    "no-more-sessions@openssh.com": Nothing,
    "keepalive@openssh.com": Nothing,
}
