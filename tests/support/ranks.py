"""A function on several processes at once, with the environment that torchrun gives them."""

import contextlib
import io
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from forked import FORK

PATIENCE = 120.0

OF_EARLIER_TESTS = ("LRTRAIN_DECIDED", "PL_GLOBAL_SEED")
"""Left in the environment by a command: Lightning would have started us; it would seed several processes with it."""


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function of a test module returns on each of `count` processes; one alone knows of no launcher.

    Raises:
        AssertionError: with the traceback of the first process that failed.
    """
    own = {name: value for name, value in os.environ.items() if name not in OF_EARLIER_TESTS}
    environment = [own | more for more in (torchrun_environment(count) if count > 1 else [{}])]
    started = []
    for rank in range(count):
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_run, args=(sender, environment[rank], function, arguments), daemon=True)
        process.start()
        sender.close()
        started.append((process, receiver))
    outcomes = []
    try:
        for _, receiver in started:
            assert receiver.poll(PATIENCE), "a process does not answer"
            outcomes.append(pickle.loads(receiver.recv_bytes()))
    finally:
        for process, _ in started:
            process.kill() if len(outcomes) < count else process.join(PATIENCE)
    failures = [failure for _, failure in outcomes if failure]
    assert not failures, "\n".join(failures)
    return [result for result, _ in outcomes]


def command_on_ranks(count: int, argv: list[str]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of an `lrtrain` command on each of `count` processes."""
    return on_ranks(count, _command, argv)


def command_to_file(argv: list[str], environment: dict[str, str], output: Path) -> None:
    """Runs a command in this process, to be started by `FORK`, and ends it; what is printed goes to a file."""
    import torch

    from lrtrain.cli.main import main

    torch.set_num_threads(1)
    for name in [name for name in os.environ if name.startswith(("PL_GLOBAL", "SLURM_", "MASTER_", "TORCHELASTIC"))]:
        del os.environ[name]
    os.environ.update(environment)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(argv))


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def torchrun_environment(count: int) -> list[dict[str, str]]:
    """What torchrun tells each of so many processes on one machine."""
    port = free_port()
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "GROUP_RANK": "0"}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _command(argv: list[str]) -> tuple[int, str, str]:
    from lrtrain.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, out.getvalue(), err.getvalue()


def _run(sender: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)  # the server's may be of before a fixture
    try:
        outcome = (function(*arguments), None)
    except BaseException:
        outcome = (None, traceback.format_exc())
    sender.send_bytes(pickle.dumps(outcome))  # by value: torch would share the tensors' memory, which ends with us
    sender.close()
    if torch.distributed.is_initialized():
        if outcome[1] is None:
            torch.distributed.barrier()  # a process that leaves takes the sockets of others' last collective with it
        torch.distributed.destroy_process_group()
