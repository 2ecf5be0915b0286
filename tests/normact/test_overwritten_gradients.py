"""Backward writes dx over the incoming gradient where nothing else can read it, with the same bits."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_reference import ACTIVATIONS, example, fused
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from normact import NormActFactory

SHAPE = (4, 16, 32, 32)
NODE = "NormActBackward"
pytestmark = pytest.mark.usefixtures("built_kernels")


class Watched(TorchDispatchMode):
    """Changes nothing; under any mode, which might keep what it sees, no gradient is overwritten."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def bytes_in_the_node(backward: Callable[[], Any]) -> int:
    """Return what the layer's backward allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        backward()
    (node,) = [event for event in profiler.key_averages() if event.key == NODE]
    return int(node.cpu_memory_usage)


def layer(seed: int = 3) -> Tuple[Tensor, Tensor]:
    tensors = example(SHAPE, seed)
    return tensors["x"], fused(tensors, "relu", 4, "contiguous", True)


def test_a_gradient_that_nothing_else_holds_is_overwritten() -> None:
    _, out = layer()
    size = out.numel() * out.element_size()
    assert bytes_in_the_node((out * 2.0).mul(torch.randn(SHAPE)).sum().backward) < size


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("grouping", ["contiguous", "strided"])
def test_the_gradients_are_the_same_to_the_bit(grouping: str, activation: str, dtype: torch.dtype, layout: str) -> None:
    for shape in ((2, 8, 5, 7), (3, 12, 16, 16), (1, 4, 3, 3), (2, 64, 1, 1), (2, 6, 33, 2)):
        incoming = example(shape, 5, dtype, layout)["x"].detach()
        results: List[List[Tensor]] = []
        for is_alone in (True, False):
            tensors = example(shape, 4, dtype, layout)
            out = fused(tensors, activation, 2, grouping, True)
            if is_alone:
                (out * incoming).sum().backward()  # one times it, in a tensor of the graph's own
            else:
                kept = incoming.clone()
                out.backward(kept)
                assert torch.equal(kept, incoming)
            results.append([tensor.grad for tensor in tensors.values() if tensor.grad is not None])
        assert len(results[0]) == 5
        for one, other in zip(*results):
            assert torch.equal(one, other), (shape, activation)
            assert one.stride() == other.stride()


def keep_by_retain_grad(out: Tensor, seen: Dict[str, Any]) -> None:
    out.retain_grad()
    seen["gradient"] = lambda: out.grad


def keep_in_a_hook(out: Tensor, seen: Dict[str, Any]) -> None:
    out.register_hook(lambda gradient: seen.__setitem__("gradient", lambda: gradient))


def keep_a_view_in_a_hook(out: Tensor, seen: Dict[str, Any]) -> None:
    def hook(gradient: Tensor) -> None:
        view = gradient.flatten()
        seen["gradient"] = lambda: view.view(SHAPE)

    out.register_hook(hook)


def keep_numpy_memory_in_a_hook(out: Tensor, seen: Dict[str, Any]) -> None:
    def hook(gradient: Tensor) -> None:
        array = gradient.numpy()
        seen["gradient"] = lambda: torch.from_numpy(array)

    out.register_hook(hook)


def hand_over_numpy_memory(out: Tensor, seen: Dict[str, Any]) -> None:
    array = np.empty(SHAPE, np.float32)

    def hook(gradient: Tensor) -> Tensor:
        array[...] = gradient.numpy()
        return torch.from_numpy(array)

    out.register_hook(hook)
    seen["gradient"] = lambda: torch.from_numpy(array)


def hand_over_shared_memory(out: Tensor, seen: Dict[str, Any]) -> None:
    shared = torch.empty(SHAPE).share_memory_()
    out.register_hook(lambda gradient: shared.copy_(gradient).detach())
    seen["gradient"] = lambda: shared


def keep_in_a_node_hook(out: Tensor, seen: Dict[str, Any]) -> None:
    assert out.grad_fn is not None
    out.grad_fn.register_hook(lambda dx, gradient: seen.__setitem__("gradient", lambda: gradient[0]))


def keep_in_a_node_prehook(out: Tensor, seen: Dict[str, Any]) -> None:
    assert out.grad_fn is not None
    out.grad_fn.register_prehook(lambda gradient: seen.__setitem__("gradient", lambda: gradient[0]))


@pytest.mark.parametrize(
    "keep",
    [
        keep_by_retain_grad, keep_in_a_hook, keep_a_view_in_a_hook, keep_numpy_memory_in_a_hook, hand_over_numpy_memory,
        hand_over_shared_memory, keep_in_a_node_hook, keep_in_a_node_prehook,
    ],
)  # fmt: skip
def test_a_gradient_that_something_else_holds_is_left_alone(keep: Callable[[Tensor, Dict[str, Any]], None]) -> None:
    incoming = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x, out = layer()
    seen: Dict[str, Any] = {}
    keep(out, seen)
    (out * incoming).sum().backward()
    assert torch.equal(seen["gradient"](), incoming)
    y, other = layer()
    other.backward(incoming.clone())
    assert x.grad is not None and y.grad is not None and torch.equal(x.grad, y.grad)


def test_a_gradient_that_is_a_result_too_is_left_alone() -> None:
    incoming = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x, out = layer()
    to_out, _ = torch.autograd.grad((out * incoming).sum(), [out, x])
    assert torch.equal(to_out, incoming)


def test_branches_that_share_a_gradient_each_read_it() -> None:
    incoming = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for order in ((0, 1), (1, 0)):
        leaves = [layer(seed) for seed in (3, 4)]
        first, second = (leaves[index][1] for index in order)
        ((first + second.flatten(1).view(SHAPE)) * incoming).sum().backward()
        for seed, (x, _) in zip((3, 4), leaves):
            y, out = layer(seed)
            out.backward(incoming.clone())
            assert x.grad is not None and y.grad is not None and torch.equal(x.grad, y.grad)


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    x, out = layer()
    loss = (out * torch.randn(SHAPE)).sum()
    (first,) = torch.autograd.grad(loss, [x], retain_graph=True)
    copy = first.clone()
    (second,) = torch.autograd.grad(loss, [x])
    assert torch.equal(first, copy)
    assert torch.equal(second, copy)


STEPS = ("layer", "convolution", "add", "add a view", "twice", "clone", "retain")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), min_size=1, max_size=8), st.booleans())
def test_any_graph_has_the_gradients_of_one_without_overwriting(
    steps: List[Tuple[str, int]], channels_last: bool
) -> None:
    assert_same_gradients(steps, torch.channels_last if channels_last else torch.contiguous_format)


def assert_same_gradients(steps: List[Tuple[str, int]], memory_format: torch.memory_format) -> None:
    results = []
    for is_watched in (False, True):
        generator = torch.Generator().manual_seed(1)
        torch.manual_seed(1)
        x = torch.randn(2, 8, 6, 6, generator=generator).contiguous(memory_format=memory_format).requires_grad_()
        values, wanted = [x], [x]
        for step, index in [("layer", 0), *steps, ("layer", 0)]:
            value, earlier = values[-1], values[index % len(values)]
            if step == "layer":
                module = NormActFactory("group", num_groups=2, proxy=True)(8, "relu")
                value = module(value)
                wanted.extend(module.parameters())
            elif step == "convolution":
                weight = torch.randn(8, 8, 3, 3, generator=generator).div(8).requires_grad_()
                value = torch.nn.functional.conv2d(value, weight, padding=1)
                wanted.append(weight)
            elif step == "add":
                value = value + earlier
            elif step == "add a view":
                value = value + earlier.flatten(1).view(x.shape)
            elif step == "twice":
                value = torch.cat((value, earlier), 1)[:, 4:12]
            elif step == "clone":
                value = value.clone()
            else:
                value.retain_grad()
                wanted.append(value)
            values.append(value)
        loss = (values[-1] * torch.randn(x.shape, generator=generator)).sum()
        if is_watched:
            with Watched():
                loss.backward()
        else:
            loss.backward()
        results.append([tensor.grad for tensor in wanted])
    for one, other in zip(*results):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)
