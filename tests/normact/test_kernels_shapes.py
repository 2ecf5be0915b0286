"""The fused kernels on shapes, strides, types and groups that nobody chose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_reference import (
    ACTIVATIONS,
    FLOAT32_TOLERANCE,
    check_against_float64,
    example,
    fused,
    reference,
    scaled_difference,
)

from normact import kernels

LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "unaligned")
GRADIENT_LAYOUTS = ("contiguous", "transposed", "expanded")


pytestmark = pytest.mark.usefixtures("built_kernels")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_stride_type_and_grouping_equals_float64(data: st.DataObject) -> None:
    groups, size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    spatial = data.draw(st.lists(st.integers(1, 11), min_size=0, max_size=3))
    shape = (data.draw(st.integers(1, 3)), groups * size, *spatial)
    if shape[1] // groups * torch.Size(spatial).numel() == 1:
        shape = (shape[0], groups * 2, *spatial)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    layout, gradient_layout = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from(GRADIENT_LAYOUTS))
    tensors = example(shape, data.draw(st.integers(0, 99)), dtype, layout)
    grouping, proxy = data.draw(st.sampled_from(["contiguous", "strided"])), data.draw(st.booleans())
    # Groups of two values divide by deviations near sqrt(eps): every rounding is multiplied by up to 300.
    if shape[1] // groups * torch.Size(spatial).numel() < 8:
        tolerance = 300 * FLOAT32_TOLERANCE if dtype == torch.float32 else 0.02
        out = fused(tensors, "relu", groups, grouping, proxy)
        assert scaled_difference(out, reference(tensors, "relu", groups, grouping, proxy)[0]) <= tolerance
        return
    activation = data.draw(st.sampled_from(sorted(ACTIVATIONS)))
    check_against_float64(tensors, activation, groups, grouping, proxy, gradient_layout=gradient_layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_rows_of_many_chunks_and_units_beyond_every_cache_equal_float64(layout: str) -> None:
    # 1.3 million values in one group: more than backward keeps from its first pass to its second.
    check_against_float64(example((1, 8, 401, 403), 5, layout=layout), "silu", 1)


@pytest.mark.parametrize("pixels", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_behind_the_last_element_is_read_or_written(pixels: int, dtype: torch.dtype) -> None:
    # The neighbours of x in memory are NaN: a lane read too many would spoil a sum.
    shape = (1, 3, pixels)
    values = example(shape, 6, dtype)["x"].detach()
    for layout in ("contiguous", "channels_last"):
        fence = torch.full((3 * pixels + 128,), float("nan"), dtype=dtype)
        x = (
            fence[64:-64].view(shape)
            if layout == "contiguous"
            else fence[64:-64].view(1, pixels, 1, 3).permute(0, 3, 1, 2)
        )
        x.copy_(values.view(x.shape))
        out = kernels.fused_norm_act(
            x, None, None, None, None, num_groups=1, grouping="contiguous", activation="silu", eps=1e-5
        )
        assert out.isfinite().all() and fence[:64].isnan().all() and fence[-64:].isnan().all()
