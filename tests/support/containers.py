"""Images without an engine: built by buildah, run by crun as a strict cluster does, any user on a read-only root.

The base is a stand-in for machines without a registry: Debian's Python under the name of the Dockerfile's base.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = ("buildah", "crun", "ip", "mmdebstrap", "unshare")
USER = (12345, 54321)
"""User and group that no image knows."""


def done(command: Sequence[str | Path], **how: Any) -> str:
    """Runs a command that must succeed and returns what it prints."""
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)
    assert ran.returncode == 0, f"{command[0]} ended with {ran.returncode}:\n{ran.stdout[-4000:]}"
    return ran.stdout.strip()


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, store: Path) -> None:
        self.options = ["--root", store / "root", "--runroot", store / "runroot", "--storage-driver", "overlay"]

    def __call__(self, *arguments: str | Path, **how: Any) -> str:
        return done(["buildah", *self.options, *arguments], **how)

    def stand_in_base(self, dockerfile: Path, folder: Path) -> None:
        """Commits Debian's Python, with the headers that the real base has, as the base that a Dockerfile names."""
        base = re.search(r"^FROM (\S+-(\w+)) AS ", dockerfile.read_text(), re.M)
        assert base is not None
        packages = "python3,python3-dev,python3-venv,ca-certificates"
        tar = folder / "base.tar"
        done(["mmdebstrap", "--variant=minbase", f"--include={packages}", base.group(2), tar])
        container = self("from", "scratch")
        self("add", "--quiet", container, tar, "/")
        self("commit", "--quiet", "--rm", container, f"docker.io/library/{base.group(1)}")
        tar.unlink()

    def build(self, name: str, context: Path, volumes: Mapping[Path, str], **arguments: str) -> None:
        """Builds a folder's Dockerfile; the volumes are there while it runs."""
        options = [f"--volume={path}:{inside}:ro" for path, inside in volumes.items()]
        options += [f"--build-arg={key}={value}" for key, value in arguments.items()]
        self("build", "--isolation", "chroot", "--pull=never", "--format", "docker", *options, "--tag", name, context)

    def clear(self) -> None:
        self("rm", "--all")
        self("rmi", "--all", "--force")


class Image:
    """A built image whose commands are run in containers. Volumes of a container are folders below `volumes`."""

    def __init__(self, buildah: Buildah, name: str, folder: Path) -> None:
        self.folder = folder
        self.root = Path(buildah("mount", buildah("from", "--pull=never", name)))
        self.config = json.loads(buildah("inspect", "--type", "image", name))["OCIv1"]["config"]
        self.started = 0

    def start(
        self,
        arguments: Sequence[str],
        volumes: Path,
        environment: Mapping[str, str] | None = None,
        entrypoint: Sequence[str] | None = None,
        network: str | None = None,
        **how: Any,
    ) -> subprocess.Popen[str]:
        """Starts a container with arguments for the image's entry point, in a network namespace where one is named."""
        self.started += 1
        bundle = self.folder / f"container-{self.started}"
        bundle.mkdir(parents=True)
        entrypoint = self.config["Entrypoint"] if entrypoint is None else entrypoint
        added = [f"{key}={value}" for key, value in (environment or {}).items()]
        process = {
            "args": [*entrypoint, *arguments],
            "env": [*self.config["Env"], "OMP_NUM_THREADS=1", *added],
            "cwd": self.config["WorkingDir"],
            "user": dict(zip(("uid", "gid"), USER, strict=True)),
            "capabilities": {},
            "noNewPrivileges": True,
        }
        mounts = [self._volume(path, volumes) for path in self.config["Volumes"]]
        (bundle / "hosts").write_text("127.0.0.1 localhost mlflow\n")  # as compose names its services
        mounts += [_bind(bundle / "hosts", "/etc/hosts"), {"destination": "/proc", "type": "proc", "source": "proc"}]
        for path in ("/dev", "/dev/shm"):
            mounts.append({"destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})
        specification = {
            "ociVersion": "1.0.2",
            "process": process,
            "root": {"path": str(self.root), "readonly": True},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc")]},
        }
        (bundle / "config.json").write_text(json.dumps(specification))
        inside = ["ip", "netns", "exec", network] if network else []
        command = [*inside, *self._crun("run", "--bundle", str(bundle), bundle.name)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **how}
        return subprocess.Popen(command, text=True, **pipes)

    def run(self, arguments: Sequence[str], volumes: Path, **how: Any) -> tuple[int, str]:
        """Runs a container to its end; returns its exit code and what it printed."""
        container = self.start(arguments, volumes, **how)
        said, _ = container.communicate(timeout=900)
        return container.returncode, said

    def kill(self, signal: str) -> None:
        """Signals the first process of the container that was started last."""
        done(self._crun("kill", f"container-{self.started}", signal))

    def _crun(self, *arguments: str) -> list[str]:
        # crun wants cgroups of the second version alone, which a namespace of its own can show it.
        alone = "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && exec crun"
        options = f"--root {self.folder}/crun --cgroup-manager=disabled"
        return ["unshare", "--mount", "sh", "-c", f'{alone} {options} "$@"', "sh", *arguments]

    def _volume(self, path: str, volumes: Path) -> dict[str, Any]:
        """A folder as an engine makes it when it is first mounted: what the image has there, with its modes."""
        folder = volumes / path.strip("/").replace("/", "-")
        if not folder.exists():
            volumes.mkdir(parents=True, exist_ok=True)
            shutil.copytree(self.root / path.strip("/"), folder, symlinks=True)
            assert os.stat(folder).st_mode == os.stat(self.root / path.strip("/")).st_mode
        return _bind(folder, path)


def _bind(source: Path, destination: str) -> dict[str, Any]:
    return {"source": str(source), "destination": destination, "type": "bind", "options": ["bind", "rw"]}
