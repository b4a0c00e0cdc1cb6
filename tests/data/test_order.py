"""The stream of block numbers and its deal, against what they promise, for any sizes and any number of processes."""

import itertools
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from lrtrain.data.order import Quotas, dealt, shuffled

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)


def taken(count: int, sizes: list[int], position: int = 0, seed: int = 0) -> list[int]:
    return list(itertools.islice(itertools.chain.from_iterable(shuffled(sizes, seed, position)), count))


@given(sizes=SIZES, seed=st.integers(0, 2**64))
def test_every_epoch_has_every_block_once_chunk_by_chunk_in_an_order_of_its_own(sizes: list[int], seed: int) -> None:
    blocks = sum(sizes)
    stream = taken(3 * blocks, sizes, seed=seed)
    chunk_of = [chunk for chunk, size in enumerate(sizes) for _ in range(size)]
    for epoch in range(3):
        part = stream[epoch * blocks : (epoch + 1) * blocks]
        assert sorted(part) == list(range(blocks))
        assert len(list(itertools.groupby(part, chunk_of.__getitem__))) == sum(map(bool, sizes))


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(taken(30, [10, 10, 10], 30 * epoch, seed)) for epoch in range(3) for seed in range(3)]
    assert len(set(orders)) == 9
    chunks = {tuple(block // 10 for block in order[::10]) for order in orders}
    within = {tuple(block for block in order if block < 10) for order in orders}
    assert len(chunks) > 1
    assert len(within) == 9


@given(sizes=SIZES, position=st.integers(0, 200))
def test_the_stream_from_a_position_is_the_rest_of_the_stream(sizes: list[int], position: int) -> None:
    assert taken(20, sizes, position) == taken(position + 20, sizes)[position:]


@given(batch_size=st.integers(1, 6), processes=st.integers(1, 5), micro_batches=st.integers(1, 4), sizes=SIZES)
def test_a_global_batch_is_the_same_blocks_however_it_is_cut(
    batch_size: int, processes: int, micro_batches: int, sizes: list[int]
) -> None:
    stream = taken(2 * batch_size * processes * micro_batches, sizes)
    shares = [
        list(itertools.islice(dealt(iter(stream), batch_size, rank, processes), 2 * micro_batches))
        for rank in range(processes)
    ]
    one_batch = batch_size * processes * micro_batches
    for step in range(2):
        of_step = [share[step * micro_batches : (step + 1) * micro_batches] for share in shares]
        found = [block for micro_batch in zip(*of_step, strict=True) for part in micro_batch for block in part]
        assert found == stream[step * one_batch : (step + 1) * one_batch]


@given(blocks=st.integers(0, 40), batch_size=st.integers(1, 9), processes=st.integers(1, 5))
def test_where_blocks_end_each_is_dealt_once_and_all_processes_get_equally_many_batches(
    blocks: int, batch_size: int, processes: int
) -> None:
    shares = [list(dealt(iter(range(blocks)), batch_size, rank, processes)) for rank in range(processes)]
    assert {len(share) for share in shares} == {-(-blocks // (batch_size * processes))}
    assert sorted(block for share in shares for batch in share for block in batch) == list(range(blocks))
    assert max((len(batch) for share in shares for batch in share), default=0) <= batch_size


WEIGHTS = st.lists(st.fractions(Fraction(1, 10**9), 10**6, max_denominator=10**9), min_size=1, max_size=7)


@given(weights=WEIGHTS, position=st.one_of(st.integers(0, 300), st.integers(0, 10**15)))
def test_weights_hold_at_every_prefix_and_each_block_is_one_of_its_source(
    weights: list[Fraction], position: int
) -> None:
    quotas = Quotas(weights)
    before = quotas.counts(position)
    off = Fraction(1, 2) + sum((Fraction(1, 2 * k) for k in range(1, len(weights))), Fraction(0)) * (len(weights) > 2)
    for n in range(position, position + 20):
        counts = quotas.counts(n)
        assert sum(counts) == n
        assert all(abs(c - n * w / sum(weights)) <= off for c, w in zip(counts, weights, strict=True))
        expected = list(before)
        expected[quotas.source(n)] += 1
        before = quotas.counts(n + 1)
        assert before == expected


def test_quotas_of_weights_as_written_repeat_after_their_sum() -> None:
    quotas = Quotas([Fraction(7), Fraction(3)])
    drawn = [quotas.source(n) for n in range(20)]
    assert drawn[:10] == drawn[10:]
    assert drawn[:10].count(1) == 3
