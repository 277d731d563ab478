"""A container image made of the system's busybox, so that nothing has to be pulled (docker-archive, one layer).

A busybox that is linked dynamically brings its libraries along. One image carries two names: IMAGE for containers, and
PAUSE for the sandbox that holds a pod together.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from tests.peers.postgres import PeerMissing

IMAGE: Final = "localhost/busybox:1"
PAUSE: Final = "localhost/pause:1"
_FOLDERS: Final = ("bin", "etc", "tmp", "root", "proc", "sys", "dev", "var", "home", "www")
_LIBRARY: Final = re.compile(r"(/\S+) \(0x")


def make_image(path: Path) -> None:
    """Write the image. Raises PeerMissing where there is no busybox."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise PeerMissing("busybox is missing: apt-get install busybox")
    layer = _layer(busybox)
    config = json.dumps({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["sleep", "infinity"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }).encode()  # fmt: skip
    name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": name, "RepoTags": [IMAGE, PAUSE], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as archive:
        for member, data in ((name, config), ("layer.tar", layer), ("manifest.json", manifest)):
            _add(archive, member, data)


def _layer(busybox: str) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for folder in _FOLDERS:
            _add(archive, folder, kind=tarfile.DIRTYPE, mode=0o1777 if folder == "tmp" else 0o755)
        _add(archive, "bin/busybox", Path(busybox).read_bytes(), mode=0o755)
        applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in applets:
            if applet != "busybox":
                _add(archive, f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox")
        linked = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False).stdout
        for library in _LIBRARY.findall(linked):
            _add(archive, library.lstrip("/"), Path(library).read_bytes(), mode=0o755)
        _add(archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        _add(archive, "etc/group", b"root:x:0:\n")
        _add(archive, "www/index.html", b"hello from the pod\n")
    return held.getvalue()


def _add(
    archive: tarfile.TarFile,
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    link: str = "",
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.type, member.linkname = len(data), mode, kind, link
    archive.addfile(member, io.BytesIO(data))
