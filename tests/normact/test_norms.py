"""Each norm against a formula written out in numpy, and the properties that set the norms apart."""

import multiprocessing
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from normact import NormActFactory, WeightStandardizedConv2d, share_statistics
from normact.norms import BatchNorm, EvoNormS0, FilterResponseNorm, GroupNorm, IdentityNorm
from normact.pointwise import DynamicErf, DynamicTanh

Array = NDArray[np.float64]
SHAPES = [(3, 8), (3, 8, 5), (3, 8, 4, 5), (2, 8, 2, 3, 4)]


def images(shape: Tuple[int, ...], seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(offset, 2.0, shape))


def group_of_channel(channel: int, channels: int, num_groups: int, grouping: str) -> int:
    return channel % num_groups if grouping == "strided" else channel // (channels // num_groups)


def numpy_group_norm(x: Array, num_groups: int, grouping: str, eps: float) -> Array:
    out = np.empty_like(x)
    for image, result in zip(x, out):
        for group in range(num_groups):
            members = [c for c in range(x.shape[1]) if group_of_channel(c, x.shape[1], num_groups, grouping) == group]
            values = image[members]
            result[members] = (values - values.mean()) / np.sqrt(values.var() + eps)
    return out


def columns(values: Array, ndim: int) -> Array:
    return values.reshape((1, -1) + (1,) * (ndim - 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grouping", ["contiguous", "strided"])
@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_group_norm_is_its_formula(shape: Tuple[int, ...], grouping: str, num_groups: int) -> None:
    x, weight, bias = images(shape), images((8,), 1), images((8,), 2)
    norm = GroupNorm(8, num_groups, grouping=grouping, eps=1e-3)
    y = numpy_group_norm(x.numpy(), num_groups, grouping, 1e-3)
    np.testing.assert_allclose(norm(x).numpy(), y, atol=1e-12)  # float64 rounding
    expected = columns(weight.numpy(), x.dim()) * y + columns(bias.numpy(), x.dim())
    np.testing.assert_allclose(norm(x, weight, bias).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_instance_norm_is_group_norm_with_one_channel_a_group(shape: Tuple[int, ...]) -> None:
    x = images(shape)
    layer = NormActFactory(norm="instance")(8, None).double()
    np.testing.assert_allclose(
        layer(x).detach().numpy(), numpy_group_norm(x.numpy(), 8, "contiguous", 1e-5), atol=1e-12
    )


def test_group_norm_by_hand() -> None:
    # Four channels of one position, two groups, eps 0. Contiguous: (1, 3), (2, 10); strided: (1, 2), (3, 10).
    x = torch.tensor([[1.0, 3.0, 2.0, 10.0]])
    assert GroupNorm(4, 2, eps=0.0)(x).tolist() == [[-1.0, 1.0, -1.0, 1.0]]
    x = torch.tensor([[1.0, 3.0, 5.0, 2.0, 9.0, 4.0]])
    # Strided: (1, 5, 9) has mean 5, variance 32/3; (3, 2, 4) has mean 3, variance 2/3.
    a, b = 4 / (32 / 3) ** 0.5, 1 / (2 / 3) ** 0.5
    got = GroupNorm(6, 2, grouping="strided", eps=0.0)(x)
    torch.testing.assert_close(got, torch.tensor([[-a, 0.0, 0.0, -b, a, b]]))


def test_groups_of_a_single_value_are_refused() -> None:
    with pytest.raises(ValueError, match="single value"):
        GroupNorm(4, 4)(torch.ones(2, 4, 1, 1))
    with pytest.raises(ValueError, match="single value"):
        NormActFactory(norm="instance")(4, "relu")(torch.ones(2, 4, 1, 1))


def test_a_large_mean_does_not_harm_the_statistics() -> None:
    x = images((2, 8, 16, 16), offset=3000.0).float()
    expected = numpy_group_norm(x.double().numpy(), 2, "strided", 1e-5)
    # The input rounds to 1.8e-4, of a standard deviation of 2; a one-pass variance would be off by more than 1.
    np.testing.assert_allclose(GroupNorm(8, 2, grouping="strided")(x).numpy(), expected, atol=1e-3)


INDEPENDENT = ["group", "layer", "instance", "frn", "evonorm_s0", "dyt", "derf", "none"]


@given(
    norm=st.sampled_from(INDEPENDENT),
    grouping=st.sampled_from(["contiguous", "strided"]),
    others=st.integers(0, 3),
    seed=st.integers(0, 1000),
    activation=st.sampled_from(["relu", "silu", None]),
)
def test_the_output_of_an_image_does_not_depend_on_the_other_images(
    norm: str, grouping: str, others: int, seed: int, activation: Optional[str]
) -> None:
    fields = {"grouping": grouping, "num_groups": 4} if norm in ("group", "evonorm_s0") else {}
    layer = NormActFactory(norm=norm, **fields)(8, activation).double()
    image, rest = images((1, 8, 3, 3), seed), images((others, 8, 3, 3), seed + 1, offset=5.0)
    # Threads and vector lengths may sum in another order: float64 rounding.
    torch.testing.assert_close(layer(torch.cat([image, rest]))[:1], layer(image), rtol=0, atol=1e-12)


def test_the_output_of_an_image_depends_on_the_other_images_under_batch_norm() -> None:
    layer = NormActFactory(norm="batch")(8, "relu").double()
    image, rest = images((1, 8, 3, 3)), images((2, 8, 3, 3), 1, offset=5.0)
    assert (layer(torch.cat([image, rest]))[:1] - layer(image)).abs().max() > 0.1


def numpy_batch_norm(x: Array, eps: float) -> Tuple[Array, Array, Array]:
    axes = (0,) + tuple(range(2, x.ndim))
    mean, var = x.mean(axis=axes), x.var(axis=axes)
    return (x - columns(mean, x.ndim)) / np.sqrt(columns(var, x.ndim) + eps), mean, x.var(axis=axes, ddof=1)


@pytest.mark.parametrize("shape", [(8, 4), (8, 4, 3), (8, 4, 3, 2)])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_ghost_batches_are_batches_one_after_another_that_share_one_momentum(shape: Tuple[int, ...], size: int) -> None:
    x = images(shape)
    norm = BatchNorm(4, norm_batch_size=size, eps=1e-3).double()
    mean, var = np.zeros(4), np.ones(4)
    share = {2: 1 - 0.9**0.25, 4: 1 - 0.9**0.5, 8: 0.1}[size]  # 4, 2 and 1 ghost batches
    expected = []
    for ghost in np.split(x.numpy(), 8 // size):
        y, batch_mean, unbiased_var = numpy_batch_norm(ghost, 1e-3)
        expected.append(y)
        mean, var = (1 - share) * mean + share * batch_mean, (1 - share) * var + share * unbiased_var
    np.testing.assert_allclose(norm(x).numpy(), np.concatenate(expected), atol=1e-12)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, atol=1e-12)
    np.testing.assert_allclose(norm.running_var.numpy(), var, atol=1e-12)
    norm.eval()
    expected_eval = (x.numpy() - columns(mean, x.dim())) / np.sqrt(columns(var, x.dim()) + 1e-3)
    np.testing.assert_allclose(norm(x).numpy(), expected_eval, atol=1e-12)


@pytest.mark.parametrize("micro", [2, 4, 8])
def test_splitting_a_batch_into_accumulation_steps_leaves_ghost_statistics_equal(micro: int) -> None:
    x = images((8, 4, 3, 3))
    whole, split = BatchNorm(4, norm_batch_size=2).double(), BatchNorm(4, norm_batch_size=2).double()
    share_statistics(split, None, forwards_per_update=8 // micro)
    outputs = [split(part) for part in x.split(micro)]
    # The same operations on the same numbers.
    assert torch.equal(whole(x), torch.cat(outputs))
    assert torch.equal(whole.running_mean, split.running_mean)
    assert torch.equal(whole.running_var, split.running_var)


@pytest.mark.parametrize(("size", "forwards"), [(8, 1), (2, 1), (2, 4), (4, 16)])
@pytest.mark.parametrize("momentum", [0.1, 0.03, 1.0])
def test_an_update_leaves_the_same_share_of_old_statistics_whatever_its_normalization_batches(
    size: int, forwards: int, momentum: float
) -> None:
    norm = BatchNorm(1, norm_batch_size=size, momentum=momentum).double()
    share_statistics(norm, None, forwards_per_update=forwards)
    norm.running_mean.fill_(100.0)
    x = torch.tensor([1.0, 3.0] * 4, dtype=torch.float64).view(8, 1)  # every ghost batch has the mean 2
    for _ in range(forwards):
        norm(x)
    assert norm.running_mean.item() == pytest.approx(100 * (1 - momentum) + 2 * momentum, rel=1e-12)


def test_batch_norm_refuses_what_it_cannot_honour() -> None:
    with pytest.raises(ValueError, match="not a multiple of norm_batch_size 4; use a micro-batch of 4 or 8"):
        BatchNorm(3, norm_batch_size=4)(torch.ones(6, 3, 2))
    with pytest.raises(ValueError, match="norm_batch_size 8 is larger than the micro-batch 4"):
        BatchNorm(3, norm_batch_size=8)(torch.ones(4, 3, 2))
    for norm, x in ((BatchNorm(3), torch.ones(1, 3)), (BatchNorm(3, norm_batch_size=1), torch.ones(4, 3, 1, 1))):
        with pytest.raises(ValueError, match="more than one value per channel"):
            norm(x)
        norm.eval()(x)  # running statistics need no second value


def shared_step(x: torch.Tensor, weight: torch.Tensor, group: Any, size: Optional[int]) -> Dict[str, Array]:
    """Run one forward and backward of batch norm with PN on this process's images, in float64."""
    layer = NormActFactory(norm="batch", norm_batch_size=size)(4, "silu").double()
    share_statistics(layer, group)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * weight).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    tensors = {"out": out, "dx": x.grad, "dgamma": layer.weight.grad}
    tensors.update(running_mean=layer.norm.running_mean, running_var=layer.norm.running_var)
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def run_shared(rank: int, store: Path, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=2)
    x, weight = images((6, 4, 3, 2), offset=1.0), images((6, 4, 3, 2), 1)
    part = slice(3 * rank, 3 * rank + 3)
    result: Dict[str, Any] = dict(shared_step(x[part], weight[part], dist.group.WORLD, 6))
    try:
        shared_step(x[part], weight[part], dist.group.WORLD, 4)
    except ValueError as error:
        result["error"] = str(error)
    queue.put((rank, result))
    dist.destroy_process_group()


def test_batch_norm_shared_by_two_processes_equals_one_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=run_shared, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    try:
        results = dict(queue.get(timeout=600) for _ in workers)
    finally:
        for worker in workers:
            worker.join(timeout=600)
            if worker.is_alive():
                worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    expected = shared_step(images((6, 4, 3, 2), offset=1.0), images((6, 4, 3, 2), 1), None, None)
    for name in ("out", "dx"):
        np.testing.assert_allclose(np.concatenate([results[0][name], results[1][name]]), expected[name], atol=1e-12)
    # Each process has the gradient of its own images; a backend adds them.
    np.testing.assert_allclose(results[0]["dgamma"] + results[1]["dgamma"], expected["dgamma"], atol=1e-12)
    for rank in range(2):
        for name in ("running_mean", "running_var"):
            np.testing.assert_allclose(results[rank][name], expected[name], atol=1e-12)
        assert "norm_batch_size 4 is not micro-batch 3 x 2 processes" in results[rank]["error"]


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("threshold", [True, False])
def test_filter_response_norm_is_its_formula(shape: Tuple[int, ...], threshold: bool) -> None:
    x, weight, bias, tau = images(shape), images((8,), 1), images((8,), 2), images((8,), 3)
    norm = FilterResponseNorm(8, eps=1e-2, threshold=threshold).double()
    square = (x.numpy() ** 2).mean(axis=tuple(range(2, x.dim())), keepdims=True)
    expected = x.numpy() / np.sqrt(square + 1e-2) * columns(weight.numpy(), x.dim()) + columns(bias.numpy(), x.dim())
    if norm.tau is not None:
        norm.tau.data.copy_(tau)
        expected = np.maximum(expected, columns(tau.numpy(), x.dim()))
    np.testing.assert_allclose(norm(x, weight, bias).detach().numpy(), expected, atol=1e-12)


def test_filter_response_norm_by_hand() -> None:
    # Mean square of (3, 4) is 12.5; tau starts at 0 and cuts the second channel.
    x = torch.tensor([[[3.0, 4.0], [-3.0, -4.0]]])
    expected = torch.tensor([[[3 / 12.5**0.5, 4 / 12.5**0.5], [0.0, 0.0]]])
    torch.testing.assert_close(FilterResponseNorm(2, eps=0.0)(x), expected)


def test_filter_response_norm_needs_positions() -> None:
    with pytest.raises(ValueError, match="spatial dim"):
        FilterResponseNorm(4)(torch.ones(2, 4))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grouping", ["contiguous", "strided"])
@pytest.mark.parametrize("with_activation", [True, False])
def test_evonorm_s0_is_its_formula(shape: Tuple[int, ...], grouping: str, with_activation: bool) -> None:
    x, weight, bias, v = images(shape), images((8,), 1), images((8,), 2), images((8,), 3)
    norm = EvoNormS0(8, 4, grouping=grouping, eps=1e-2, with_activation=with_activation).double()
    std = np.empty_like(x.numpy())
    for n in range(shape[0]):
        for group in range(4):
            members = [c for c in range(8) if group_of_channel(c, 8, 4, grouping) == group]
            std[n, members] = np.sqrt(x.numpy()[n, members].var() + 1e-2)
    expected = x.numpy() / std
    if norm.v is not None:
        norm.v.data.copy_(v)
        expected = expected / (1 + np.exp(-columns(v.numpy(), x.dim()) * x.numpy()))
    expected = expected * columns(weight.numpy(), x.dim()) + columns(bias.numpy(), x.dim())
    np.testing.assert_allclose(norm(x, weight, bias).detach().numpy(), expected, atol=1e-12)


def test_no_norm_leaves_the_affine() -> None:
    x = torch.tensor([[1.0, -2.0]])
    assert IdentityNorm(2)(x, torch.tensor([2.0, 3.0]), torch.tensor([10.0, 20.0])).tolist() == [[12.0, 14.0]]


@pytest.mark.parametrize(
    "norm",
    [GroupNorm(4, 2), BatchNorm(4), IdentityNorm(4), FilterResponseNorm(4), EvoNormS0(4, 2)]
    + [DynamicTanh(4), DynamicErf(4)],
    ids=repr,
)
def test_wrong_shapes_are_refused(norm: nn.Module) -> None:
    with pytest.raises(ValueError, match="built for 4 channels"):
        norm(torch.ones(2, 6, 3, 3))
    for shape in ((4,), (1, 4, 1, 1, 1, 2)):
        with pytest.raises(ValueError, match="2 to 5 dims"):
            norm(torch.ones(shape))


@pytest.mark.parametrize("bad", [0, 3, 16])
def test_groups_that_do_not_divide_are_refused_with_the_divisors(bad: int) -> None:
    for kind in (GroupNorm, EvoNormS0):
        with pytest.raises(ValueError, match=f"num_groups {bad} does not divide 8 channels; use one of 1, 2, 4, 8"):
            kind(8, bad)


def test_weight_standardization_is_its_formula() -> None:
    conv = WeightStandardizedConv2d(4, 6, 3, padding=1, groups=2, bias=True).double()
    x, w = images((2, 4, 5, 5)), conv.weight.detach().numpy()
    axes = (1, 2, 3)
    standardized = (w - w.mean(axis=axes, keepdims=True)) / (w.std(axis=axes, keepdims=True) + 1e-5)
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=True).double()
    assert conv.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(conv.state_dict())
    plain.weight.data.copy_(torch.from_numpy(standardized))
    torch.testing.assert_close(conv(x), plain(x), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(conv, {"weight": weight}, (x,)), conv.weight
    )


def test_weight_standardization_under_autocast_standardizes_in_float32() -> None:
    conv = WeightStandardizedConv2d(4, 6, 3)
    x = images((2, 4, 5, 5)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    # 36 products of bfloat16 numbers around 1.
    torch.testing.assert_close(out.float(), conv(x), rtol=0.02, atol=0.15)


def test_weight_standardization_of_a_zero_kernel_has_finite_gradients() -> None:
    conv = WeightStandardizedConv2d(2, 2, 3)
    nn.init.zeros_(conv.weight)
    conv(torch.ones(1, 2, 3, 3)).sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.isfinite().all()


def test_weight_standardization_refuses_one_weight_per_channel() -> None:
    with pytest.raises(ValueError, match="one weight per output channel"):
        WeightStandardizedConv2d(4, 4, 1, groups=4)
