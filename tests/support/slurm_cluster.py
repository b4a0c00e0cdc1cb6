"""A real Slurm of two virtual nodes on this machine, from Debian's packages; it ends with who started it."""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

NODES = ("n1", "n2")
PATIENCE = 300.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

# Upon the end of its parent a process gets SIGTERM: PR_SET_PDEATHSIG is 1.
_die_with_parent = partial(ctypes.CDLL(None).prctl, 1, signal.SIGTERM)

CONFIGURATION = """
ClusterName=lrtrain
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=30
SlurmdTimeout=12
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2
PartitionName=main Nodes=n1,n2 Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n1,n2 State=UP PriorityTier=9 PreemptMode=OFF
"""


class Cluster:
    """A controller and a daemon a node, in a folder of their own under /tmp: sockets take no long paths."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        ports = _free_ports(3)
        host = socket.gethostname().partition(".")[0]
        conf = self.root / "slurm.conf"
        conf.write_text(CONFIGURATION.format(root=self.root, host=host, controller=ports[0], n1=ports[1], n2=ports[2]))
        self.environment = {**os.environ, "SLURM_CONF": str(conf)}
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(256))
        key.chmod(0o400)
        files = [f"--{name}-file={self.root}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._start("munged", "--foreground", "--force", f"--socket={self.root}/munge.socket", *files)
        until(lambda: (self.root / "munge.socket").exists(), 30)
        self._start("slurmctld", "-D", "-c", "-f", str(conf))
        for node in NODES:
            self.start_node(node)
        until(lambda: self.ask("sinfo", "-h", "-o", "%D %T") == "2 idle", 60)

    def start_node(self, node: str) -> None:
        self._start(f"slurmd {node}", "-D", "-f", self.environment["SLURM_CONF"], "-N", node)

    def kill_node(self, node: str) -> None:
        """Ends a node's daemon and whatever runs there at once, as a power failure would: none reports another."""
        daemon = self.daemons.pop(f"slurmd {node}")
        tasks = self._own_processes(f"SLURMD_NODENAME={node}")
        pids = [daemon.pid, *filter(_is_stepd, map(_parent, tasks)), *tasks]
        for how in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
        daemon.wait(30)

    def ask(self, *command: str) -> str:
        """What a command of Slurm's prints; empty where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)
        return done.stdout.strip() if done.returncode == 0 else ""

    def submit(self, folder: Path, *arguments: str, **variables: str) -> str:
        """Submits a job from a folder and returns its id."""
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments],
            cwd=folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`, those whose values hold no blanks."""
        fields = self.ask("scontrol", "show", "job", "-o", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def state(self, job: str) -> str:
        return self.job(job).get("JobState", "GONE")

    def end(self, job: str, seconds: float = PATIENCE) -> str:
        """Waits for the end of a job and returns its state."""
        until(lambda: self.state(job) in ENDED, seconds)
        return self.state(job)

    def close(self) -> None:
        """Cancels all jobs, and ends the daemons and whatever still runs."""
        self.ask("scancel", "--user=root")
        with contextlib.suppress(AssertionError):
            until(lambda: not self.ask("squeue", "-h"), 20)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for pid in self._own_processes(f"SLURM_CONF={self.environment['SLURM_CONF']}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons.values():
            daemon.wait(30)
        shutil.rmtree(self.root, ignore_errors=True)

    def _start(self, name: str, *arguments: str) -> None:
        program = name.split()[0]
        with open(self.root / f"{name.replace(' ', '-')}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen(
                [shutil.which(program) or f"/usr/sbin/{program}", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,
            )

    def _own_processes(self, setting: str) -> list[int]:
        """The processes of this cluster's jobs whose environment holds a setting."""
        ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                variables = entry.read_bytes().split(b"\0")
                if {ours, setting.encode()} <= {*variables} and entry.parent.name != str(os.getpid()):
                    found.append(int(entry.parent.name))
        return found


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    running = Cluster()
    try:
        yield running
    finally:
        running.close()


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _is_stepd(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"slurmstepd")
    return False


def until(true: Callable[[], object], seconds: float = PATIENCE, pause: float = 0.25) -> None:
    """Waits until something is true; AssertionError after some seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
