"""Debian's containerd as a private container runtime: no image pull, no network plugin, no daemon of the system's own.

Everything lies in one folder. Needs root, and a kernel that lets us make namespaces, mounts and cgroups: Missing says
what there is not. It serves exec, attach and port-forward itself, as it does for kubelets (spdystream, WebSocket v4).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.peers.kube.cri import CriError, Runtime
from tests.peers.kube.image import PAUSE, make_image
from tests.peers.ssh import descendants

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0
# restrict_oom_score_adj: needed where root lacks CAP_SYS_RESOURCE, as in small machines and containers.
_CONFIG: Final = """\
version = 2
root = "{root}/lib"
state = "{root}/run"
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{root}/containerd.sock"
[ttrpc]
  address = "{root}/ttrpc.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{root}/cni/bin"
    conf_dir = "{root}/cni/net.d"
"""


class NoContainers(Exception):
    """Containers cannot run here; the text says why."""


@contextlib.contextmanager
def containerd() -> Iterator[Path]:
    """Run one; yields the folder, whose containerd.sock serves CRI. Raises NoContainers, before anything is yielded."""
    if os.geteuid() != 0:
        raise NoContainers("containers need root")
    places = {name: shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin") for name in ("containerd", "runc")}
    if missing := [name for name, place in places.items() if place is None]:
        raise NoContainers(f"{' and '.join(missing)} missing: apt-get install containerd runc")
    folder = Path(tempfile.mkdtemp(prefix="gc-cri-"))  # short: sockets' paths have 108 characters
    try:
        (folder / "config.toml").write_text(_CONFIG.format(root=folder, pause=PAUSE, runc=places["runc"]))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(places["containerd"]), "-c", str(folder / "config.toml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            _ready(process, folder)
            yield folder
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        _clean(folder)


def _ready(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for it, give it the image, and see that a container runs. Raises NoContainers."""
    runtime = Runtime(folder / "containerd.sock")
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                runtime.version()
                break
            except CriError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NoContainers(f"containerd did not start: {error}; {_tail(folder)}") from error
                time.sleep(0.05)
        image = folder / "image.tar"
        make_image(image)
        command = ["ctr", "-a", str(folder / "containerd.sock"), "-n", "k8s.io", "images", "import", str(image)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise NoContainers(f"no image: {done.stderr[-500:]}")
        _try(runtime, folder)
    finally:
        runtime.close()


def _try(runtime: Runtime, folder: Path) -> None:
    try:
        pod = runtime.run_pod("default", "trial", "trial", folder / "trial")
        made = [runtime.run_container(pod, {"name": "main"}, {})]
        runtime.stop(pod, made)
    except CriError as error:
        raise NoContainers(f"no container runs here: {error}") from error


def _tail(folder: Path) -> str:
    return (folder / "log").read_text(errors="replace")[-500:]


def _shims(folder: Path) -> list[int]:
    """The shims that have outlived a containerd: they name its socket on their command line."""
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"\0-address\0{folder}/containerd.sock".encode() in place.read_bytes():
                found.append(int(place.parent.name))
    return found


def _clean(folder: Path) -> None:
    """End containers that are left, unmount what they had, the deepest first, and remove the folder."""
    for shim in _shims(folder):
        for pid in [*descendants(shim), shim]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((each for each in mounts if each.startswith(f"{folder}/")), key=len, reverse=True):
        subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)
