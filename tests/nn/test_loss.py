"""The loss in chunks: the value and the gradients of the loss at once, without all logits and without recomputation."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import lrtrain.nn.loss as loss_module
from lrtrain.nn import losses_by_position, next_token_loss

VOCAB, WIDTH, TOKENS = 97, 16, 23


def inputs(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype).mul_(scale).requires_grad_()
    return hidden, torch.randn(VOCAB, WIDTH, dtype=dtype).requires_grad_(), torch.randint(0, VOCAB, (TOKENS,))


def at_once(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ head.mT, targets)


@pytest.fixture(autouse=True)
def tokens_per_chunk(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    chunk = getattr(request, "param", TOKENS)
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", chunk * VOCAB)


in_chunks_of = pytest.mark.parametrize
CHUNKS = [1, 7, 22, 23, 1000]


@in_chunks_of("tokens_per_chunk", CHUNKS, indirect=True)
def test_value_and_gradients_are_those_of_the_loss_at_once(tokens_per_chunk: None) -> None:
    hidden, head, targets = inputs(torch.float64)
    expected = at_once(hidden, head, targets)
    loss = next_token_loss(hidden, head, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(3 * loss, (hidden, head)),
        torch.autograd.grad(3 * expected, (hidden, head)),
        rtol=1e-12,
        atol=1e-14,
    )


@settings(max_examples=25, deadline=None)
@given(chunk=st.integers(1, 30), scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]), seed=st.integers(0, 2**20))
def test_float32_stays_with_float64_at_any_scale_of_the_logits(chunk: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    loss_module.CHUNK_LOGITS = chunk * VOCAB  # the fixture puts it back
    hidden, head, targets = inputs(scale=scale)
    exact = [x.detach().double().requires_grad_() for x in (hidden, head)]
    loss, expected = next_token_loss(hidden, head, targets), at_once(*exact, targets)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(loss, (hidden, head))
    for got, want in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        # Logits of size s are rounded by 6e-8 s, and the softmax with them.
        assert float((got.double() - want).norm()) <= 1e-6 * (1 + 10 * scale) * max(1.0, float(want.norm()))


@in_chunks_of("tokens_per_chunk", CHUNKS, indirect=True)
def test_losses_by_position_are_means_over_rows_and_their_mean_is_the_loss(tokens_per_chunk: None) -> None:
    hidden, targets = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64), torch.randint(0, VOCAB, (3, TOKENS))
    head = torch.randn(VOCAB, WIDTH, dtype=torch.float64)
    found = losses_by_position(hidden, head, targets)
    expected = [at_once(hidden[:, place], head, targets[:, place]) for place in range(TOKENS)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.mean(), next_token_loss(hidden, head, targets), rtol=1e-12, atol=0)


@in_chunks_of("tokens_per_chunk", CHUNKS, indirect=True)
def test_a_loss_without_gradients_is_the_same_and_computes_none(tokens_per_chunk: None) -> None:
    hidden, head, targets = inputs()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss = next_token_loss(hidden, head, targets)
    assert counter.get_total_flops() == 2 * TOKENS * WIDTH * VOCAB
    assert torch.equal(loss, next_token_loss(hidden, head, targets).detach())


@in_chunks_of("tokens_per_chunk", [5], indirect=True)
def test_a_step_takes_three_products_and_recomputes_none(tokens_per_chunk: None) -> None:
    hidden, head, targets = inputs()
    with FlopCounterMode(display=False) as counter:
        next_token_loss(hidden, head, targets).backward()
    assert counter.get_total_flops() == 3 * 2 * TOKENS * WIDTH * VOCAB


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


def test_all_logits_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 8 * VOCAB)
    hidden, head = torch.randn(64, 4, requires_grad=True), torch.randn(VOCAB, 4, requires_grad=True)
    with Largest() as largest:
        next_token_loss(hidden, head, torch.randint(0, VOCAB, (64,))).backward()
    assert largest.elements == 8 * VOCAB


@in_chunks_of("tokens_per_chunk", [5, 1000], indirect=True)
def test_under_bfloat16_autocast_the_loss_is_float32_and_not_rounded(tokens_per_chunk: None) -> None:
    hidden, head, targets = inputs()
    exact = next_token_loss(hidden, head, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(hidden, head, targets)
    assert loss.dtype == torch.float32
    loss, exact = loss.detach(), exact.detach()
    assert float(loss) == pytest.approx(float(exact), rel=2e-3)
    assert float(loss.bfloat16()) != float(loss)


@in_chunks_of("tokens_per_chunk", [5, 1000], indirect=True)
def test_under_bfloat16_autocast_gradients_are_as_exact_as_autograd_s(tokens_per_chunk: None) -> None:
    hidden, head, targets = inputs()
    exact = torch.autograd.grad(at_once(hidden.double(), head.double(), targets), (hidden, head))
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(hidden, head, targets)
        plain = F.cross_entropy(F.linear(hidden, head).float(), targets)
    ours = torch.autograd.grad(loss, (hidden, head))
    autograd = torch.autograd.grad(plain, (hidden, head))
    for got, usual, want in zip(ours, autograd, exact, strict=True):
        assert got.dtype == torch.float32
        assert float((got - want).norm()) <= 1.2 * float((usual - want).norm())


def test_a_head_or_hidden_states_without_gradient_are_accepted() -> None:
    hidden, head, targets = inputs()
    next_token_loss(hidden.detach(), head, targets).backward()
    assert head.grad is not None
    next_token_loss(hidden, head.detach(), targets).backward()
    assert hidden.grad is not None


def test_the_gradient_can_be_taken_twice() -> None:
    hidden, head, targets = inputs()
    loss = next_token_loss(hidden, head, targets)
    first = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, head)), first, rtol=0, atol=0)
