"""The weights of a checkpoint as those that another run begins with, whichever way its projections are written.

What has the same name, shape and class is copied. Any other projection gets the weight that the checkpoint's has: dense
to factors by a truncated SVD, factors to dense by their product, one kind of factors to another without it.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lrtrain.checkpoint.checkpoint_io import check_tokenizer, difference
from lrtrain.checkpoint.saved_weights import SavedWeights
from lrtrain.nn import Decoder
from lrtrain.nn.projection import before_load, projections
from lrtrain.nn.rewriting import Kept, check_conversion, write_weight
from lrtrain.optim import shard_like
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.ranks import raise_on_all
from lrtrain.runtime.table import table

PREFIX = "decoder."
OFF = 1e-4
"""How far UᵀU of a checkpoint's U may be from I: more is what 16-bit weights leave, and is made orthonormal."""


class WarmStart:
    """A checkpoint's weights for the decoder of a new run.

    Every process reads its own part of what is copied; what is written in another way is computed once, by one process
    each, and handed to the others: so all have the same numbers, whatever their hardware.

    Args:
        saved: The open checkpoint.
        source: Its decoder, without weights.
        where: What to call it.

    Attributes:
        made_on: The device on which to make the decoder.
        copied: Names of the projections whose weights are copied, unless 16 bit have left them askew.
        notes: What else is to be reported.
        report: What was copied and what was computed, once that is done.
        loss: Of the weights that the run begins with, on the held-out split, once that is known.
    """

    def __init__(self, saved: SavedWeights, source: Decoder, where: str) -> None:
        self.made_on = "cpu"
        self.copied: list[str] = []
        self.notes: list[str] = []
        self.report = ""
        self.loss: float | None = None
        self.saved = saved
        self.where = where
        self._shapes = {n.removeprefix(PREFIX): s for n, s in saved.shapes().items() if n.startswith(PREFIX)}
        before_load(source, self._shapes)
        self._source = source
        self._target: Decoder

    def check(self, target: Decoder) -> None:
        """Refuses a decoder, on the meta device or with any weights, that cannot have these.

        Raises:
            UserError: names the first weight or projection that differs, in the decoder's order.
        """
        self._target = target
        self.made_on = next(target.parameters()).device.type
        sources, targets = projections(self._source), projections(target)
        own = {name: tuple(tensor.shape) for name, tensor in target.state_dict().items()}
        if what := difference(_outside(self._shapes, sources), _outside(own, targets)):
            raise UserError(f"--init_from {self.where} is of another architecture: {what}")
        for name, projection in targets.items():
            if name not in sources:
                raise UserError(f"--init_from {self.where} is of another architecture: it has no projection {name}")
            if self._same(projection, sources[name], name):
                self.copied.append(name)
            else:
                try:
                    check_conversion(projection, sources[name])
                except ValueError as error:
                    raise UserError(f"--init_from {self.where}: {name}: {error}") from error
        if further := [name for name in sources if name not in targets]:
            raise UserError(
                f"--init_from {self.where} is of another architecture: it has {further[0]}, which the model lacks"
            )

    def check_data(self, data: Any) -> None:
        """Raises UserError where the data are of another tokenizer than the checkpoint, as far as both tell."""
        if self.saved.tokenizer is not None and hasattr(data, "tokenizer_json"):
            check_tokenizer(self.saved.tokenizer, data.tokenizer_json(), self.where)

    @torch.no_grad()
    def fill(self, decoder: Decoder, device: torch.device) -> None:
        """Gives a decoder, whole or sharded, its weights; every process calls it.

        Args:
            decoder: Of the architecture that was checked; what of it is on the meta device gets memory first.
            device: Where to compute.

        Raises:
            UserError: a weight holds NaN or infinite numbers.
        """
        if any(parameter.is_meta for parameter in decoder.parameters()):
            decoder.to_empty(device=device)
        own, sources, targets = decoder.state_dict(), projections(self._source), projections(self._target)
        names = list(_outside(own, targets))
        rewritten = []
        for name, projection in targets.items():
            if self._same(projection, sources[name], name) and self._orthonormal(projection, name):
                names += [f"{name}.{key}" for key in projection.state_dict()]
            else:
                rewritten.append(name)
        wrong = [name for name in names if not self._copy(name, own[name])]
        line = (
            f"--init_from {self.where}: {', '.join(wrong[:1])} holds NaN or infinite numbers; name another checkpoint"
        )
        raise_on_all(UserError(line) if wrong else None)
        kept = self._rewrite(rewritten, own, device)
        self.report = self._told(len(names), {name: (sources[name], targets[name], kept[name]) for name in rewritten})

    def _same(self, target: nn.Module, source: nn.Module, name: str) -> bool:
        """Whether a projection's weights can be copied. What training deletes or fades begins anew."""
        saved = {key: self._shapes.get(f"{name}.{key}") for key in source.state_dict()}
        own = {key: tuple(tensor.shape) for key, tensor in target.state_dict().items()}
        return type(target) is type(source) and saved == own and not getattr(target, "deletable", ())

    def _orthonormal(self, target: Any, name: str) -> bool:
        names = {id(parameter): key for key, parameter in target.named_parameters()}
        for parameter in getattr(target, "orthonormal", list)():
            x = self.saved.read(f"{PREFIX}{name}.{names[id(parameter)]}").float()
            if float((x.mT @ x - torch.eye(x.shape[1])).abs().max()) > OFF:
                return False
        return True

    def _copy(self, name: str, own: Tensor) -> bool:
        """Fills a tensor, or this process's rows of it, and says whether all of its numbers are finite."""
        if self.saved.is_sharded(PREFIX + name):
            self.saved.read_into({PREFIX + name: own})
        else:
            value = self.saved.read(PREFIX + name)
            own.copy_(shard_like(value.to(own.dtype), own))
        here = own.to_local() if isinstance(own, DTensor) else own
        return bool(here.isfinite().all())

    def _rewrite(self, names: list[str], own: Mapping[str, Tensor], device: torch.device) -> dict[str, Kept]:
        """Computes projections, each on one process, and hands them round; returns what is kept of each weight."""
        processes, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        mine = {name: self._rewritten(name, device) for name in names[rank::processes]}
        found: dict[str, Kept] = {}
        for index, name in enumerate(names):
            owner = index % processes
            told = [mine[name][1] if owner == rank else None]
            if processes > 1:
                dist.broadcast_object_list(told, src=owner, device=device)
            kept = told[0]
            if isinstance(kept, str) or kept is None:
                raise UserError(f"--init_from {self.where}: {name}: {kept}")
            found[name] = kept
            made = mine[name][0] if owner == rank else _empty(self._target.get_submodule(name), device)
            for key, value in made.state_dict().items():
                if processes > 1:
                    dist.broadcast(value, src=owner)
                tensor = own[f"{name}.{key}"]
                tensor.copy_(shard_like(value.to(tensor.device), tensor))
            mine.pop(name, None)
        return found

    def _rewritten(self, name: str, device: torch.device) -> tuple[nn.Module, Kept | str]:
        """A projection with the weight of the checkpoint's, and what is kept of that, or why there is none."""
        source = copy.deepcopy(self._source.get_submodule(name))
        saved = {key: self.saved.read(f"{PREFIX}{name}.{key}") for key in source.state_dict()}
        halves = (torch.float16, torch.bfloat16)
        state = {key: x.to(device, torch.float32 if x.dtype in halves else x.dtype) for key, x in saved.items()}
        source.load_state_dict(state, assign=True)
        made = _empty(self._target.get_submodule(name), device)
        try:
            return made, write_weight(made.eval(), source.to(device).eval())
        except ValueError as error:
            return made, str(error)

    def _told(self, copied: int, rewritten: Mapping[str, tuple[Any, Any, Kept]]) -> str:
        lines = [f"init_from {self.where}: {copied} tensors as they are, {len(rewritten)} projections rewritten"]
        lines += self.notes
        groups: dict[tuple[str, str, str], list[Kept]] = defaultdict(list)
        for name, (source, target, kept) in rewritten.items():
            kinds = type(source).__name__, type(target).__name__
            groups[(re.sub(r"\.\d+\.", ".*.", name), *kinds)].append(kept)
        rows = [["projections", "from", "to", "rank", "of Σσ² kept", "least"]]
        for (names, old, new), of_group in groups.items():
            shares = [kept.energy for kept in of_group]
            ranks = "" if of_group[0].rank is None else str(of_group[0].rank)
            rows.append([names, old, new, ranks, f"{sum(shares) / len(shares):.2%}", f"{min(shares):.2%}"])
        if rewritten:
            lines.append(table(rows))
        if empty := {name: kept.empty for name, (_, _, kept) in rewritten.items() if kept.empty}:
            first = next(iter(empty))
            lines.append(
                f"{len(empty)} of them have a weight of lower rank than they are written with, {first} by "
                f"{empty[first]}: such columns of A and B begin at zero and never train; give a lower rank"
            )
        return "\n".join(lines)


def _outside(shapes: Mapping[str, Any], inside: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to no projection."""
    starts = tuple(f"{name}." for name in inside)
    return {name: value for name, value in shapes.items() if not name.startswith(starts)}


def _empty(projection: nn.Module, device: torch.device) -> nn.Module:
    """Another of its kind, with memory; what is no weight of it stays."""
    made = copy.deepcopy(projection)
    return made.to_empty(device=device) if any(p.is_meta for p in made.parameters()) else made.to(device)
