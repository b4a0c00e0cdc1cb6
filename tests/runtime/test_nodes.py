"""Several hosts whose processes lrtrain starts itself (MASTER_ADDR, MASTER_PORT, NODE_RANK): one decides for all."""

import os
import socket
from multiprocessing.connection import Connection

import pytest

from forked import FORK
from lrtrain.runtime.errors import TemporaryError, UserError
from lrtrain.runtime.ranks import DECIDED, decide_on_rank_zero, is_first
from ranks import PATIENCE, free_port


def test_the_first_node_decides_and_the_others_take_it_with_their_own_processes() -> None:
    port, received = str(free_port()), []
    for rank in range(2):
        receiver, sender = FORK.Pipe(duplex=False)
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(rank)}
        FORK.Process(target=_decide, args=(environment, sender), daemon=True).start()
        received.append(receiver)
    assert all(receiver.poll(PATIENCE) for receiver in received)
    assert [receiver.recv() for receiver in received] == [(True, 0, "0"), (False, 0, "0")]


@pytest.mark.parametrize(
    ("environment", "said"),
    [({}, "MASTER_ADDR and MASTER_PORT and NODE_RANK not set"), ({"NODE_RANK": "2"}, "counted from 0")],
)
def test_several_nodes_that_cannot_meet_are_refused_at_once(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", DECIDED):
        monkeypatch.delenv(name, raising=False)
    if environment:
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **environment}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        decide_on_rank_zero(lambda: 0, nodes=2)


def test_a_port_that_is_taken_is_said_before_anybody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1]), "NODE_RANK": "0"}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(TemporaryError, match="is in use: set another MASTER_PORT"):
            decide_on_rank_zero(lambda: 0, nodes=2)


def _decide(environment: dict[str, str], sender: Connection) -> None:
    os.environ.update(environment)
    decided = decide_on_rank_zero(lambda: int(os.environ["NODE_RANK"]), nodes=2)
    sender.send((is_first(), decided, os.environ[DECIDED]))
