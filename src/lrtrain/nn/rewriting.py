"""A weight written in another way: dense, low-rank, spectral, self-guided; and how much of it is kept."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrtrain.linalg import energy_rank, product_svd, truncated_svd
from lrtrain.nn.factorized import rank_of_dense

EMPTY = 1e-6
"""Singular values below this share of the largest one are none: rounding has made them."""


@dataclass(frozen=True)
class Kept:
    """What a new way to write a weight W keeps of it.

    Attributes:
        rank: Of the new one; None where it is dense.
        energy: The share of Σσ² that it holds, 1 where nothing is lost.
        empty: How many of its singular values are zero, because W has fewer.
    """

    rank: int | None
    energy: float
    empty: int = 0


@torch.no_grad()
def triplets(
    source: Any, rank: int | None = None, energy: float | None = None
) -> tuple[tuple[Tensor, Tensor, Tensor], Kept]:
    """The leading singular triplets P (out, r), σ (r), Q (in, r) of a weight, or of a projection's.

    A product of factors is never formed. At least float32 is computed with.

    Args:
        source: A weight (out, in), or a projection with one, or with a pair A, B or a triple U, s, V alone.
        rank: r; or give energy, the share of Σσ² that the triplets are to hold.
        energy: In (0, 1].

    Raises:
        ValueError: NaN or an infinity in the weight; rank or energy out of range, or not exactly one of them given; a
            rank above that of the factors, whose further columns would be zero and never train.
    """
    product = None if isinstance(source, Tensor) else _product(source)
    if product is None:
        weight = _at_least_float32(source.detach() if isinstance(source, Tensor) else dense_weight(source))
        _check_finite(weight)
        p, sigma, q = truncated_svd(weight, rank_of_dense(weight, rank, energy))
        total = weight.double().square().sum()
    else:
        left, right = (_at_least_float32(factor.detach()) for factor in product)
        for factor in (left, right):
            _check_finite(factor)
        p, sigma, q = product_svd(left, right)
        total = sigma.double().square().sum()
        if (rank is None) == (energy is None):
            raise ValueError(f"give either rank or energy, not both or neither: rank={rank}, energy={energy}")
        kept = energy_rank(sigma, energy) if energy is not None else rank
        assert kept is not None
        if kept > len(sigma):
            raise ValueError(
                f"rank {kept} of a weight of rank {len(sigma)}: {kept - len(sigma)} columns would be zero and never "
                f"train; give at most {len(sigma)}"
            )
        p, sigma, q = p[:, :kept], sigma[:kept], q[:, :kept]
    share = float(sigma.double().square().sum() / total) if total > 0 else 1.0
    empty = int((sigma <= EMPTY * sigma.max()).sum())
    return (p, sigma, q), Kept(len(sigma), min(share, 1.0), empty)


@torch.no_grad()
def write_weight(target: Any, source: Any) -> Kept:
    """Gives a projection, which keeps its way and its rank, the weight of another: the best approximation of that rank.

    Raises:
        ValueError: whatever `triplets` refuses, or `check_conversion`.
    """
    check_conversion(target, source)
    if callable(getattr(target, "set_triplets", None)):
        found, kept = triplets(source, target.rank)
        target.set_triplets(*found)
        return kept
    weight = dense_weight(source)
    _check_finite(weight)
    target.weight.copy_(weight)
    return Kept(None, 1.0)


def check_conversion(target: Any, source: Any) -> None:
    """Refuses, without reading a number, what `write_weight` could not do.

    Raises:
        ValueError: other features, a target that is neither a product of triplets nor one dense weight, a source that
            has no weight, or a rank above that of its factors.
    """
    sizes = [(one.out_features, one.in_features) for one in (target, source)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"it is {sizes[1]} (out, in), the model's is {sizes[0]}")
    if not (_plain(source) or callable(getattr(source, "materialize", None))):
        raise ValueError(f"{type(source).__name__} has no dense weight: give it a method materialize()")
    if not callable(getattr(target, "set_triplets", None)):
        if not _plain(target):
            raise ValueError(f"{type(target).__name__} cannot be made of a weight: give it set_triplets(P, σ, Q)")
        return
    product = _product(source)
    if product is not None and target.rank > product[0].shape[1]:
        raise ValueError(
            f"it has rank {product[0].shape[1]}, the model's rank {target.rank}: further columns would be zero and "
            "never train"
        )


def dense_weight(source: Any) -> Tensor:
    """W (out, in) of a projection or an `nn.Linear`."""
    weight: Tensor = source.weight if _plain(source) else source.materialize()
    return weight.detach()


def _plain(module: Any) -> bool:
    """Whether a module has one dense weight and nothing else."""
    names = [name for name, _ in module.named_parameters()]
    return names == ["weight"] and module.weight.shape == (module.out_features, module.in_features)


def _product(source: Any) -> tuple[Tensor, Tensor] | None:
    """L (out, k) and R (in, k) of a weight L Rᵀ, of a projection that consists of one pair or one triple alone."""
    own = {id(parameter) for parameter in source.parameters()}
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = getattr(source, "factor_pairs", list)()
    if len(pairs) == 1 and own == {id(parameter) for parameter in pairs[0]}:
        return pairs[0]
    triples: list[tuple[nn.Parameter, ...]] = getattr(source, "spectral_triples", list)()
    if len(triples) == 1 and own == {id(parameter) for parameter in triples[0]}:
        u, s, v = triples[0]
        return _at_least_float32(v) * s, u
    return None


def _at_least_float32(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()


def _check_finite(weight: Tensor) -> None:
    if not weight.is_meta and not weight.isfinite().all():
        raise ValueError("its weight holds NaN or infinite numbers")
