"""Attacks on masks over real sockets: encodings, cuts, oracles, and targets that lie about what they answer."""

from __future__ import annotations

import base64
import gzip
import json

from proxy.core.events import Command
from proxy.core.verdict import Allow, Mask, Verdict
from proxy.masking import Masking
from tests.kubernetes.attacking import PODS, Asked, Stage, ok, request
from tests.kubernetes.test_attacks_kubernetes import run

CANARY = "hunter2-unseen"
CODED = base64.b64encode(CANARY.encode()).decode()
MASKING = Masking(b"k" * 32, {"canary": "hunter2[^ ]*"})
SECRETS = "/api/v1/namespaces/shop/secrets"
DB = f"{SECRETS}/db"
SECRET_JSON = json.dumps(
    {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "db"}, "data": {"password": CODED}}
).encode()


def masked(command: Command) -> Verdict:
    return Allow("r", (Mask("r", detectors=("canary",)), Mask("s", fields=("secrets:data.*",))))


def shown(stage: Stage, data: bytes) -> bool:
    """Whether a value that masks hide is in what a user got, or on a tape."""
    return any(each in data + stage.taped() for each in (CANARY.encode(), CODED.encode(), CODED[:12].encode()))


def test_no_other_encoding_gets_past_the_masks() -> None:
    """What is asked for is JSON; what comes otherwise is not shown at all."""
    accepts = [
        "application/vnd.kubernetes.protobuf", "application/yaml", "application/cbor", "*/*", "",
        "application/vnd.kubernetes.protobuf;q=1, application/json;q=0.1", "text/plain", "application/json;q=0, */*",
        'application/json;as="Table", application/yaml', "application/json;as=Table;v=v1;g=meta.k8s.io",
        "APPLICATION/YAML, application/json;stream=watch",
    ]  # fmt: skip

    async def test(stage: Stage) -> None:
        for accept in accepts:
            stage.answer = lambda asked: asked.say(ok(SECRET_JSON))
            fields = [f"Accept: {accept}"] if accept else []
            got = await stage.ask(request("GET", DB, *fields, "Accept-Encoding: gzip, br, zstd", "TE: gzip"))
            assert got.status == 200 and not shown(stage, got.raw + got.body)
            sent = stage.asked[-1]
            assert sent.get("accept-encoding") is None
            for each in (sent.get("accept") or "").split(","):
                assert each.strip().lower().startswith("application/json"), accept
        lies: list[bytes] = []
        for kind, extra, body in (
            ("application/json", ["Content-Encoding: gzip"], gzip.compress(SECRET_JSON)),
            ("application/json", ["Content-Encoding: identity, gzip"], gzip.compress(SECRET_JSON)),
            ("application/json", [], gzip.compress(SECRET_JSON)),
            ("application/json", [], SECRET_JSON.decode().encode("utf-16")),
            ("application/json", [], b"\xef\xbb\xbf" + SECRET_JSON),
            ("application/json", [], b'{"kind":"Secret","kind":"Pod",' + SECRET_JSON[1:]),
            ("application/json", [], b'{"data":{"x":"' + CODED.encode() + b'"},' + SECRET_JSON[1:]),
            ("application/json", [], SECRET_JSON + SECRET_JSON),
            ("application/json", [], SECRET_JSON[:-1]),
            ("application/json", [], SECRET_JSON + b"\x00"),
            ("application/json", [], b"[" * 100_000 + SECRET_JSON + b"]" * 100_000),
            ("application/yaml", [], b"data: {password: " + CODED.encode() + b"}"),
            ("application/vnd.kubernetes.protobuf", [], b"k8s\0" + CODED.encode()),
            ("application/octet-stream", [], SECRET_JSON),
            ("", [], SECRET_JSON),
            ("application/json\tx", [], b"'" + SECRET_JSON),
        ):
            head = "".join(f"{line}\r\n" for line in (f"Content-Type: {kind}", *extra)) if kind else ""
            lies.append(f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        for lie in lies:
            stage.answer = lambda asked, lie=lie: asked.say(lie)  # type: ignore[misc]
            user = await stage.user()
            user.send(request("GET", DB))
            try:
                got = await user.answer()
                data = got.raw + got.body
                assert got.status == 503, (lie[:200], got)
            except EOFError as cut:
                data = cut.args[0]
            user.close()
            assert not shown(stage, data), (lie[:200], data)

    run(test, masked, masker=MASKING)


def test_no_part_of_an_answer_tells_what_the_whole_hides() -> None:
    """Lengths, ranges and cuts: a value is not measured, and not cut out of the reach of a detector."""
    text = f"begin {CANARY} end\n".encode()

    def answer(asked: Asked) -> None:
        wanted = asked.get("range")
        if asked.method == "HEAD":
            asked.say(ok(b"", f"ETag: {CODED}").replace(b"Content-Length: 0", b"Content-Length: 4711"))
        elif wanted is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = text[int(first) : int(last) + 1]
            asked.say(ok(part, f"Content-Range: bytes {wanted}/99", code="206 Partial Content").replace(
                b"application/json", b"text/plain"))  # fmt: skip
        else:
            asked.say(ok(text).replace(b"application/json", b"text/plain"))

    async def test(stage: Stage) -> None:
        user = await stage.user()
        user.send(request("HEAD", DB))
        got = await user.answer(head=True)
        assert b"4711" not in got.raw and CODED.encode() not in got.raw, got.raw
        path = f"{PODS}/api/proxy/file"
        got = await stage.ask(request("GET", path, "Range: bytes=0-9", "If-Range: x"))
        assert stage.asked[-1].get("range") is None and stage.asked[-1].get("if-range") is None
        assert b"hunt" not in got.body and b"end" in got.body, got
        # A target that answers with a part all the same: of that nobody knows what is behind its ends.
        stage.answer = lambda asked: asked.say(
            ok(text[:12], code="206 Partial Content").replace(b"application/json", b"text/plain")
        )
        got = await stage.ask(request("GET", path))
        assert got.status == 503 and b"hunt" not in got.body

    run(test, masked, answer, masker=MASKING)


def test_a_masked_log_whose_tape_fails_ends_and_shows_no_more() -> None:
    """And what ends it is the tape's failure, told to the log as such; serve() itself raises nothing."""

    def answer(asked: Asked) -> None:
        asked.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nfirst\n\r\n")

    async def test(stage: Stage) -> None:
        user = await stage.user()
        user.send(request("GET", f"{PODS}/api/log?follow=true"))
        await user.head()
        await stage.until(lambda: any(b"first" in payload for tape in stage.tapes for _, _, payload in tape.records))
        stage.tapes[0].fail = True
        stage.asked[0].say(b"7\r\nsecond\n\r\n")
        assert b"second" not in await user.rest()

    run(test, masked, answer, masker=MASKING)


def test_a_log_is_not_cut_in_the_middle_of_a_secret() -> None:
    text = f"begin {CANARY} end\n".encode()

    def answer(asked: Asked) -> None:
        limit = asked.target.partition("limitBytes=")[2].partition("&")[0]
        asked.say(ok(text[: int(limit)] if limit else text).replace(b"application/json", b"text/plain"))

    async def test(stage: Stage) -> None:
        for size in range(1, len(text) + 2):
            got = await stage.ask(request("GET", f"{PODS}/api/log?limitBytes={size}"))
            assert got.status == 400 and "limitBytes" in got.message, (size, got.body)
        assert stage.asked == []
        got = await stage.ask(request("GET", f"{PODS}/api/log"))
        assert got.status == 200 and b"hunter" not in got.body and b"end" in got.body

    run(test, masked, answer, masker=MASKING)


def test_pieces_hide_nothing() -> None:
    """A secret in chunks of one byte, over a log, a watch and a document."""
    line = json.dumps({"type": "ADDED", "object": json.loads(SECRET_JSON)}).encode() + b"\n"
    bookmark = json.dumps({"type": "BOOKMARK", "object": json.loads(SECRET_JSON)}).encode() + b"\n"
    failed = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": f'invalid value: "{CANARY}"'}
    error = json.dumps({"type": "ERROR", "object": failed}).encode() + b"\n"
    log = f"a {CANARY}\nb {CANARY} c\r\n{CANARY}".encode()

    def chunked(asked: Asked, data: bytes, kind: str) -> None:
        asked.say(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for at in range(len(data)):
            asked.say(b"1;x=y\r\n%b\r\n" % data[at : at + 1])
        asked.say(f"0\r\nX-Secret: {CANARY}\r\n\r\n".encode())

    async def test(stage: Stage) -> None:
        for path, data, kind in (
            (f"{PODS}/api/log?follow=true", log, "text/plain"),
            (f"{SECRETS}?watch=1", line + bookmark + b"\n" + error + line[:-1], "application/json;stream=watch"),
            (DB, SECRET_JSON, "application/json"),
            (f"{PODS}/api/proxy/x", log, "text/html"),
        ):
            stage.answer = lambda asked, data=data, kind=kind: chunked(asked, data, kind)  # type: ignore[misc]
            got = await stage.ask(request("GET", path))
            assert got.status == 200 and len(got.body) > 20
            assert not shown(stage, got.raw + got.body), (path, got.body)

    run(test, masked, masker=MASKING)


def test_errors_and_warnings_quote_nothing() -> None:
    failed = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Invalid", "code": 422,
        "message": f'Secret "db" is invalid: data: Invalid value: "{CODED}"',
        "details": {"name": CANARY, "causes": [{"message": f'Invalid value: "{CODED}"', "field": "data"}]},
    }  # fmt: skip

    async def test(stage: Stage) -> None:
        fields = [f'Warning: 299 - "{CANARY}"', f"X-Debug: {CANARY}", f"ETag: {CANARY}", f"Server: {CANARY}"]
        for code in ("422 Unprocessable", "500 Oops", "400 Bad"):
            for method, path in (("GET", DB), ("GET", f"{SECRETS}?watch=1"), ("DELETE", DB), ("GET", f"{PODS}/a/log")):
                # Of Secrets in base64, which no detector knows; else as it is, in quotation marks and without.
                said = json.dumps(failed).replace(CODED, CODED if path.startswith(SECRETS) else CANARY)
                said = said.replace("is invalid", f"{CANARY} is invalid")
                stage.answer = lambda asked, code=code, said=said: asked.say(  # type: ignore[misc]
                    ok(said.encode(), *fields, code=f"{code} {CANARY}")
                )
                got = await stage.ask(request(method, path))
                assert str(got.status) == code[:3]
                assert not shown(stage, got.raw + got.body), (method, path, got.raw, got.body)

    run(test, masked, masker=MASKING)


def test_what_is_too_large_to_be_masked_is_not_shown() -> None:
    async def test(stage: Stage) -> None:
        async def endless(asked: Asked) -> None:
            asked.say(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            piece = b"x" * 60_000
            for _ in range(2000):
                asked.say(b"%x\r\n%b\r\n" % (len(piece), piece))
                await asked.writer.drain()

        stage.answer = endless
        for path in (f"{SECRETS}?watch=1", DB):
            user = await stage.user()
            user.send(request("GET", path))
            data = await user.rest()
            assert b"xxx" not in data and b"\r\n0\r\n\r\n" not in data
            user.close()

    run(test, masked, masker=MASKING)
