"""The log read by another implementation: golang.org/x/mod's sumdb/tlog and sumdb/note, in a small Go program.

It needs go and the module in Go's cache (nothing is downloaded: GOFLAGS=-mod=mod, GOPROXY=off); else it is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from recorder.checkpoint import log_key
from recorder.nodelog import NodeLog
from tests.recorder.nodelogs import KEYS, ORIGIN, beats, node_log
from tests.recorder.tapes import KEY

pytestmark = pytest.mark.peer

PROGRAM = r"""
package main

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type tiles struct{ dir string }

// x/mod's paths name the height and say data; those of C2SP tlog-tiles say entries.
func path(t tlog.Tile) string {
	return "tile/" + strings.Replace(strings.TrimPrefix(t.Path(), "tile/8/"), "data/", "entries/", 1)
}
func (r tiles) Height() int { return 8 }
func (r tiles) ReadTiles(wanted []tlog.Tile) (found [][]byte, err error) {
	for _, t := range wanted {
		data, err := os.ReadFile(filepath.Join(r.dir, path(t)))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}
func (r tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Println("wrong:", err)
		os.Exit(1)
	}
	return value
}
func check(err error) { must(0, err) }

func hash(text string) (h tlog.Hash) {
	copy(h[:], must(base64.StdEncoding.DecodeString(text)))
	return h
}

func main() {
	dir, vkey, proofs := os.Args[1], os.Args[2], os.Args[3]
	verifier := must(note.NewVerifier(vkey))
	signed := must(note.Open(must(os.ReadFile(filepath.Join(dir, "checkpoint"))), note.VerifierList(verifier)))
	lines := strings.Split(signed.Text, "\n")
	size, root := must(strconv.ParseInt(lines[1], 10, 64)), hash(lines[2])
	reader := tlog.TileHashReader(tlog.Tree{N: size, Hash: root}, tiles{dir})
	if must(tlog.TreeHash(size, reader)) != root {
		check(fmt.Errorf("the root"))
	}
	entries := int64(0)
	for i := int64(0); i*256 < size; i++ {
		data := must(os.ReadFile(filepath.Join(dir, path(tlog.Tile{H: 8, L: -1, N: i, W: int(min(256, size-i*256))}))))
		for len(data) > 0 {
			end := 2 + int(binary.BigEndian.Uint16(data))
			proof := must(tlog.ProveRecord(size, entries, reader))
			check(tlog.CheckRecord(proof, size, root, entries, tlog.RecordHash(data[2:end])))
			data = data[end:]
			entries++
		}
	}
	if entries != size {
		check(fmt.Errorf("%d entries of %d", entries, size))
	}
	for _, line := range strings.Fields(string(must(os.ReadFile(proofs)))) {
		words := strings.Split(line, ",")
		old := must(strconv.ParseInt(words[0], 10, 64))
		proof := tlog.TreeProof{}
		for _, word := range words[2:] {
			proof = append(proof, hash(word))
		}
		if words[1] == "tree" {
			check(tlog.CheckTree(proof, size, root, old, must(tlog.TreeHash(old, reader))))
		} else {
			leaf := must(reader.ReadHashes([]int64{tlog.StoredHashIndex(0, old)}))[0]
			check(tlog.CheckRecord(tlog.RecordProof(proof), size, root, old, leaf))
		}
	}
	fmt.Println("right:", signed.Sigs[0].Name, size)
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed")
    cache = subprocess.run([go, "env", "GOMODCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    found = sorted(Path(cache, "cache", "download", "golang.org", "x", "mod", "@v").glob("v*.zip"))
    version = re.search(r"v\d+\.\d+\.\d+", found[-1].name) if found else None
    if version is None:
        pytest.skip("golang.org/x/mod is not in Go's cache; go mod download golang.org/x/mod@latest brings it")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(PROGRAM)
    (folder / "go.mod").write_text(f"module check\n\ngo 1.21\n\nrequire golang.org/x/mod {version[0]}\n")
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GONOSUMDB": "*", "GONOSUMCHECK": "1"}
    environment |= {"GOFLAGS": "-mod=mod", "GOSUMDB": "off", "GOTOOLCHAIN": "local"}
    built = subprocess.run(
        [go, "build", "-o", "check", "."], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if built.returncode:
        pytest.skip(f"the program cannot be built offline: {built.stderr[-300:]}")
    return folder / "check"


def proofs_of(log: NodeLog, path: Path) -> None:
    from base64 import b64encode

    head = log.checkpoint()
    lines = []
    for old in {1, 2, 3, 255, 256, 257, head.size // 2, head.size - 1} & set(range(1, head.size)):
        for kind, proof in (("tree", log.consistency(old, head)), ("record", log.inclusion(old, head))):
            lines.append(",".join([str(old), kind, *(b64encode(piece).decode() for piece in proof)]))
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000])
def test_another_implementation_reads_the_log(tmp_path: Path, program: Path, size: int) -> None:
    log = node_log(tmp_path)
    log.append(beats(0, size // 2))
    log.append(beats(size // 2, size - size // 2))
    proofs_of(log, tmp_path / "proofs")
    vkey = log_key(ORIGIN, KEYS[KEY.id]).vkey

    def read() -> tuple[int, str]:
        command = [str(program), str(log.directory), vkey, str(tmp_path / "proofs")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        return done.returncode, done.stdout

    assert read() == (0, f"right: {ORIGIN} {size}\n")
    bundle = next(path for path in (log.directory / "tile" / "entries").rglob("*") if path.is_file())
    data = bytearray(bundle.read_bytes())
    data[-1] ^= 1
    bundle.write_bytes(data)
    assert read()[0] == 1  # so that the check is one
