"""Texts that the model writes in the course of a run: the same held-out beginnings, continued at several steps."""

import json
import math
from functools import partial
from typing import Any

import lightning as L
import torch
from tokenizers import Tokenizer
from torch import Tensor

from lrtrain.nn import Sampling, generate, text_after
from lrtrain.training.fsdp import FSDP

FOLDER = "samples"
SHARES = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of the run's steps: the first validation at or after each of them has samples."""

MOST = 4
TEMPERATURE, TOP_P = 0.8, 0.95


class TextSamples(L.Callback):
    """Continues held-out texts after some of the validations: the first, at an eighth, a quarter and half of the run,
    and the last.

    The beginnings are those of two sequences of the first held-out batch, of a mix also of its other sources, four at
    most. Draws have seeds of their own, so training is not touched. The texts are kept in the run's record as
    `samples/step-<8 digits>.json`, each with how the held-out text went on. `lrtrain fit` adds this callback; name it
    under `trainer.callbacks` to change it.

    Args:
        prompt_tokens: Tokens of a beginning, at most half of a sequence.
        new_tokens: Tokens that are drawn, at most the rest of a sequence; 0 writes no samples.
    """

    def __init__(self, prompt_tokens: int = 32, new_tokens: int = 64) -> None:
        if prompt_tokens < 1 or new_tokens < 0:
            raise ValueError(
                f"prompt_tokens is {prompt_tokens} and new_tokens is {new_tokens}: give at least 1 and at least 0"
            )
        self.prompt_tokens = prompt_tokens
        self.new_tokens = new_tokens
        self.validation_texts: dict[str, str] = {}  # the samples of the last validation, for the record
        self._blocks: dict[tuple[int, int], Tensor] = {}
        self._last = -1
        self._due: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self._due = [math.ceil(share * steps) for share in SHARES] if math.isfinite(steps) else []
        self._last = trainer.global_step - 1  # what a resumed run owed before was written then

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation_texts, self._blocks = {}, {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and self.new_tokens:
            for row in {0, len(batch) // 2} if len(batch) else ():
                self._blocks[row, dataloader_idx] = batch[row].detach().cpu()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        due = any(self._last < one <= step for one in self._due)
        if trainer.sanity_checking or not due or not self.new_tokens:
            return
        self._last = step
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "tokenizer_json"):
            return
        blocks = [self._blocks[place].tolist() for place in sorted(self._blocks)][:MOST]
        sharded = isinstance(trainer.strategy, FSDP)
        if sharded:
            blocks = trainer.strategy.broadcast(blocks)
        elif not trainer.is_global_zero:
            return
        if not blocks:
            return
        found = self._samples(trainer, pl_module, blocks, Tokenizer.from_str(data.tokenizer_json()))
        text = json.dumps({"step": step, "temperature": TEMPERATURE, "top_p": TOP_P, "samples": found}, indent=1)
        self.validation_texts = {f"{FOLDER}/step-{step:08d}.json": text}

    def _samples(
        self, trainer: L.Trainer, model: L.LightningModule, blocks: list[list[int]], tokenizer: Tokenizer
    ) -> list[dict[str, str]]:
        shortest = min(map(len, blocks)) - 1
        length = min(self.prompt_tokens, -(-shortest // 2))
        new = max(1, min(self.new_tokens, shortest - length))
        prompts = [block[:length] for block in blocks]
        decoder: Any = model.decoder
        decode = partial(tokenizer.decode, skip_special_tokens=False)
        training = [module for module in decoder.modules() if module.training]
        decoder.eval()
        try:
            with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
                found = generate(decoder, prompts, new, Sampling(temperature=TEMPERATURE, top_p=TOP_P))
        except Exception as error:  # a decoder of one's own, memory: a sample is no reason to end a run
            return [{"prompt": decode(prompt), "none": f"{type(error).__name__}: {error}"} for prompt in prompts]
        finally:
            for module in training:
                module.training = True
        return [
            {
                "prompt": decode(prompt),
                "continuation": text_after(prompt, one.tokens, decode),
                "held_out": text_after(prompt, block[length : length + new], decode),
            }
            for prompt, block, one in zip(prompts, blocks, found, strict=True)
        ]
