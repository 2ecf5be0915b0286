"""Streaming stores change where outputs go, and no bit of them."""

from __future__ import annotations

from typing import Iterator, List, Tuple

import pytest
import torch
from kernel_reference import ACTIVATIONS, example, fused
from torch import Tensor

from normact.kernels.cpu import streaming
from normact.kernels.cpu.build import build_library
from normact.kernels.cpu.compiler import BuildError
from normact.kernels.cpu.streaming import LARGE, MIB, NEVER, STREAMING_VARIABLE


@pytest.fixture()
def all_outputs_may_stream(built_kernels: None) -> Iterator[None]:
    yield
    streaming.stream_from(build_library(), streaming.streamed_bytes())


def results(shape: Tuple[int, ...], layout: str, dtype: torch.dtype, activation: str, grouping: str) -> List[Tensor]:
    """Return the output, the gradient of the input, and those of the parameters."""
    tensors = example(shape, 7, dtype, layout)
    out = fused(tensors, activation, 2, grouping, True)
    out.backward(example(shape, 8, dtype, layout)["x"].detach())
    return [out.detach(), *(tensor.grad for tensor in tensors.values() if tensor.grad is not None)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "unaligned"])
def test_every_result_is_the_same_to_the_bit(all_outputs_may_stream: None, layout: str, activation: str) -> None:
    # whole vectors; half vectors at the ends of rows; fewer images than threads; rows of broken lines in one layout
    for shape in ((2, 64, 16, 8), (3, 32, 33, 16), (1, 48, 6, 8), (2, 96, 7, 7), (3, 64, 1, 1)):
        for dtype in (torch.float32, torch.bfloat16):
            for grouping in ("contiguous", "strided"):
                streaming.stream_from(build_library(), NEVER)
                ordinary = results(shape, layout, dtype, activation, grouping)
                streaming.stream_from(build_library(), 0)
                streamed = results(shape, layout, dtype, activation, grouping)
                assert len(ordinary) == 6  # the output, and the gradients of x and of four parameters
                for one, other in zip(ordinary, streamed):
                    assert torch.equal(one, other), (shape, dtype, grouping)


@pytest.mark.parametrize(
    "setting, flags, expected",
    [
        (None, "avx512f avx512_bf16", LARGE),
        (None, "avx512f", NEVER),
        ("", "avx512_bf16", LARGE),
        ("auto", "avx2", NEVER),
        ("auto", "avx512_bf16", LARGE),
        ("off", "avx512_bf16", NEVER),
        ("24", "avx2", 24 * MIB),
        ("0", "", 0),
        ("999999", "", 999999 * MIB),
    ],
)
def test_the_setting_decides_and_else_the_processor(
    monkeypatch: pytest.MonkeyPatch, setting: str, flags: str, expected: int
) -> None:
    monkeypatch.setattr(streaming, "processor_flags", lambda: flags)
    if setting is None:
        monkeypatch.delenv(STREAMING_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(STREAMING_VARIABLE, setting)
    assert streaming.streamed_bytes() == expected


@pytest.mark.parametrize("setting", ["on", "8 MiB", "-1", "1e3", "8.5", "1234567", "٣", " "])
def test_a_setting_that_says_nothing_known_is_refused(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(STREAMING_VARIABLE, setting)
    with pytest.raises(BuildError, match="use auto, off, or a size in MiB, as 8"):
        streaming.streamed_bytes()
