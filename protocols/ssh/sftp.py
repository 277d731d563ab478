"""The Content of an SFTP channel: every operation on a file is a Command, decided before the target sees it.

Requests go to the target in the order in which they came. One that is decided first has its paths resolved by the
target (sftp_commands.py), then waits for its decision, and all behind it waits too: what they would do may depend on
it. READ, WRITE, READDIR, FSTAT, FSYNC and CLOSE belong to what an OPEN or OPENDIR was allowed, and pass; on a handle
that the target never gave, the gate itself answers FAILURE, as every server does, so that nothing passes uncounted.
A refused operation is answered with PERMISSION_DENIED, and the session goes on.

Besides these a request waits while its id is under way (ids are the user's, and replies find their request by them),
while OUTSTANDING_LIMIT are, and, if it has a path, while one that may change what paths mean (rename, symlink) is.

Once the target has said its VERSION the gate asks for its REALPATH of "."; the gate's own requests use ids that the
user does not, and their replies are swallowed. The version is 3, whatever the user offers; extensions that are not
decoded are neither announced nor passed on.

On the tape: all packets but WRITE and DATA, which are there if record_contents has their path; of each file a RESULT
with size and SHA-256 (transfers.py). No mask sees a packet; where one would have to, OPEN is refused
(proxy/masking/guard.py). Left out: the RESULT of plumbing.

Specification: draft-ietf-secsh-filexfer-02; OpenSSH's PROTOCOL file, section 4; ssh note 6.
"""

from __future__ import annotations

from typing import Final, Literal

from protocols.ssh import sftp_wire as wire
from protocols.ssh.sftp_commands import Place, command, places
from protocols.ssh.sftp_state import LOOKUP, File, Job, Known, Lookup, Sent, cut, opened, read_answer, reply_head
from protocols.ssh.sftp_wire import Cutter, Malformed, Piece, Request, Unfit
from protocols.ssh.transfers import NoTerminal, Notes, Reorder, Steps, refusal
from proxy.core.errors import Refused
from proxy.core.events import Result
from proxy.core.session import Permit
from proxy.terminal.content import Ask, Broken, Content, Done, Dropped, Settings, Step, ToTarget, ToUser

OUTSTANDING_LIMIT: Final = 4096  # OpenSSH's clients keep 64 under way, paramiko's hundreds; more wait: ours
HANDLES_LIMIT: Final = 4096  # sftp-server has as many as it may open files, 1,024 by default: ours
AHEAD_LIMIT: Final = 16 * 1024 * 1024  # of requests that wait: 64 of 256 KiB (sftp -B with its default -R): ours

READ_WRITE: Final = wire.OPERATIONS[wire.READ], wire.OPERATIONS[wire.WRITE]


def sftp_content(settings: Settings) -> Content:
    """Return the Content of a channel whose subsystem is sftp."""
    return Sftp(settings)


class Sftp(NoTerminal):
    """Both directions of one SFTP channel."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._up = Cutter(wire.request_head)
        self._phase: Literal["start", "version", "home", "open", "broken"] = "start"
        self._home = b"/"
        self._sent: dict[int, Sent] = {}
        self._down = Cutter(reply_head(self._sent))
        self._files: dict[bytes, File] = {}
        self._opening = 0
        self._moving = 0
        self._stalled: Piece | None = None
        self._job: Job | None = None
        self._ask: Ask | None = None
        self._up_body: tuple[File, int] | None = None  # where a WRITE's data belong; None: nowhere
        self._down_body: tuple[File, int] | None = None
        self._known = Known()
        self._next_id = 0xFFFFFFFF
        self._reorder = Reorder()
        self._notes = Notes()
        self._steps = Steps()
        self._over = False  # the user has said EOF
        self._now = 0.0

    # -- Content --------------------------------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """How many bytes of the user wait here for something that the target, or the policy, has to say first."""
        if not self._blocked or self._phase == "broken":
            return 0
        stalled = self._stalled.end - self._stalled.start if self._stalled is not None else 0
        return self._up.waiting + stalled + (len(self._job.data) if self._job is not None and self._ask is None else 0)

    def from_user(self, data: bytes, now: float) -> list[Step]:
        """Take data of the user."""
        if self._phase == "broken":
            return [Dropped(data)]
        self._now = now
        self._up.feed(data)
        if self._up.waiting > AHEAD_LIMIT:
            self._break("too many requests ahead of the one that is decided")
        self._run()
        return self._steps.take()

    def from_target(self, stream: Literal["out", "err"], data: bytes, now: float) -> list[Step]:
        """Take data of the target."""
        if stream == "err":
            return [ToUser(data, "err")]
        if self._phase == "broken":
            return []
        self._now = now
        self._down.feed(data)
        try:
            while (piece := self._down.next()) is not None:
                self._reply_piece(piece)
        except Malformed as error:
            self._break(f"the target does not speak SFTP: {error}")
        self._run()
        return self._steps.take()

    def allowed(self, ask: Ask, permit: Permit, now: float) -> list[Step]:
        """The operation was allowed, and its request is on its way."""
        job = self._decided(ask, now)
        if job is None:
            return []
        request = job.request
        if job.lost:
            self._done(permit, wire.status_text(job.lost), job)
            self._answer(request.id, job.lost, "gatecast: the path cannot be resolved")
            self._run()
            return self._steps.take()
        if request.operation.moves:
            self._moving += 1
            self._known.forget_parents()
        if request.operation.code in (wire.OPEN, wire.OPENDIR):
            self._opening += 1
        self._sent[request.id] = Sent(request.operation, permit, job=job)
        self._run()
        return self._steps.take()

    def refused(self, ask: Ask, refused: Refused, now: float) -> list[Step]:
        """The operation was refused: answer it. OpenSSH's clients show the status only, so stderr says why."""
        job = self._decided(ask, now)
        if job is None:
            return []
        text = refusal(refused)
        for step in self._notes.line(f"{text}: {ask.command.text}"):
            self._steps.add(step)
        self._answer(job.request.id, wire.FX_PERMISSION_DENIED, text)
        self._run()
        return self._steps.take()

    def waiting(self, ask: Ask, text: str) -> list[Step]:
        """It is held for a human."""
        return self._notes.line(f"{text}: {ask.command.text}") if ask is self._ask else []

    def user_eof(self, now: float) -> list[Step]:
        """The user will send no more. What is undecided by now never will be."""
        self._over = True
        self._drop_rest()
        return self._steps.take()

    def target_eof(self, now: float) -> list[Step]:
        """The target will send no more."""
        return []

    def ended(self, now: float) -> list[Step]:
        """The channel is closed: say how far each file came."""
        self._now = now
        self._steps.take()
        for sent in self._sent.values():
            if sent.file is not None and sent.operation.code == wire.CLOSE:
                self._finish(sent.file, closed=False, error="the channel was closed")
            elif sent.permit is not None:
                self._done(sent.permit, "closed")
        for file in self._files.values():
            self._finish(file, closed=False, error="the channel was closed")
        self._sent.clear()
        self._files.clear()
        self._drop_rest()
        self._phase = "broken"
        return self._steps.take()

    # -- of the user ----------------------------------------------------------------------------------

    @property
    def _blocked(self) -> bool:
        return self._job is not None or self._stalled is not None or self._phase not in ("start", "open")

    def _run(self) -> None:
        """Go on with the user's requests as far as can be."""
        piece: Piece | None = None
        try:
            if self._stalled is not None and self._job is None and self._phase == "open":
                piece, self._stalled = self._stalled, None
                self._request(piece)
            while not self._blocked:
                piece = None
                if (piece := self._up.next()) is None:
                    break
                (self._request if piece.first else self._write_on)(piece)
        except Malformed as error:
            if piece is not None:
                self._drop(piece)
            self._break(f"this is no SFTP: {error}")

    def _drop(self, piece: Piece) -> None:
        self._steps.add(Dropped(piece.source[piece.start : piece.end]))

    def _drop_rest(self) -> None:
        """Nothing that waits will be asked for any more."""
        if self._stalled is not None:
            self._drop(self._stalled)
        if self._job is not None and self._ask is None:
            self._steps.add(Dropped(self._job.data))
            self._job.data = b""
        self._stalled = None
        self._steps.add(Dropped(self._up.drain()))

    def _request(self, piece: Piece) -> None:
        source, start, end, _, _ = piece
        code = source[start + 4]
        if self._phase == "start":
            self._init(piece)
            return
        if code == wire.INIT:
            raise Malformed("a second INIT")
        request_id: int = wire.U32.unpack_from(source, start + 5)[0]
        if request_id in self._sent or len(self._sent) >= OUTSTANDING_LIMIT:
            self._stalled = piece
        elif code == wire.WRITE:
            self._write(piece, request_id)
        else:
            try:
                request = wire.decode_request(source, start, end)
                if request.operation.verb:
                    self._decide(piece, request)
                else:
                    self._plumbing(piece, request)
            except Unfit as unfit:
                self._drop(piece)
                self._answer(request_id, unfit.status, unfit.text)

    def _init(self, piece: Piece) -> None:
        source, start, end, _, _ = piece
        if source[start + 4] != wire.INIT:
            raise Malformed("it does not begin with INIT")
        number: int = wire.U32.unpack_from(source, start + 5)[0]
        self._phase = "version"
        if number <= wire.VERSION_NUMBER and end - start == wire.IDENTIFIED.size:
            self._steps.up(source, start, end, True)
        else:  # a server that knows later versions would take the offer
            self._drop(piece)
            self._steps.add(ToTarget(wire.init(), by_gate=True))

    def _write(self, piece: Piece, request_id: int) -> None:
        source, start, end, _, rest = piece
        handle, offset, size = wire.write_head(source, start, rest)
        file = self._files.get(handle)
        if file is None or file.transfer is None:
            self._up_body = None
            self._drop(piece)
            self._answer(request_id, wire.FX_FAILURE, "gatecast: no such handle")
            return
        self._up_body = (file, offset)
        self._sent[request_id] = Sent(READ_WRITE[1], file=file, offset=offset, size=size)
        self._steps.up(source, start, end, file.taped)

    def _write_on(self, piece: Piece) -> None:
        if self._up_body is None:
            return
        file, offset = self._up_body
        source, start, end, _, _ = piece
        assert file.transfer is not None
        file.transfer.gave(offset, memoryview(source)[start:end])
        self._up_body = (file, offset + end - start)
        self._steps.up(source, start, end, file.taped)

    def _plumbing(self, piece: Piece, request: Request) -> None:
        operation = request.operation
        file = None
        if request.handles:
            handle = request.handles[0]
            file = self._files.get(handle)
            if file is None or (operation.code == wire.READ and file.transfer is None):
                self._drop(piece)
                self._answer(request.id, wire.FX_FAILURE, "gatecast: no such handle")
                return
            if operation.code == wire.CLOSE:
                del self._files[handle]  # the target may give it again before it says that it is closed
        sent = Sent(operation, file=file)
        if operation.code == wire.READ:
            sent.offset, sent.size = request.numbers
        self._sent[request.id] = sent
        self._steps.up(piece.source, piece.start, piece.end, True)

    def _decide(self, piece: Piece, request: Request) -> None:
        """Begin to decide a request: resolve its paths, if it has any."""
        if self._moving:
            self._stalled = piece
            return
        if request.operation.code in (wire.OPEN, wire.OPENDIR) and self._opening + len(self._files) >= HANDLES_LIMIT:
            raise Unfit(wire.FX_FAILURE, "gatecast: too many open files")
        job = Job(request, piece.source[piece.start : piece.end])
        if request.handles:
            files = [self._files.get(handle) for handle in request.handles]
            if any(file is None for file in files):
                raise Unfit(wire.FX_FAILURE, "gatecast: no such handle")
            job.names = [list(file.names) for file in files if file is not None]
        self._job = job
        job.places = places(request)
        for place in job.places:
            if place.parent is not None:
                place.real_parent = self._known.parent(place.parent, self._now)
                if place.real_parent is None:
                    self._look_up("parent", place.parent, place)
            if place.whole is not None:
                self._look_up("whole", place.whole, place)
        if not job.missing:
            self._put()

    def _look_up(self, what: Lookup, path: bytes, place: Place | None) -> None:
        """Ask the target for the real name of a path, or whether there is something of that name."""
        while self._next_id in self._sent:
            self._next_id = (self._next_id - 1) & 0xFFFFFFFF
        if self._job is not None:
            self._job.missing += 1
        self._sent[self._next_id] = Sent(LOOKUP, lookup=(what, place))
        encode = wire.lstat if what == "exists" else wire.realpath
        self._steps.add(ToTarget(encode(self._next_id, path), by_gate=True))
        self._next_id = (self._next_id - 1) & 0xFFFFFFFF

    def _put(self) -> None:
        """All that can be known of the job is known: ask for its decision."""
        job = self._job
        assert job is not None
        if self._over:  # nothing may follow an EOF to the target
            self._job = None
            self._answer(job.request.id, wire.FX_FAILURE, "gatecast: the session was ended")
            return
        resolved = True
        for place in job.places:
            names, vouched = place.names(self._home)
            job.names.append(names)
            resolved = resolved and vouched
        if job.lost:
            self._steps.add(Dropped(job.data))
        self._ask = Ask(command(job.request, job.names, resolved, self._settings), b"" if job.lost else job.data)
        self._steps.add(self._ask)

    def _decided(self, ask: Ask, now: float) -> Job | None:
        """Take the job that an Ask was for; None if it is not the one that waits."""
        if ask is not self._ask or self._phase == "broken":
            return None
        self._now = now
        job, self._job, self._ask = self._job, None, None
        return job

    # -- of the target --------------------------------------------------------------------------------

    def _reply_piece(self, piece: Piece) -> None:
        source, start, end, first, _ = piece
        if not first:
            taped = True
            if self._down_body is not None:
                file, offset = self._down_body
                assert file.transfer is not None
                file.transfer.took(offset, memoryview(source)[start:end])
                self._down_body = (file, offset + end - start)
                taped = file.taped
            self._steps.down(source, start, end, taped)
            return
        self._down_body = None
        code = source[start + 4]
        if self._phase in ("start", "version"):
            self._version(piece, code)
            return
        request_id: int = wire.U32.unpack_from(source, start + 5)[0]
        sent = self._sent.pop(request_id, None)
        if sent is None:
            raise Malformed("an answer to no request")
        if sent.operation.moves:
            self._moving -= 1
        if sent.lookup is not None:
            self._looked_up(piece, code, sent.lookup)
        else:
            self._reply(piece, code, sent)

    def _version(self, piece: Piece, code: int) -> None:
        if self._phase != "version" or code != wire.VERSION:
            raise Malformed("no VERSION in answer to INIT")
        changed = wire.version_for_user(piece.source, piece.start, piece.end)
        if changed is None:
            self._steps.down(piece.source, piece.start, piece.end, True)
        else:
            self._steps.add(ToUser(changed, by_gate=True, masked=False))
        self._phase = "home"
        self._look_up("whole", b".", None)

    def _looked_up(self, piece: Piece, code: int, lookup: tuple[Lookup, Place | None]) -> None:
        """Take the answer to a request of the gate."""
        what, place = lookup
        fields = wire.Fields(piece.source, piece.start + wire.IDENTIFIED.size, piece.end)
        answer, status = read_answer(what, code, fields)
        if place is None:
            self._home = answer or self._home
            self._phase = "open"
            return
        job = self._job
        assert job is not None
        job.missing -= 1
        if what == "parent" and answer is not None and place.parent is not None:
            self._known.learn_parent(place.parent, answer, self._now)
        if job.learn(what, place, answer, status):
            self._look_up("exists", place.whole or b"", place)
        if not job.missing:
            self._put()

    def _reply(self, piece: Piece, code: int, sent: Sent) -> None:
        source, start, end, _, rest = piece
        fields = wire.Fields(source, start + wire.IDENTIFIED.size, end)
        operation = sent.operation.code
        taped = True
        if operation in (wire.OPEN, wire.OPENDIR):
            self._opening -= 1
        match code:
            case wire.STATUS:
                self._status(fields.u32(), sent)
            case wire.DATA if operation == wire.READ and sent.file is not None:
                if fields.u32() != rest or rest > sent.size:
                    raise Malformed("DATA that are not as long as they should be")
                self._down_body = (sent.file, sent.offset)
                taped = sent.file.taped
            case wire.HANDLE if operation in (wire.OPEN, wire.OPENDIR):
                self._opened(fields.string(), sent)
            case wire.ATTRS if operation in (wire.STAT, wire.LSTAT, wire.FSTAT):
                self._attributes(fields.attributes(), sent)
            case wire.NAME if operation == wire.READDIR and sent.file is not None:
                sent.file.entries += fields.u32()
            case wire.NAME if operation in (wire.READLINK, wire.REALPATH) or sent.operation.name in wire.NAMING:
                self._succeeded(sent)
            case wire.EXTENDED_REPLY if operation == wire.EXTENDED:
                self._succeeded(sent)
                if sent.operation.name == "limits@openssh.com":
                    limits = wire.limits_for_user(source, start, end, HANDLES_LIMIT)
                    if limits is not None:
                        self._steps.add(ToUser(limits, by_gate=True, masked=False))
                        return
            case _:
                raise Malformed(f"an answer of type {code} to {sent.operation.name}")
        self._steps.down(source, start, end, taped)

    def _status(self, code: int, sent: Sent) -> None:
        operation, file = sent.operation.code, sent.file
        if file is not None and operation == wire.CLOSE:
            error = "" if code == wire.FX_OK else wire.status_text(code)
            self._finish(file, closed=code == wire.FX_OK, error=error)
        elif file is not None and file.transfer is not None:
            if operation == wire.READ and code == wire.FX_EOF:
                file.transfer.eof(sent.offset)
            elif operation == wire.WRITE and code != wire.FX_OK:
                file.transfer.failed(sent.size)
        elif sent.permit is not None:
            cut(sent, self._files, code)
            self._done(sent.permit, wire.status_text(code), sent.job)

    def _opened(self, handle: bytes, sent: Sent) -> None:
        assert sent.job is not None and sent.permit is not None
        if not 0 < len(handle) <= wire.HANDLE_LIMIT:
            raise Malformed(f"a handle of {len(handle)} bytes")
        if handle in self._files:
            raise Malformed("a handle that is in use already")
        self._files[handle] = opened(sent, self._settings, self._reorder, self._known, self._now)

    def _attributes(self, attributes: wire.Attributes, sent: Sent) -> None:
        if sent.file is not None:
            if sent.file.transfer is not None and attributes.size is not None:
                sent.file.transfer.size = attributes.size
        elif sent.job is not None:
            if attributes.size is not None:
                self._known.learn_size(sent.job.names[0][-1], attributes.size)
            self._succeeded(sent)

    def _succeeded(self, sent: Sent) -> None:
        if sent.permit is not None:
            self._done(sent.permit, wire.status_text(wire.FX_OK), sent.job)

    # -- to both --------------------------------------------------------------------------------------

    def _answer(self, request_id: int, code: int, text: str) -> None:
        """Answer a request in the target's place."""
        self._steps.add(ToUser(wire.status(request_id, code, text), by_gate=True, masked=False))

    def _done(self, permit: Permit, tag: str, job: Job | None = None) -> None:
        details: dict[str, object] = {"flow": self._settings.flow}
        if job is not None and job.names:
            details["path"] = job.names[0][0]
        self._steps.add(Done(permit, Result(tag, details=details)))

    def _finish(self, file: File, closed: bool, error: str) -> None:
        self._steps.add(Done(file.permit, file.result(self._settings.flow, self._now, closed, error)))

    def _break(self, text: str) -> None:
        """Neither side is believed any more."""
        self._drop_rest()
        self._phase = "broken"
        self._job = self._ask = None
        self._down.clear()
        self._steps.add(Broken(f"gatecast: SFTP: {text}"))
