"""The page of a session: one file, nothing from outside, nothing from the tape that a browser would take for markup."""

from __future__ import annotations

import asyncio
import io
import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

import recorder.export_html as export_html
from recorder.export import export_tape
from recorder.export_options import ExportError, ExportOptions
from recorder.reader import TapeReader
from recorder.tape import GATE, USER, Kind
from tests.recorder.stories import bad_intentions, one_of_everything, unsealed
from tests.recorder.tapes import command, open_tape, pack, recorder


def page_of(path: Path, options: ExportOptions | None = None) -> str:
    out = io.StringIO()
    export_tape(TapeReader(path), "html", out, options)
    return out.getvalue()


class Page(HTMLParser):
    """What a browser would make of it: elements with their attributes, and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self.words = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            self.raw.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            tag, text = self.raw[-1]
            self.raw[-1] = (tag, text + data)
        else:
            self.words += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_policy_allows_what_the_page_brings_and_no_more(tmp_path: Path) -> None:
    page = Page(page_of(one_of_everything(tmp_path)))
    policy = next(a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = {name: rest for name, _, rest in (rule.strip().partition(" ") for rule in policy.split(";"))}
    assert rules["default-src"] == "'none'"
    assert (rules["base-uri"], rules["form-action"], rules["img-src"]) == ("'none'", "'none'", "data:")
    assert "unsafe-inline" not in policy
    assert "http" not in policy
    hashes = {
        tag: {
            f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for name, text in page.raw if name == tag
        }
        for tag in ("script", "style")
    }
    cast = next(text for tag, text in page.raw if tag == "script" and text.lstrip().startswith('{"version"'))
    hashes["script"].remove(f"'sha256-{b64encode(sha256(cast.encode()).digest()).decode()}'")
    assert set(rules["script-src"].split()) == hashes["script"] | {"'wasm-unsafe-eval'"}
    assert set(rules["style-src"].split()) == hashes["style"]


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    page = Page(page_of(one_of_everything(tmp_path)))
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert attributes.get("href") in (None, "data:,"), tag
    assert page.attributes("script") == [{"type": "text/plain", "id": "cast"}, {}, {}]


def test_the_player_is_the_published_one() -> None:
    for name, expected in export_html.PLAYER_SHA256.items():
        assert sha256(files("recorder").joinpath("player", name).read_bytes()).hexdigest() == expected
    assert "Apache License" in files("recorder").joinpath("player", "LICENSE").read_text()


def test_a_changed_player_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(export_html.PLAYER_SHA256, "asciinema-player.css", "0" * 64)
    with pytest.raises(ExportError, match="install gatecast anew"):
        page_of(one_of_everything(tmp_path))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    harmless = Page(page_of(one_of_everything(tmp_path / "a")))
    text = page_of(bad_intentions(tmp_path / "b"))
    page = Page(text)
    # The same elements and attributes as in a page without bad intentions, but for the number of list items.
    known = {(tag, name) for tag, attributes in harmless.elements for name in ("", *attributes)}
    assert {(tag, name) for tag, attributes in page.elements for name in ("", *attributes)} <= known | {("p", "hidden")}
    assert len(page.attributes("script")) == 3
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    # Neither raw controls nor bidirectional ones anywhere: they are spelled out.
    for name in export_html.PLAYER_SHA256:
        text = text.replace(files("recorder").joinpath("player", name).read_text(encoding="utf-8"), "")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e\u200b]", text)
    assert page.words.count("<U+202E>") > 10
    # And it is all there to be read.
    assert "</script><script>alert(1)</script><img src=x onerror=alert(2)> <!-- ]]> javascript:alert(3)" in page.words


def test_the_cast_in_the_page_is_the_session(tmp_path: Path) -> None:
    page = Page(page_of(bad_intentions(tmp_path)))
    cast = next(text for tag, text in page.raw if text.lstrip().startswith('{"version"'))
    assert "<" not in cast
    header, *events = [json.loads(line) for line in cast.strip().splitlines()]
    assert header["version"] == 2
    shown = "".join(event[2] for event in events if event[1] == "o")
    assert "</script><script>alert(1)</script>" in shown
    assert "\x1b]" not in shown
    assert "\u202e" not in shown


def test_the_list_says_what_happened(tmp_path: Path) -> None:
    text = page_of(one_of_everything(tmp_path))
    items = re.findall(r'<li data-outcome="(\w+)" data-at="([\d.]+)">(.*?)</li>', text, re.DOTALL)
    assert [outcome for outcome, _, _ in items] == ["allow", "held", "error", "deny"]
    assert [float(at) for _, at, _ in items] == pytest.approx([0.0, 1.0127, 4.0158, 4.0158])  # 41 s are cut to 3
    words = [re.sub(r"<[^>]*>", " ", item) for _, _, item in items]
    assert "allowed" in words[0]
    assert "masks pii.email · SELECT 200 in 12.7 ms" in words[0]
    assert "approved" in words[1]
    assert "22012 division by zero" in words[2]
    assert "not today" in words[3]
    page = Page(text)
    assert "by mia@acme after 41.0 s" in page.words
    assert '"ok #812"' in page.words
    assert "refund order 812" in page.words
    for chip in ("all 4", "allowed 1", "held 1", "denied 1", "error 1"):
        assert chip in page.words


def test_the_page_says_how_to_verify_the_tape(tmp_path: Path) -> None:
    path = one_of_everything(tmp_path)
    words = Page(page_of(path)).words
    seal = TapeReader(path).segment(0).seal
    assert seal is not None
    assert f"gatecast verify {path.name} --key seal.key.pub" in words
    assert f"root {seal.body['root'].hex()}" in words
    assert seal.signatures[0].key_id in words


def test_an_unsealed_tape_has_a_notice(tmp_path: Path) -> None:
    text = page_of(unsealed(tmp_path))
    assert '<p class="notice" role="status">not sealed: the end may be missing</p>' in text
    assert "Seal: not sealed" in text


def test_a_cast_too_long_for_a_browser_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one_of_everything(tmp_path)
    page = Page(page_of(path))
    size = len(next(text for tag, text in page.raw if text.lstrip().startswith('{"version"')).lstrip())
    for limit, fits in ((size + 1, True), (size, True), (size - 1, False)):
        monkeypatch.setattr(export_html, "CAST_LIMIT", limit)
        if fits:
            assert page_of(path)
        else:
            with pytest.raises(ExportError, match="export a part with --from and --to"):
                page_of(path)


def test_a_long_list_is_cut_with_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one_of_everything(tmp_path)
    monkeypatch.setattr(export_html, "NOTABLE_LIMIT", 0)
    for limit, listed in ((5, 4), (4, 4), (3, 3)):
        monkeypatch.setattr(export_html, "COMMANDS_LIMIT", limit)
        text = page_of(path)
        assert text.count("<li ") == listed
        assert ("1 more commands are in the recording" in text) is (listed == 3)


def test_what_was_denied_or_failed_is_in_the_list_however_long_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = one_of_everything(tmp_path)
    for limit, more, listed in ((1, 9, 4), (1, 2, 3), (1, 0, 1)):
        monkeypatch.setattr(export_html, "COMMANDS_LIMIT", limit)
        monkeypatch.setattr(export_html, "NOTABLE_LIMIT", more)
        text = page_of(path)
        labels = re.findall(r'class="label">(Q\d)', text)
        assert labels == ["Q1", "Q2", "Q3", "Q4"][:listed]
        assert (f">{listed} of 4<" in text) is (listed < 4)
    assert "values &#x27;101&#x27;, NULL" not in text
    monkeypatch.setattr(export_html, "NOTABLE_LIMIT", 9)
    assert "values &#x27;101&#x27;, NULL" in page_of(path)


def test_the_steps_of_a_prepared_command_are_called_what_they_are(tmp_path: Path) -> None:
    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path))
        for message in (b"P", b"B", b"E"):
            tape.append(USER, Kind.WIRE, message + b"...")
            n = command(tape, "SELECT $1", values=["it's"] if message != b"P" else [])
            if message == b"E":
                tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "SKIPPED", "count": 0, "bytes": 0}))
        await tape.close("closed")
        return tape.path

    text = page_of(asyncio.run(scenario()))
    notes = re.findall("<small>(rule [^<]*)</small>", text)
    value = "values &#x27;it&#x27;&#x27;s&#x27;"
    assert notes == ["rule r1 · prepared", f"rule r1 · bound · {value}", f"rule r1 · {value} · skipped"]


def test_real_time_on_request(tmp_path: Path) -> None:
    text = page_of(one_of_everything(tmp_path), ExportOptions(idle_limit_seconds=1000))
    assert [float(at) for at in re.findall(r'data-at="([\d.]+)"', text)][-1] == pytest.approx(42.0158)
