"""Global requests of both sides: in order, decided where they let the target listen; and what was allowed by them.

Replies come in the order of the requests (RFC 4254 4), so a request that waits for a decision keeps back the later ones
of its side that want a reply, and only those. The forwards that were allowed are remembered: a channel that the target
opens is passed on only where it answers one. Port 0 is learned from the reply. For TCP the port alone has to agree:
servers name the address that they bound in ways of their own.

hostkeys-00@openssh.com is swallowed, hostkeys-prove-00 fails: the two legs have different host keys.

Specification: RFC 4254 4, 7.1; OpenSSH's PROTOCOL 2.2, 2.4, 2.5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from protocols.ssh import wire
from protocols.ssh.actions import Action, Decide, Ignored, Record, Up, Withdraw
from protocols.ssh.answers import ignored
from protocols.ssh.channels import ERRORS, TARGET, USER, Limits, Remarks, Replies, Side, shown
from protocols.ssh.lanes import Item, Parcel
from protocols.ssh.parcels import to_side
from protocols.ssh.requests import Requests, place
from protocols.ssh.wire_bodies import Listen, Word
from proxy.core.errors import TargetPeerError, UserPeerError
from proxy.core.events import Result
from proxy.core.session import Permit

KEEPALIVE: Final = "keepalive@openssh.com"
NO_MORE_SESSIONS: Final = "no-more-sessions@openssh.com"
STREAMLOCAL: Final = "streamlocal-forward@openssh.com"
CANCEL_STREAMLOCAL: Final = "cancel-streamlocal-forward@openssh.com"
_SILENT: Final = frozenset({"hostkeys-00@openssh.com", "hostkeys-prove-00@openssh.com"})

# A forward: ("tcp", address, port) or ("unix", path, 0).
Forward = tuple[str, str, int]
# What a reply is to: a word for it, its forward, and the permit of one that was decided.
Expected = tuple[str, Forward | None, Permit | None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request of the user that is being decided."""

    request: wire.GlobalRequest
    forward: Forward


class GlobalRequests:
    """The global requests of one connection."""

    def __init__(self, requests: Requests, limits: Limits, remarks: Remarks, next_key: Callable[[], int]) -> None:
        self._requests = requests
        self._limits = limits
        self._remarks = remarks
        self._next_key = next_key
        self._asked: dict[int, _Asked] = {}
        self._blocked = 0  # the key of an undecided request that wants a reply
        self._waiting: deque[wire.GlobalRequest] = deque()
        self._replies = (Replies(), Replies())
        self._expected: deque[Expected] = deque()  # of the user's, beside its Replies
        self._allowed: dict[Forward, int] = {}
        self.no_more_sessions = False

    def owns(self, key: int) -> bool:
        """Whether this decision is on a global request."""
        return key in self._asked

    def answered_forward(self, kind: str, host: str, port: int) -> bool:
        """Whether a channel that the target opens answers a forward that was allowed."""
        if kind == "tcp":
            return any(each[0] == "tcp" and each[2] == port and port for each in self._allowed)
        return ("unix", host, 0) in self._allowed

    def withdraw_all(self, out: list[Action]) -> None:
        """The connection is over: nothing more is decided or answered."""
        out.extend(Withdraw(key) for key in self._asked)
        out.extend(ignored(request) for request in self._waiting)
        for _, _, permit in self._expected:
            if permit is not None:
                out.append(Record(permit, Result("closed")))
        self._asked.clear()
        self._waiting.clear()
        self._expected.clear()

    # -- requests -------------------------------------------------------------------------------------

    def request(self, side: Side, request: wire.GlobalRequest, out: list[Action]) -> None:
        """Take a request of one side."""
        if side == USER and self._blocked and request.want_reply:
            if len(self._waiting) >= self._limits.waiting:
                raise UserPeerError(f"more than {self._limits.waiting} global requests wait for a decision")
            self._waiting.append(request)
            return
        if request.name == KEEPALIVE:
            self._pass(side, request, ("keepalive", None, None), out)
        elif side == TARGET or request.name in _SILENT:
            if request.name not in _SILENT:
                self._remarks.add(out, side, "ssh-unknown", f"global request {shown(request.name)}")
            self._refuse(side, request, out)
        elif request.name == NO_MORE_SESSIONS:
            self.no_more_sessions = True
            self._pass(side, request, ("plain", None, None), out)
        elif request.name in ("tcpip-forward", STREAMLOCAL):
            self._ask(request, out)
        elif request.name in ("cancel-tcpip-forward", CANCEL_STREAMLOCAL):
            self._cancel(request, out)
        else:
            self._remarks.add(out, side, "ssh-unknown", f"global request {shown(request.name)}")
            self._refuse(side, request, out)

    def _pass(self, side: Side, request: wire.GlobalRequest, what: Expected, out: list[Action]) -> None:
        self._expect(side, request, what)
        out.append(to_side(TARGET if side == USER else USER, request.encode()))

    def _expect(self, side: Side, request: wire.GlobalRequest, what: Expected) -> None:
        if not request.want_reply:
            return
        if len(self._replies[side]) >= self._limits.waiting:
            raise ERRORS[side](f"more than {self._limits.waiting} requests wait for their reply")
        self._replies[side].expect(what[0])
        if side == USER:
            self._expected.append(what)

    def _refuse(self, side: Side, request: wire.GlobalRequest, out: list[Action]) -> None:
        """Answer a request that nobody decides and that goes no further."""
        if side == USER:
            out.append(ignored(request))
        self._fail(side, request, out)

    def _fail(self, side: Side, request: wire.GlobalRequest, out: list[Action]) -> None:
        if request.want_reply:
            if len(self._replies[side]) >= self._limits.waiting:
                raise ERRORS[side](f"more than {self._limits.waiting} requests wait for their reply")
            failure = Parcel(to_side(side, wire.RequestFailure().encode(), by_gate=True))
            self._say(self._replies[side].answer((failure,)), out)

    def _ask(self, request: wire.GlobalRequest, out: list[Action]) -> None:
        if request.name == STREAMLOCAL:
            path = Word.read(request.body, UserPeerError).text
            forward, verb = ("unix", path, 0), "streamlocal-forward"
            command = self._requests.listens(verb, request, path, {"path": path})
        else:
            asked = Listen.read(request.body, UserPeerError)
            forward, verb = ("tcp", asked.host, asked.port), "tcpip-forward"
            facts = {"host": asked.host, "port": asked.port}
            command = self._requests.listens(verb, request, place(asked.host, asked.port), facts)
        if not self._requests.permits(verb):
            self._remarks.add(out, USER, "ssh-refused", f"{verb}: the login permits no forwarding")
            self._refuse(USER, request, out)
            return
        if len(self._allowed) + len(self._asked) >= self._limits.forwards:
            self._remarks.add(out, USER, "ssh-refused", f"{verb}: more than {self._limits.forwards} forwards")
            self._refuse(USER, request, out)
            return
        key = self._next_key()
        self._asked[key] = _Asked(request, forward)
        if request.want_reply:
            self._blocked = key
        out.append(Decide(key, command))

    def _cancel(self, request: wire.GlobalRequest, out: list[Action]) -> None:
        if request.name == CANCEL_STREAMLOCAL:
            forward: Forward = ("unix", Word.read(request.body, UserPeerError).text, 0)
        else:
            asked = Listen.read(request.body, UserPeerError)
            forward = ("tcp", asked.host, asked.port)
        if forward not in self._allowed:
            self._refuse(USER, request, out)
            return
        if not request.want_reply:
            self._forget(forward)
        self._pass(USER, request, ("cancel", forward, None), out)

    # -- decisions ------------------------------------------------------------------------------------

    def allowed(self, key: int, permit: Permit, out: list[Action]) -> None:
        """A forward may be asked for."""
        asked = self._asked.pop(key)
        out.append(Up(permit))
        if asked.forward[0] == "unix" or asked.forward[2]:
            self._allowed[asked.forward] = self._allowed.get(asked.forward, 0) + 1
        self._expect(USER, asked.request, ("forward", asked.forward, permit))
        self._resume(key, out)

    def refused(self, key: int, out: list[Action]) -> None:
        """A forward may not be asked for; the reply has no room for a text."""
        asked = self._asked.pop(key)
        self._fail(USER, asked.request, out)
        self._resume(key, out)

    def _resume(self, key: int, out: list[Action]) -> None:
        if self._blocked == key:
            self._blocked = 0
        while self._waiting and not self._blocked:
            self.request(USER, self._waiting.popleft(), out)

    # -- replies --------------------------------------------------------------------------------------

    def reply(self, side: Side, payload: bytes, out: list[Action]) -> None:
        """Take a reply of one side to a request of the other."""
        asker: Side = TARGET if side == USER else USER
        what, ready = self._replies[asker].arrived()
        if what is None:
            self._remarks.add(out, side, "ssh-unknown", "a reply to no global request")
            if side == USER:
                out.append(Ignored(None, wire.frame(payload)))
            return
        if asker == USER:
            name, forward, permit = self._expected.popleft()
            if forward is not None:
                self._learn(name, forward, payload)
            if permit is not None:
                out.append(Record(permit, Result("ok" if payload[0] == wire.REQUEST_SUCCESS else "failed")))
        out.append(to_side(asker, payload))
        self._say(ready, out)

    def _learn(self, name: str, forward: Forward, payload: bytes) -> None:
        done = payload[0] == wire.REQUEST_SUCCESS
        if name == "cancel":
            if done:
                self._forget(forward)
        elif not done:
            self._forget(forward)
        elif forward[0] == "tcp" and forward[2] == 0:
            port = wire.Fields(payload, TargetPeerError, "REQUEST_SUCCESS", 1).u32()
            learned = ("tcp", forward[1], port)
            self._allowed[learned] = self._allowed.get(learned, 0) + 1

    def _forget(self, forward: Forward) -> None:
        count = self._allowed.get(forward, 0) - 1
        if count > 0:
            self._allowed[forward] = count
        else:
            self._allowed.pop(forward, None)

    def _say(self, items: list[Item], out: list[Action]) -> None:
        for item in items:
            assert isinstance(item, Parcel)
            out.append(item.action)
