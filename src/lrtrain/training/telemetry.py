"""Measures what an optimizer step does to chosen projections of a model, through their factors. Needs torch alone."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.linalg import gathered, local, orthonormality_error, with_local
from lrtrain.linalg.diagnostics import (
    DenseMatrix,
    ThinProduct,
    dead_directions,
    effective_rank,
    stable_rank,
    thin_change,
)
from lrtrain.nn import projections

PAPERS_BLOCK = 4
"""The block, from 0, whose attention output projection Spectron's paper shows."""

Weight = tuple[Tensor, ...]
"""(A, B), (U, s, V) or (W,): the parameters of one weight, as a `Projection` states them."""

LayerFigures = Callable[[nn.Module], Mapping[str, float]]
"""(projection) -> figures of it, by name."""


class SameNameError(ValueError):
    """Two figures of a layer have one name."""


class Telemetry:
    """Measures the weights of some projections after an optimizer step, and what that step changed.

    In a plain loop:

        telemetry = Telemetry(model, ["*.attention.output"])
        loss.backward()
        telemetry.probe(lambda: model(tokens))   # for the outputs' change; may be left out
        telemetry.before_step(optimizer)
        optimizer.step()                         # and the constraints' after_step
        figures = telemetry.after_step()         # {"blocks.4.attention.output": {"update_norm": 0.03, …}, …}

    | figure | what |
    |---|---|
    | update_norm, weight_norm | ‖ΔW‖₂, ‖W‖₂ |
    | update_over_lr | ‖ΔW‖₂/η, η of A, of U or of W; none where η is 0 |
    | update_over_weight | ‖ΔW‖_F/‖W‖_F |
    | output_change_rms | root mean square of Δy = ΔW x, x the layer's input on the probe before the step |
    | sigma_A, sigma_B | ‖A‖₂, ‖B‖₂ of W = A Bᵀ |
    | orthonormality_error | the largest max abs(XᵀX − I) of the orthonormal parameters |
    | effective_rank, stable_rank | `linalg.diagnostics`; of W |
    | dead_directions | share of W's singular values that are at most 1e-3 of the largest |

    W is the weight after the step. All are exact to 1e-6 (float64 through Gram matrices), but for a dense weight whose
    two sides are over 2048: norms by subspace iteration, and no effective rank or dead directions. Row-sharded
    parameters are measured by all processes together, which must make the same calls; they get equal figures.

    Args:
        module: The model.
        layers: Patterns (`*.attention.output`) of names of projections; None for those of `default_layers`.
        figures: More figures of each chosen projection after the step; called without gradients, on every process.

    Attributes:
        layers: Names of the chosen projections.
        without_weight: Those of them that state no weight: of these there are only the figures given here.

    Raises:
        ValueError: a pattern that matches no projection.
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[str] | None = None, figures: Sequence[LayerFigures] = ()
    ) -> None:
        found = projections(module)
        for pattern in layers or ():
            if not any(fnmatchcase(name, pattern) for name in found):
                names = ", ".join(list(found)[:8])
                raise ValueError(f"the pattern {pattern!r} matches no projection; the first ones are {names}")
        if layers is None:
            self.layers = default_layers(found)
        else:
            self.layers = [name for name in found if any(fnmatchcase(name, pattern) for pattern in layers)]
        self._module = module
        self._more = figures
        self.without_weight = [layer for layer in self.layers if not self._weights(layer)]
        self._inputs: dict[str, Tensor] = {}
        self._before: dict[str, Weight] = {}
        self._rates: dict[str, float] = {}

    @torch.no_grad()
    def probe(self, forward: Callable[[], Any]) -> None:
        """Keeps what each chosen projection gets in a forward pass, run in evaluation mode and without gradients."""
        training = [child for child in self._module.modules() if child.training]
        hooks = [self._module.get_submodule(name).register_forward_pre_hook(self._keep(name)) for name in self.layers]
        self._module.eval()
        try:
            forward()
        finally:
            for hook in hooks:
                hook.remove()
            for child in training:
                child.training = True

    def _keep(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._inputs[name] = arguments[0].detach().flatten(0, -2).clone()

        return keep

    def before_step(self, optimizer: Optimizer) -> None:
        """Copies the chosen weights and reads their learning rates."""
        rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for layer in self.layers:
            for name, weight in self._weights(layer):
                self._before[name] = tuple(p.detach().clone() for p in weight)
                self._rates[name] = float(rates.get(weight[0], 0))

    @torch.no_grad()
    def after_step(self) -> dict[str, dict[str, float]]:
        """The figures of each weight since `before_step`; copies and inputs are forgotten.

        A second weight of one projection has its number behind the name (`.1`).

        Raises:
            SameNameError: a figure given to the class has the name of another.
        """
        figures: dict[str, dict[str, float]] = {}
        for layer in self.layers:
            for name, weight in self._weights(layer):
                found = _figures(self._before[name], weight, self._rates[name], self._inputs.get(layer))
                figures[name] = {key: float(value) for key, value in found.items()}
            projection: Any = self._module.get_submodule(layer)
            of_layer = figures.setdefault(layer, {})
            orthonormal: list[Tensor] = getattr(projection, "orthonormal", list)()
            if orthonormal:
                of_layer["orthonormality_error"] = max(float(orthonormality_error(x)) for x in orthonormal)
            for key, value in (item for more in self._more for item in more(projection).items()):
                if key in of_layer:
                    raise SameNameError(f"the figure {key!r} of {layer} has the name of another: give it its own")
                of_layer[key] = float(value)
        self.forget()
        return figures

    def forget(self) -> None:
        """Drops copies and inputs, as when a step is skipped."""
        self._inputs, self._before, self._rates = {}, {}, {}

    def _weights(self, layer: str) -> list[tuple[str, Weight]]:
        """Names and parameters of a projection's weights; self-guided ones change between steps."""
        projection: Any = self._module.get_submodule(layer)
        found: list[Weight] = []
        for what in ("factor_pairs", "spectral_triples"):
            found += getattr(projection, what, list)()
        if not found and hasattr(projection, "materialize"):
            found = [(projection.materialize(),)]
        return [(f"{layer}.{index}" if index else layer, weight) for index, weight in enumerate(found)]


def default_layers(projections: Mapping[str, nn.Module]) -> list[str]:
    """Attention output projections of the first, the fifth, the middle and the last block, as far as there are these.

    The down projections of the same blocks join them where they are of another class. A model of other names gets its
    first, fifth, middle and last projection.
    """
    chosen: list[str] = []
    classes: set[type[nn.Module]] = set()
    for ending in ("attention.output", "mlp.down"):
        names = [name for name in projections if name.endswith(ending)]
        if names and type(projections[names[0]]) not in classes:
            classes.add(type(projections[names[0]]))
            chosen += _spread(names)
    return chosen or _spread(list(projections))


def _spread(names: Sequence[str]) -> list[str]:
    places = {0, PAPERS_BLOCK, len(names) // 2, len(names) - 1}
    return [names[place] for place in sorted(places) if 0 <= place < len(names)]


def _figures(old: Weight, new: Weight, rate: float, x: Tensor | None) -> dict[str, Tensor]:
    """What the class's table says of one weight before and after a step."""
    weight = DenseMatrix(new[0]) if len(new) == 1 else ThinProduct(*_thin(new))
    change = DenseMatrix(new[0] - old[0]) if len(new) == 1 else ThinProduct(*thin_change(_thin(old), _thin(new)))
    sigma, update_norm = weight.sigma, change.norm
    weight_norm = weight.norm if sigma is None else sigma[0]
    found = {
        "update_norm": update_norm,
        "update_over_weight": change.frobenius / weight.frobenius,
        "weight_norm": weight_norm,
    }
    if rate > 0:
        found["update_over_lr"] = update_norm / rate
    if x is not None:
        found["output_change_rms"] = change.output_rms(x)
    if len(new) == 2 and isinstance(weight, ThinProduct):
        found["sigma_A"], found["sigma_B"] = weight.factor_norms()
    if sigma is None:
        return found | {"stable_rank": (weight.frobenius / weight_norm).square()}
    return found | {
        "effective_rank": effective_rank(sigma),
        "stable_rank": stable_rank(sigma),
        "dead_directions": dead_directions(sigma),
    }


def _thin(weight: Weight) -> tuple[Tensor, Tensor]:
    """L and R with W = L Rᵀ: A and B, or V diag(s) and U."""
    if len(weight) == 2:
        return weight[0], weight[1]
    u, s, v = weight
    return with_local(local(v).double() * gathered(s).double(), v), u
