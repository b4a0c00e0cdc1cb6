"""However a run ended, its checkpoint stands at a step boundary and the next run goes on bit for bit."""

from typing import Any

import lightning.pytorch as pl
import pytest

from checkpoint_program import BATCHES, Batches, Net, fit, make_trainer
from checkpoint_state import assert_same_state, batches, expected_batches, newest, saved_steps
from moments import At, fail


@pytest.mark.parametrize("stop", [7, BATCHES, 13])
@pytest.mark.parametrize("validate", [False, True])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, stop, validate):
    options: dict[str, Any] = {"validate": validate, "val_check_interval": 5 if validate else None}
    fit(tmp_path / "whole", max_steps=26, **options)
    fit(tmp_path / "parts", max_steps=stop, **options)
    fit(tmp_path / "parts", ckpt_path=newest(tmp_path / "parts"), max_steps=26, **options)
    assert batches(tmp_path / "parts") == batches(tmp_path / "whole") == expected_batches(26)
    assert_same_state(newest(tmp_path / "parts"), newest(tmp_path / "whole"))


def test_validation_changes_nothing_in_training(tmp_path):
    fit(tmp_path / "with", max_steps=12, validate=True, val_check_interval=2)
    fit(tmp_path / "without", max_steps=12)
    assert_same_state(newest(tmp_path / "with"), newest(tmp_path / "without"))


@pytest.mark.parametrize("stopper", ["max_epochs", "should_stop in validation"])
def test_a_run_that_ends_otherwise_can_be_continued_exactly(tmp_path, stopper):
    options: dict[str, Any] = {"validate": True, "val_check_interval": 4, "accumulate_grad_batches": 2}
    fit(tmp_path / "whole", max_steps=12, **options)
    if stopper == "max_epochs":
        fit(tmp_path / "parts", max_epochs=1, **options)
    else:
        stop = At("on_validation_end", 2, lambda: None)
        stop.action = lambda: setattr(trainer, "should_stop", True)
        pl.seed_everything(0, verbose=False)
        trainer = make_trainer(tmp_path / "parts", callbacks=[stop], val_check_interval=4, accumulate_grad_batches=2)
        (tmp_path / "parts").mkdir()
        trainer.fit(Net(), Batches(tmp_path / "parts" / "batches.txt"), Batches())
    fit(tmp_path / "parts", ckpt_path=newest(tmp_path / "parts"), max_steps=12, **options)
    assert_same_state(newest(tmp_path / "parts"), newest(tmp_path / "whole"))


def test_a_full_disk_does_not_hide_the_exception_that_ended_the_run(tmp_path):
    def strike() -> None:
        (tmp_path / "checkpoints").write_text("a file where the folder should be")
        fail()

    with pytest.raises(RuntimeError, match="struck"), pytest.warns(UserWarning, match="cannot write checkpoint"):
        fit(tmp_path, max_steps=20, callbacks=[At("on_train_batch_start", 5, strike)])


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_backward", "on_validation_batch_start"])
def test_an_exception_between_updates_saves_the_last_boundary(tmp_path, hook):
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "validate": True, "val_check_interval": 3}
    with pytest.raises(RuntimeError, match="struck"):
        fit(tmp_path / "parts", max_steps=20, callbacks=[At(hook, 8, fail)], **options)
    assert saved_steps(tmp_path / "parts") == [1 if hook == "on_validation_batch_start" else 3]
    fit(tmp_path / "parts", ckpt_path=newest(tmp_path / "parts"), max_steps=8, **options)
    fit(tmp_path / "whole", max_steps=8, **options)
    assert_same_state(newest(tmp_path / "parts"), newest(tmp_path / "whole"))


@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step"])
def test_an_exception_inside_an_update_saves_nothing(tmp_path, hook):
    class Struck(Net):
        pass

    def strike(self: Net, *_: Any) -> None:
        if self.trainer.global_step == 4:
            fail()

    setattr(Struck, hook, strike)
    with pytest.raises(RuntimeError, match="struck"), pytest.warns(UserWarning, match="inside the update after step 4"):
        fit(tmp_path, Struck, max_steps=20, every=3)
    assert saved_steps(tmp_path) == [3]
