"""A Llama whose projections keep their factors: low-rank W = A Bᵀ, spectral W = V diag(s) Uᵀ, or dense.

`lrtrain export --factorized` lays this file beside the weights; transformers loads it with `trust_remote_code=True`. It
needs torch and transformers alone, and is all the code that comes with the weights.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class FactorizedLlamaConfig(LlamaConfig):
    """A Llama's configuration, and the rank of each projection that is factorized.

    Args:
        low_rank: Name of a module, as `model.layers.0.mlp.up_proj`, to the rank r of its A (out, r) and B (in, r).
        spectral: The same, to the rank k of its U (in, k), s (k) and V (out, k).
    """

    model_type = "factorized_llama"
    base_model_tp_plan: ClassVar[dict[str, Any]] = {}  # Llama's cuts a dense weight

    def __init__(
        self, low_rank: dict[str, int] | None = None, spectral: dict[str, int] | None = None, **kwargs: Any
    ) -> None:
        self.low_rank = dict(low_rank or {})
        self.spectral = dict(spectral or {})
        super().__init__(**kwargs)


class LowRankLinear(nn.Module):
    """y = (x B) Aᵀ with A (out, r) and B (in, r)."""

    def __init__(self, in_features: int, out_features: int, rank: int, **like: Any) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.A = nn.Parameter(torch.empty(out_features, rank, **like))
        self.B = nn.Parameter(torch.empty(in_features, rank, **like))

    def reset_parameters(self, std: float) -> None:
        """Draws factors whose product has entries of this standard deviation."""
        for factor in (self.A, self.B):
            nn.init.normal_(factor, std=std**0.5 / self.rank**0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.B @ self.A.mT

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class SpectralLinear(nn.Module):
    """y = ((x U) ⊙ s) Vᵀ with U (in, k), s (k) and V (out, k)."""

    def __init__(self, in_features: int, out_features: int, rank: int, **like: Any) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.U = nn.Parameter(torch.empty(in_features, rank, **like))
        self.s = nn.Parameter(torch.empty(rank, **like))
        self.V = nn.Parameter(torch.empty(out_features, rank, **like))

    def reset_parameters(self, std: float) -> None:
        """Draws bases whose columns have length one on average, and s so that W has entries of about this deviation."""
        nn.init.normal_(self.U, std=self.in_features**-0.5)
        nn.init.normal_(self.V, std=self.out_features**-0.5)
        nn.init.constant_(self.s, std * (self.in_features * self.out_features / self.rank) ** 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.U * self.s) @ self.V.mT

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class FactorizedLlamaForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` with the projections that the configuration names in their factors."""

    config_class = FactorizedLlamaConfig

    def __init__(self, config: FactorizedLlamaConfig) -> None:
        super().__init__(config)
        for kind, ranks in ((LowRankLinear, config.low_rank), (SpectralLinear, config.spectral)):
            for name, rank in ranks.items():
                parent, _, last = name.rpartition(".")
                dense: Any = self.get_submodule(name)
                like = {"device": dense.weight.device, "dtype": dense.weight.dtype}
                module = kind(dense.in_features, dense.out_features, rank, **like)
                module.reset_parameters(config.initializer_range)
                setattr(self.get_submodule(parent), last, module)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (LowRankLinear, SpectralLinear)):
            module.reset_parameters(self.config.initializer_range)
