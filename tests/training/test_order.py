"""Which image goes where: disjoint, complete, and the same for any number of processes."""

from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.batch import BatchPlan
from datasets.data_sets import Parts
from training.order import EvaluationBatches, TrainingBatches, image_order, step_key


def batches(
    num_images: int, replicas: int, seed: int = 1, epoch: int = 2, first_step: int = 0, updates: int = 1
) -> List[List[List[int]]]:
    """[process][call] -> indices, with a global batch of 24."""
    plan = BatchPlan(24, 1, 24 // replicas, 1, replicas, 1, updates)
    result = []
    for process in range(replicas):
        calls = list(TrainingBatches(num_images, plan, process, seed, epoch, first_step))
        assert all(key[0] == epoch for call in calls for key in call)
        result.append([[index for _, index in call] for call in calls])
    return result


def test_an_order_is_a_permutation_that_changes_with_seed_and_epoch() -> None:
    orders = [image_order(seed, epoch, 100) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    assert image_order(1, 0, 100) == image_order(1, 0, 100)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9), together=st.integers(1, 10), epoch=st.integers(0, 5))
def test_an_order_of_parts_goes_through_a_few_at_a_time(sizes: List[int], together: int, epoch: int) -> None:
    order = image_order(3, epoch, sum(sizes), Parts(tuple(sizes), together))
    assert sorted(order) == list(range(sum(sizes)))
    part_of = [part for part, size in enumerate(sizes) for _ in range(size)]
    seen = list(dict.fromkeys(part_of[index] for index in order))  # parts by their first image
    for first in range(0, len(sizes), together):
        group = seen[first : first + together]
        count = sum(sizes[part] for part in group)
        # all images of the group come before any of another
        assert {part_of[index] for index in order[:count]} == set(group)
        order = order[count:]


def test_parts_and_their_images_are_shuffled_anew_in_each_epoch() -> None:
    parts = Parts((20, 20, 20, 20), 2)
    orders = [image_order(0, epoch, 80, parts) for epoch in range(20)]
    assert image_order(0, 3, 80, parts) == orders[3]
    assert len({tuple(order) for order in orders}) == 20
    first_groups = {frozenset(index // 20 for index in order[:40]) for order in orders}
    # six pairs of four parts: that 20 draws meet fewer than four of them has a probability below 1e-4
    assert len(first_groups) >= 4
    # 39 neighbours of 20 and 20 images in random order change the part 20 times on average, deviation 3.1
    changes = [sum(a // 20 != b // 20 for a, b in zip(order[:40], order[1:40])) for order in orders]
    assert 18 < sum(changes) / len(changes) < 22


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_processes_together_have_the_images_of_one_process_in_the_same_order(replicas: int) -> None:
    alone = batches(100, 1)[0]
    together = batches(100, replicas)
    assert [sum((process[call] for process in together), []) for call in range(len(alone))] == alone


def test_an_epoch_has_every_full_global_batch_once() -> None:
    calls = batches(100, 1)[0]
    seen = sum(calls, [])
    assert len(calls) == 4
    assert len(set(seen)) == len(seen) == 96


def test_starting_at_a_step_gives_the_rest_of_the_epoch() -> None:
    assert batches(100, 2, first_step=3)[1] == batches(100, 2)[1][3:]


def test_several_updates_per_call_are_consecutive_global_batches() -> None:
    single, double = batches(100, 2), batches(100, 2, updates=2)
    assert [double[process][0] for process in range(2)] == [
        single[process][0] + single[process][1] for process in range(2)
    ]


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_partners_are_the_images_before_a_part_in_a_circle(replicas: int) -> None:
    plan = BatchPlan(24, 1, 24 // replicas, 1, replicas, 1, 2)
    whole = batches(100, 1)[0]
    for process in range(replicas):
        calls = list(TrainingBatches(100, plan, process, 1, 2, partners=2))
        size = 24 // replicas
        for call, images in enumerate(calls):
            assert len(images) == 2 * (size + 2)
            for update in range(2):
                circle = whole[2 * call + update]
                found = [index for _, index in images[update * (size + 2) : (update + 1) * (size + 2)]]
                assert found == [circle[(process * size + place) % 24] for place in range(-2, size)]


@given(st.integers(0, 200), st.integers(1, 17), st.integers(1, 5))
def test_evaluation_sees_every_image_exactly_once(num_images: int, batch_size: int, processes: int) -> None:
    samplers = [EvaluationBatches(num_images, batch_size, process, processes) for process in range(processes)]
    seen = [index for sampler in samplers for batch in sampler for index in batch]
    assert sorted(seen) == list(range(num_images))
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)


def test_draws_of_steps_have_different_seeds() -> None:
    keys = {step_key(seed, step) for seed in range(3) for step in range(200)}
    assert len(keys) == 600
    assert all(0 <= key < 2**63 for key in keys)
