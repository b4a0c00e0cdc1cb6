"""One optimizer with its constraints, for loops of one's own."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lrtrain.constraints import (
    ConstrainedOptimizer,
    PartnerMetric,
    SpectralRenormalization,
    StiefelRetraction,
    find_factors,
    lora_muon_for,
    optimizer_for,
    sct_for,
    spectron_for,
)
from lrtrain.nn import factorize_
from lrtrain.optim import LoRAMuon, Spectron

MAKERS: dict[str, tuple[str, Callable[..., ConstrainedOptimizer], type]] = {
    "spectron": ("low_rank", spectron_for, SpectralRenormalization),
    "lora_muon": ("low_rank", lora_muon_for, PartnerMetric),
    "sct": ("spectral", sct_for, StiefelRetraction),
}
every_maker = pytest.mark.parametrize("name", MAKERS)


def net(kind: Any = "low_rank") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12), nn.LayerNorm(12))
    factorize_(model, rank=4, kind=kind)
    return model


def made(name: str) -> tuple[nn.Module, ConstrainedOptimizer]:
    kind, make, _ = MAKERS[name]
    model = net(kind)
    return model, make(model, lr=0.05)


def gradients(model: nn.Module, step: int, clip: float = 0.1) -> None:
    model.zero_grad()
    generator = torch.Generator().manual_seed(step)
    (model(torch.randn(8, 12, generator=generator)).sin().square().mean()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        gradients(model, step)
        optimizer.step()


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@every_maker
def test_a_step_is_that_of_the_loop_written_by_hand(name: str) -> None:
    model, optimizer = made(name)
    start = copy.deepcopy(model)
    train(model, optimizer, range(4))
    by_hand = start
    pairs, orthonormal = find_factors(by_hand)
    if name == "sct":
        factors = [p for n, p in by_hand.named_parameters() if n.rpartition(".")[2] in "UsV"]
        parts = [AdamW(factors, lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)]
        constraint: Any = StiefelRetraction().hold(orthonormal)
    else:
        factors = [factor for pair in pairs.values() for factor in pair]  # type: ignore[misc]
        parts = [(Spectron if name == "spectron" else LoRAMuon)(factors, lr=0.05)]  # type: ignore[list-item]
        constraint = MAKERS[name][2]().hold(pairs)
    rest = [p for p in by_hand.parameters() if all(p is not factor for factor in factors)]
    parts.append(AdamW(rest, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0))
    for step in range(4):
        gradients(by_hand, step)
        constraint.before_step(parts[0])
        for part in parts:
            part.step()
        constraint.after_step()
    assert equal(model, by_hand)
    assert not equal(model, net(MAKERS[name][0]))


@every_maker
def test_a_state_goes_on_bit_for_bit_with_a_scheduler_of_torch(name: str) -> None:
    def scheduled() -> tuple[nn.Module, ConstrainedOptimizer, LambdaLR]:
        model, optimizer = made(name)
        return model, optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def go_on(model: nn.Module, optimizer: ConstrainedOptimizer, schedule: LambdaLR, steps: range) -> None:
        for step in steps:
            train(model, optimizer, range(step, step + 1))
            schedule.step()

    model, optimizer, schedule = scheduled()
    go_on(model, optimizer, schedule, range(3))
    saved = pickle.loads(pickle.dumps([x.state_dict() for x in (model, optimizer, schedule)]))
    go_on(model, optimizer, schedule, range(3, 6))
    resumed = scheduled()
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    assert [group["lr"] for group in resumed[1].param_groups] == [0.05 / 4, 3e-4 / 4]
    go_on(*resumed, range(3, 6))
    assert equal(model, resumed[0])


@every_maker
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_keeps_its_constraints_and_its_own_parameters(name: str, copied: Callable[[Any], Any]) -> None:
    model, optimizer = made(name)
    train(model, optimizer, range(2))
    other, again = copied((model, optimizer))
    train(model, optimizer, range(2, 4))
    assert not equal(model, other)
    train(other, again, range(2, 4))
    assert equal(model, other)


@every_maker
def test_a_closure_comes_first_and_hooks_run_once_a_step(name: str) -> None:
    model, optimizer = made(name)
    twin, other = made(name)
    seen: list[str] = []
    other.register_step_pre_hook(lambda *_: seen.append("before"))
    other.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, optimizer, range(2))
    for step in range(2):
        other.step(lambda step=step: gradients(twin, step))  # type: ignore[misc]
    assert equal(model, twin)
    assert seen == ["before", "after"] * 2


def test_a_step_that_is_skipped_leaves_everything_as_it_was() -> None:
    model, optimizer = made("spectron")
    before = copy.deepcopy(model)
    gradients(model, 0)
    optimizer.skip_step = True
    optimizer.step()
    assert equal(model, before)


def test_columns_stay_orthonormal_whoever_has_them() -> None:
    mixed = nn.Sequential(net(), net("spectral"))
    optimizer = spectron_for(mixed, lr=0.1, other=lambda named: AdamW(named, lr=0.05))
    assert set(optimizer.constraints) == {"SpectralRenormalization", "StiefelRetraction"}
    train(mixed, optimizer, range(3))
    for parameter in find_factors(mixed)[1].values():
        torch.testing.assert_close(parameter.mT @ parameter, torch.eye(4), rtol=0, atol=1e-5)


def test_what_cannot_train_is_refused_with_what_to_do() -> None:
    dense = nn.Sequential(nn.Linear(4, 4))
    for make in (spectron_for, lora_muon_for, sct_for, lambda model: optimizer_for(model, AdamW)):
        with pytest.raises(ValueError, match="factorize_"):
            make(dense)
    with pytest.raises(ValueError, match=r"torch\.bfloat16, in which steps are lost to rounding"):
        spectron_for(net().bfloat16())
    frozen: Any = net()
    frozen[0].projection.A.requires_grad_(False)
    with pytest.raises(ValueError, match=r"A of 0\.projection is frozen"):
        spectron_for(frozen)
    _, optimizer = made("spectron")
    with pytest.raises(ValueError, match="of the constraints StiefelRetraction, the optimizer has SpectralRenormal"):
        optimizer.load_state_dict(made("sct")[1].state_dict())


@every_maker
def test_parameters_that_a_wrapper_has_replaced_are_not_held_in_silence(name: str) -> None:
    model, optimizer = made(name)
    gradients(model, 0)
    for group in optimizer.param_groups:
        group["params"] = [nn.Parameter(parameter.detach().clone()) for parameter in group["params"]]
    with pytest.raises(RuntimeError, match="which this optimizer does not step any more"):
        optimizer.step()
