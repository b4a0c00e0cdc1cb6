"""Times by part: every moment once, for the innermost part; a step as the configuration has it; the advice."""

import pytest
import torch

from lrtrain.studies.profile import part_times
from lrtrain.studies.profile.part_times import PartTimes, part_of
from lrtrain.studies.profile.step_report import Rarely, Setting, advice, step_costs

SETTING = Setting(1, 0, "32-true", "32-true", False, False, False, True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(part_times.time, "perf_counter", lambda: now[0])
    return now


def test_what_is_inside_another_part_is_not_counted_twice(clock: list[float]) -> None:
    times = PartTimes(torch.device("cpu"))
    times.on = True
    times.next_step()
    for part, seconds in (("backward", 1.0), ("callback Own", 2.0), (None, 4.0)):
        times.begin(part)
        clock[0] += seconds
    times.end()
    clock[0] += 8.0
    times.end()
    clock[0] += 16.0
    times.end()
    clock[0] += 32.0
    times.next_step()
    assert dict(times.steps[0]) == {"backward": 17.0, "callback Own": 14.0, "the Trainer itself": 32.0}


@pytest.mark.parametrize(
    ("action", "part"),
    [
        ("[Callback]SpectralConstraints.on_before_optimizer_step", "constraints"),
        ("[Callback]ModelCheckpoint{'monitor': 'a.b'}.on_train_batch_end", "callback ModelCheckpoint"),
        ("[Strategy]SingleDeviceStrategy.backward", "backward"),
        ("[LightningModule]CausalLM.optimizer_step", "the Trainer itself"),
        ("[_TrainingEpochLoop].train_dataloader_next", "data"),
        ("save_checkpoint", "checkpoint"),
        ("[LightningModule]CausalLM.on_train_batch_start", None),
    ],
)
def test_lightnings_actions_are_parts(action: str, part: str | None) -> None:
    assert part_of(action) == part


def test_a_step_has_its_micro_batches_and_its_share_of_what_is_rare() -> None:
    steps = [{"backward": 2.0, "optimizer: AdamW": 1.0, "checkpoint": 0.25} for _ in range(4)]
    steps[1]["checkpoint"] = 10.25
    costs = {cost.part: cost for cost in step_costs(steps, {"checkpoint": Rarely(100, [1])}, accumulate=8)}
    assert (costs["backward"].seconds, costs["optimizer: AdamW"].seconds) == (16.0, 1.0)
    assert costs["checkpoint"].seconds == pytest.approx(0.25 + 10 / 100)
    assert costs["checkpoint"].once == 10.0
    always = step_costs(steps, {"checkpoint": Rarely(1, range(4))}, 1)
    assert next(cost for cost in always if cost.part == "checkpoint").seconds == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("times", "changed", "said"),
    [
        ({"data": 3.0, "backward": 7.0}, {}, "30% of a step waits for data, with data.num_workers 0: raise it"),
        ({"optimizer: Spectron": 5.0, "backward": 5.0}, {"accumulate": 2}, "trainer.accumulate_grad_batches 4 halves"),
        ({"backward": 9.0}, {"fastest_precision": "bf16-mixed"}, "set trainer.precision bf16-mixed, or null"),
        ({"forward: norms and residuals": 2.0, "backward": 8.0}, {"on_gpu": True}, "set model.compile true"),
        ({"forward: blocks": 3.0, "backward": 7.0}, {"recomputes": True}, "model.activation_checkpointing false"),
        ({"callback Own": 4.0, "backward": 6.0}, {}, "callback Own takes 40% of a step"),
        ({"checkpoint": 4.0, "backward": 6.0}, {"asynchronous": False}, "set checkpoints.asynchronous true"),
        ({"data": 0.01, "backward": 9.99}, {}, "forward and backward pass take 100% of a step"),
    ],
)
def test_the_advice_is_the_change_that_could_save_most(
    times: dict[str, float], changed: dict[str, object], said: str
) -> None:
    costs = step_costs([times], {}, 1)
    assert said in advice(costs, Setting(**{**vars(SETTING), **changed}))  # type: ignore[arg-type]
