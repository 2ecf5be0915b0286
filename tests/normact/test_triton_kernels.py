"""The Triton form of the operators, against an independent float64 computation on a CPU.

They run in Triton's interpreter, and are compiled for a GPU that need not be there. On a machine with a GPU the same
tests run on it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # conftest.py chose the interpreter for the latter

pytest.importorskip("triton")

from kernel_reference import EPS, NAMES, PROXY_EPS, example, reference, scaled_difference  # noqa: E402

from normact import NormActFactory, kernels  # noqa: E402  needs triton
from normact.kernels import operators  # noqa: E402
from normact.kernels.arguments import LayerArguments, ProxyArguments, called_flat  # noqa: E402
from normact.kernels.cuda import operators as triton_operators  # noqa: E402
from normact.kernels.cuda.plan import Problem, chunk_pixels, chunk_tile, group_fits_one_program  # noqa: E402
from normact.kernels.memory_format import memory_format_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
H100_PROCESSORS = 132
FLOAT32_TOLERANCE = 1e-5  # as in kernel_reference.py
# One rounding is half of the last place, 2^-8 and 2^-11. The interpreter cuts bfloat16 off instead: a whole place.
TOLERANCES = {torch.float32: FLOAT32_TOLERANCE, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@pytest.fixture(autouse=True)
def processors_of_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(triton_operators, "_processors", lambda device: H100_PROCESSORS)


def choose_form(monkeypatch: pytest.MonkeyPatch, one_program_per_group: bool) -> None:
    monkeypatch.setattr(triton_operators, "group_fits_one_program", lambda problem, processors: one_program_per_group)


def run(
    tensors: Dict[str, Tensor], activation: str, num_groups: int, grouping: str, proxy: bool
) -> Tuple[Tensor, Dict[str, Tensor]]:
    """Output and gradients of all inputs, by the functions that are registered for CUDA tensors."""
    x, *rows = (tensors[name].detach().to(DEVICE) for name in NAMES)
    strided = grouping == "strided"
    mean, inverse_std, slopes = triton_operators.proxy_statistics(activation, ProxyArguments(*rows), PROXY_EPS)
    layer = LayerArguments(rows[0], rows[1], None, None, num_groups, strided, activation)
    if proxy:
        layer = layer._replace(proxy_mean=mean, proxy_inverse_std=inverse_std)
    out, statistics = triton_operators.norm_act(x, layer, EPS)
    assert out.stride() == torch.empty_like(x, memory_format=memory_format_of(x)).stride()
    again = triton_operators.norm_act_again(x, statistics, layer)
    # The same map with the same statistics, in another kernel: only the order of a multiply-add may differ.
    assert scaled_difference(again, out.double()) <= TOLERANCES[x.dtype]
    grad = seeded_gradient(out)
    dx, by_row = triton_operators.norm_act_backward(grad, x, statistics, layer)
    gradients = {"x": dx, "weight": by_row[0], "bias": by_row[1]}
    if proxy:
        by_proxy = triton_operators.proxy_statistics_backward(by_row[2], by_row[3], slopes, ProxyArguments(*rows))
        gradients = {"x": dx, **dict(zip(NAMES[1:], by_proxy))}
        gradients["weight"], gradients["bias"] = by_proxy[0] + by_row[0], by_proxy[1] + by_row[1]
    return out, gradients


def plain_layer(num_groups: int, activation: str) -> LayerArguments:
    return LayerArguments(None, None, None, None, num_groups, False, activation)


def seeded_gradient(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.device, out.dtype)


def check_against_float64(
    tensors: Dict[str, Tensor], activation: str, num_groups: int, grouping: str = "contiguous", proxy: bool = True
) -> None:
    out, gradients = run(tensors, activation, num_groups, grouping, proxy)
    expected, leaves = reference(tensors, activation, num_groups, grouping, proxy)
    expected.backward(seeded_gradient(out).cpu().double())
    tolerance = TOLERANCES[tensors["x"].dtype]
    assert out.dtype == tensors["x"].dtype
    assert scaled_difference(out.cpu(), expected) <= tolerance
    for name, got in gradients.items():
        # A parameter's gradient sums what x's rounding left: float32 whatever the type of x.
        limit = tolerance if name == "x" else FLOAT32_TOLERANCE
        assert scaled_difference(got.cpu(), leaves[name].grad) <= limit, name


# Every value of every column meets most values of the others; the interpreter is too slow for all combinations.
CASES = [
    # shape, groups, layout, grouping, dtype, activation, proxy
    ((2, 12, 9, 7), 4, "contiguous", "contiguous", torch.float32, "relu", True),
    ((2, 12, 9, 7), 4, "channels_last", "strided", torch.float32, "silu", True),
    ((2, 12, 9, 7), 4, "channels_last", "contiguous", torch.bfloat16, "relu", True),
    ((2, 12, 9, 7), 3, "contiguous", "strided", torch.bfloat16, "gelu", True),
    ((1, 33, 5, 5), 1, "contiguous", "contiguous", torch.float16, "silu", True),
    ((1, 33, 5, 5), 3, "channels_last", "strided", torch.float16, "identity", False),
    ((1, 6, 4, 4), 6, "contiguous", "contiguous", torch.float32, "gelu", True),
    ((1, 6, 4, 4), 6, "channels_last", "strided", torch.float32, "relu", False),
    ((1, 8, 40, 37), 2, "contiguous", "strided", torch.float32, "identity", True),
    ((1, 70, 11, 10), 2, "channels_last", "contiguous", torch.float32, "gelu", False),
    ((1, 24, 33, 17), 3, "transposed", "contiguous", torch.bfloat16, "silu", False),
    ((3, 40), 5, "contiguous", "contiguous", torch.float32, "silu", True),
    ((2, 12, 30), 4, "contiguous", "strided", torch.float32, "relu", True),
    ((1, 8, 3, 4, 5), 2, "channels_last", "contiguous", torch.float32, "identity", True),
    ((1, 20, 1, 1), 4, "contiguous", "contiguous", torch.float32, "relu", True),
]


@pytest.mark.parametrize("one_program_per_group", [True, False], ids=["group", "chunks"])
@pytest.mark.parametrize("shape, groups, layout, grouping, dtype, activation, proxy", CASES)
def test_output_and_all_gradients_equal_float64(
    shape: Tuple[int, ...],
    groups: int,
    layout: str,
    grouping: str,
    dtype: torch.dtype,
    activation: str,
    proxy: bool,
    one_program_per_group: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose_form(monkeypatch, one_program_per_group)
    check_against_float64(example(shape, 1, dtype, layout), activation, groups, grouping, proxy)


@pytest.mark.parametrize("one_program_per_group", [True, False], ids=["group", "chunks"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_mean_of_ten_thousand_deviations_costs_no_accuracy(
    layout: str, one_program_per_group: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_form(monkeypatch, one_program_per_group)
    tensors = example((1, 4, 37, 31), 2)
    x = tensors["x"].detach() + 1e4 * (1 + torch.arange(4.0) / 4)[:, None, None]
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    tensors["x"] = x.contiguous(memory_format=layouts[layout]).requires_grad_()
    check_against_float64(tensors, "relu", 4)


@pytest.mark.parametrize("one_program_per_group", [True, False], ids=["group", "chunks"])
def test_a_first_tile_unlike_the_rest_costs_no_accuracy(
    one_program_per_group: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_form(monkeypatch, one_program_per_group)
    tensors = example((1, 2, 64, 64), 2)
    x = tensors["x"].detach() + 1e3
    x[:, :, :16] = 0.0  # the pivot of the sums is this
    tensors["x"] = x.requires_grad_()
    check_against_float64(tensors, "relu", 2)


@pytest.mark.parametrize("one_program_per_group", [True, False], ids=["group", "chunks"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_spoil_their_group_alone(
    value: float, one_program_per_group: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_form(monkeypatch, one_program_per_group)
    x = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[0, 1, 2, 2] = value
    out, _ = triton_operators.norm_act(x, plain_layer(2, "relu"), EPS)
    assert out[0, :2].isnan().all() and not out[0, 2:].isnan().any()


def test_results_have_the_same_bits_twice_and_do_not_depend_on_the_other_images() -> None:
    tensors = example((3, 8, 5, 7), 4)
    out, gradients = run(tensors, "gelu", 2, "contiguous", True)
    again, again_gradients = run(tensors, "gelu", 2, "contiguous", True)
    assert torch.equal(out, again) and all(torch.equal(gradients[name], again_gradients[name]) for name in gradients)
    x = tensors["x"].detach().to(DEVICE)
    alone, _ = triton_operators.norm_act(x[1:2], plain_layer(2, "gelu"), EPS)
    together, _ = triton_operators.norm_act(x, plain_layer(2, "gelu"), EPS)
    assert torch.equal(alone, together[1:2])


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_an_empty_batch_or_image_gives_an_empty_output_and_zero_gradients(shape: Tuple[int, ...]) -> None:
    out, gradients = run(example(shape), "relu", 2, "contiguous", True)
    assert out.shape == shape and gradients["x"].shape == shape
    assert not any(gradients[name].any() for name in NAMES[1:])


def test_wrong_arguments_are_refused_in_words() -> None:
    x = torch.zeros(1, 6, 2, 2, device=DEVICE)
    with pytest.raises(ValueError, match="num_groups 4 does not divide the 6 channels"):
        triton_operators.norm_act(x, plain_layer(4, "relu"), EPS)
    with pytest.raises(ValueError, match=r"shape \(5,\); \(6,\) is needed"):
        triton_operators.norm_act(x, plain_layer(2, "relu")._replace(weight=torch.ones(5, device=DEVICE)), EPS)
    with pytest.raises(RuntimeError, match="at least one"):
        triton_operators.proxy_statistics("relu", ProxyArguments(None, None, None, None), PROXY_EPS)


# ---- the plan -------------------------------------------------------------------------------------------------------


def problem(
    images: int, channels: int, pixels: int, groups: int = 8, *, channels_last: bool = False, strided: bool = False
) -> Problem:
    x = torch.empty(images, channels, 1, pixels, dtype=torch.bfloat16, device="meta")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return triton_operators.problem_of(x.to(memory_format=memory_format), memory_format, groups, strided)


@pytest.mark.parametrize(
    "case, expected",
    [
        (problem(64, 256, 56 * 56), True),  # 512 groups fill the device
        (problem(8, 256, 56 * 56), False),  # 64 large ones do not
        (problem(8, 2048, 7 * 7), True),  # small groups need no company
        (problem(64, 64, 112 * 112, channels_last=True), False),  # pieces of 16 bytes
        (problem(64, 256, 56 * 56, channels_last=True), True),  # pieces of 64 bytes
        (problem(64, 256, 56 * 56, channels_last=True, strided=True), False),  # pieces of 2 bytes
        (problem(256, 256, 56 * 56, groups=1), False),  # a group of 1.6 MB would be read from memory twice
    ],
)
def test_the_form_follows_from_shape_and_layout(case: Problem, expected: bool) -> None:
    assert group_fits_one_program(case, H100_PROCESSORS) is expected


def test_chunks_are_whole_tiles_enough_to_fill_the_device_and_not_too_long() -> None:
    for case in (problem(1, 64, 112 * 112), problem(2, 1024, 14 * 14, channels_last=True), problem(256, 64, 112 * 112)):
        tile = chunk_tile(case)
        size = chunk_pixels(case, tile, H100_PROCESSORS)
        assert size % tile.pixels == 0 and size // tile.pixels <= 64
        programs = case.images * -(-case.channels // tile.channels) * -(-case.pixels // size)
        # Whole tiles round the number of chunks down, by less than half.
        assert programs >= 4 * H100_PROCESSORS or size == tile.pixels


# ---- dispatch -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda_outcome(monkeypatch: pytest.MonkeyPatch) -> Iterator[List[Optional[str]]]:
    """As in a new process with one Hopper GPU; what was registered is taken back."""
    reason = operators.why_not_loaded()
    if reason is not None:
        pytest.skip(reason)
    outcome: List[Optional[str]] = []
    monkeypatch.setattr(operators, "_cuda_outcome", outcome)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    yield outcome
    if triton_operators._library is not None:
        triton_operators._library._destroy()
        triton_operators._library = None


def has_cuda_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"normact::{name}", "CUDA")


NAMES_OF_OPERATORS = (
    "norm_act", "norm_act_again", "norm_act_backward", "proxy_statistics", "proxy_statistics_backward",
)  # fmt: skip


@pytest.mark.skipif(DEVICE == "cuda", reason="registering once more would be an error")
def test_a_cuda_tensor_goes_to_triton(cuda_outcome: List[Optional[str]]) -> None:
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 16, 4, 4, device="cuda", dtype=torch.float16)
        assert kernels.why_not_fused(x, 4, "contiguous", "relu") is None
        assert "float64" in (kernels.why_not_fused(x.double(), 4, "contiguous", "relu") or "")
        large = torch.empty(1, 2, 2**15, 2**15, device="cuda")
        assert "2147483648 values" in (kernels.why_not_fused(large, 1, "contiguous", "relu") or "")
    assert cuda_outcome == [None] and operators.has_fused_kernels()
    assert all(has_cuda_kernel(name) for name in NAMES_OF_OPERATORS)


def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "normact.kernels.cuda.operators", None)


def with_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))


@pytest.mark.skipif(DEVICE == "cuda", reason="needs a machine where nothing was registered")
@pytest.mark.parametrize(
    "fault, reason",
    [(without_triton, "Triton cannot be imported"), (with_an_old_gpu, "compute capability (7, 5); (8, 0) or newer")],
)
def test_no_triton_or_an_old_gpu_means_the_reference_and_one_warning(
    fault: Callable[[pytest.MonkeyPatch], None],
    reason: str,
    cuda_outcome: List[Optional[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault(monkeypatch)
    layer = NormActFactory(norm="group", num_groups=4)(16, "relu")
    with torch._subclasses.FakeTensorMode(), caplog.at_level(logging.WARNING):
        x = torch.empty(2, 16, 4, 4, device="cuda")
        reasons = [kernels.why_not_fused(x, 4, "contiguous", "relu") for _ in range(2)]
    assert reason in (reasons[0] or "") and reasons[0] == reasons[1]
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    assert not operators.has_fused_kernels() and not has_cuda_kernel("norm_act")
    assert layer(torch.randn(2, 16, 4, 4)).shape == (2, 16, 4, 4)  # a CPU tensor is not concerned


@pytest.mark.skipif(DEVICE == "cuda", reason="there the layer runs on the GPU in other tests")
def test_the_layer_trains_through_the_operators_with_the_triton_functions() -> None:
    """Schemas, gradients and recomputation are the C++ library's; here its CPU kernels give way to Triton's."""
    reason = operators.why_not_loaded()
    if reason is not None:
        pytest.skip(reason)
    results = []
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    for use_triton in (False, True):
        torch.manual_seed(0)
        layer = NormActFactory(norm="group", num_groups=2, kernel="fused", recompute=True)(8, "silu")
        head = torch.nn.Conv2d(8, 2, 1)
        leaf = x.clone().requires_grad_()
        with torch.library._scoped_library("normact", "IMPL") as library:
            if use_triton:
                for name in NAMES_OF_OPERATORS:
                    library.impl(name, called_flat(getattr(triton_operators, name)), "CPU")
            with kernels.recomputed_activations():
                out = head(layer(leaf))
            out.square().sum().backward()
        results.append([leaf.grad, head.weight.grad, *(p.grad for p in layer.parameters())])
    for expected, got in zip(*results):
        assert scaled_difference(got, expected.double()) <= FLOAT32_TOLERANCE


def test_every_kernel_compiles_for_a_hopper_gpu_without_spilling_registers(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(ROOT / "tests" / "normact" / "triton_compilation.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    spilled_bytes = json.loads(done.stdout)
    assert set(spilled_bytes) == {
        "group_forward", "group_backward", "chunk_moments", "merge_moments", "chunk_sums", "merge_sums",
        "map_forward", "map_backward", "proxy_forward", "proxy_backward",
    }  # fmt: skip
    assert not any(spilled_bytes.values())
