"""BatchPlan: the arithmetic holds for every plan that is made, and what cannot be honoured is refused."""

from typing import Any, Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import ConfigError, plan_batch
from configs.batch import BatchPlan
from configs.schema import BatchConfig


def plan(total: int, norm: int = 1, **options: Any) -> BatchPlan:
    micro = options.pop("micro", None)
    defaults: Dict[str, Any] = {
        "uses_batch_norm": norm > 1,
        "replicas": 1,
        "local_replicas": 1,
        "max_micro_batch_size": 10**6,
        "can_share_statistics": True,
    }
    batch = BatchConfig(global_batch_size=total, norm_batch_size=norm, micro_batch_size=micro)
    return plan_batch(batch, **{**defaults, **options})


@pytest.mark.parametrize(
    ("options", "micro", "accumulation", "norm_replicas"),
    [
        ({"total": 1024, "replicas": 16, "max_micro_batch_size": 8}, 8, 8, 1),  # the example of the README
        ({"total": 128}, 128, 1, 1),
        ({"total": 128, "max_micro_batch_size": 100}, 64, 2, 1),
        ({"total": 96, "max_micro_batch_size": 40}, 32, 3, 1),
        ({"total": 7, "max_micro_batch_size": 6}, 1, 7, 1),
        ({"total": 128, "micro": 16}, 16, 8, 1),
        ({"total": 256, "norm": 32}, 256, 1, 1),  # ghost statistics within the micro-batch
        ({"total": 256, "norm": 32, "max_micro_batch_size": 70}, 64, 4, 1),
        ({"total": 256, "norm": 32, "replicas": 16}, 16, 1, 2),  # two replicas share
        ({"total": 256, "norm": 32, "replicas": 16, "micro": 4}, 4, 4, 8),
        ({"total": 96, "norm": 24, "max_micro_batch_size": 40}, 24, 4, 1),  # 32 would fit but does not divide by 24
    ],
)
def test_the_largest_micro_batch_that_honours_the_config_is_chosen(
    options: Dict[str, Any], micro: int, accumulation: int, norm_replicas: int
) -> None:
    result = plan(**options)
    assert (result.micro_batch_size, result.gradient_accumulation, result.norm_replicas) == (
        micro,
        accumulation,
        norm_replicas,
    )


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"total": 1000, "replicas": 16}, ["global_batch_size 1000", "replicas 16", "use 992 or 1008"]),
        ({"total": 8, "replicas": 16}, ["use 16"]),
        ({"total": 128, "micro": 48}, ["micro_batch_size 48", "32 or 64", "multiple of 48"]),
        ({"total": 128, "norm": 2, "uses_batch_norm": False}, ["norm_batch_size 2", "norm.name to batch"]),
        ({"total": 128, "norm": 1, "uses_batch_norm": True}, ["norm_batch_size 1", "instance"]),
        ({"total": 128, "norm": 48}, ["norm_batch_size 48", "do not divide", "group"]),
        ({"total": 128, "norm": 64, "micro": 16}, ["4 replicas", "1 replicas are not a multiple"]),
        ({"total": 128, "norm": 64, "replicas": 8, "can_share_statistics": False}, ["cannot share statistics"]),
        (
            {"total": 128, "norm": 64, "max_micro_batch_size": 32},
            ["norm_batch_size 64", "fits the memory (at most 32)"],
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_numbers(options: Dict[str, Any], parts: List[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**options)
    for part in parts:
        assert part in str(caught.value)


@given(
    st.integers(1, 512),
    st.integers(2, 64),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(1, 128),
    st.booleans(),
    st.booleans(),
)
def test_every_plan_that_is_made_keeps_both_batch_sizes_exactly(
    total: int, norm: int, replicas: int, limit: int, uses_batch_norm: bool, can_share: bool
) -> None:
    norm = norm if uses_batch_norm else 1
    try:
        result = plan(
            total,
            norm,
            uses_batch_norm=uses_batch_norm,
            replicas=replicas,
            max_micro_batch_size=limit,
            can_share_statistics=can_share,
        )
    except ConfigError:
        return
    assert result.micro_batch_size * result.gradient_accumulation * result.replicas == total
    assert result.norm_batch_size == norm
    assert result.micro_batch_size <= limit
    if uses_batch_norm:
        assert result.micro_batch_size % norm == 0 or result.micro_batch_size * result.norm_replicas == norm
        assert can_share or result.norm_replicas == 1


@given(st.integers(1, 512), st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 128))
def test_a_norm_of_each_image_by_itself_is_refused_only_when_replicas_do_not_divide(
    total: int, replicas: int, limit: int
) -> None:
    if total % replicas:
        with pytest.raises(ConfigError):
            plan(total, replicas=replicas, max_micro_batch_size=limit)
    else:
        plan(total, replicas=replicas, max_micro_batch_size=limit)


def test_the_plan_is_written_out_in_words() -> None:
    assert str(plan(1024, replicas=16, max_micro_batch_size=8)) == (
        "global_batch_size 1024 = micro_batch_size 8 x gradient_accumulation 8 x replicas 16; "
        "norm_batch_size 1, each image by itself"
    )
    assert str(plan(64, 16)).endswith("norm_batch_size 16, within a micro-batch")
    assert str(plan(64, 16, replicas=8)).endswith("norm_batch_size 16, shared by 2 replicas")
