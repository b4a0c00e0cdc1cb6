"""Two hosts on this machine: network namespaces joined by a cable that can be pulled. Needs root and iproute2."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "cable"


class TwoHosts:
    """Starts commands on host 0 or 1; both see the same files, as on a cluster with a shared file system."""

    def __init__(self) -> None:
        self.names = [f"lrtrain-{os.getpid()}-{host}" for host in range(2)]
        self.started: list[tuple[int, subprocess.Popen[bytes]]] = []

    def start(
        self, host: int, command: Sequence[str], output: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Starts a command in a session of its own, its output and errors in one file."""
        with output.open("ab") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], *command],
                env={**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE, **environment},
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.started.append((host, process))
        return process

    def cut(self) -> None:
        """Pulls the cable: packets vanish, and no end is told."""
        _ip("-n", self.names[1], "link", "set", INTERFACE, "down")

    def mend(self) -> None:
        _ip("-n", self.names[1], "link", "set", INTERFACE, "up")

    def kill(self, host: int) -> None:
        """Ends all that runs on a host at once, as a kernel that panics does."""
        listed = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, check=False)
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for place, process in self.started:
            if place == host:
                process.wait()


@contextlib.contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Two hosts for as long as the context lasts; what still runs there is killed at its end."""
    hosts = TwoHosts()
    try:
        for name in hosts.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", hosts.names[0], "link", "add", INTERFACE, "type", "veth", "peer", INTERFACE, "netns", hosts.names[1])
        for name, address in zip(hosts.names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            _ip("-n", name, "link", "set", INTERFACE, "up")
        yield hosts
    finally:
        for host, name in enumerate(hosts.names):
            hosts.kill(host)
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def ended(process: subprocess.Popen[Any], seconds: float) -> tuple[int, float]:
    """Waits for a process; its exit code, and after how many seconds it ended."""
    begun = time.monotonic()
    code = process.wait(seconds)
    return code, time.monotonic() - begun


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
