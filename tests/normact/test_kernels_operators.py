"""The fused operators inside torch: compiling, functional transforms, checkpointing, recomputation."""

from __future__ import annotations

import gc
import weakref
from typing import List

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normact import NormActFactory, kernels
from normact.kernels.arguments import LayerArguments, ProxyArguments

ARGUMENTS = dict(num_groups=2, grouping="contiguous", activation="silu", eps=1e-5)


pytestmark = pytest.mark.usefixtures("built_kernels")


def parameters(channels: int = 4) -> List[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [(1.0 + 0.3 * torch.randn(channels, generator=generator)).requires_grad_() for _ in range(4)]


def layer(x: Tensor, weight: Tensor, bias: Tensor, proxy_beta: Tensor, proxy_gamma: Tensor) -> Tensor:
    mean, inverse_std = kernels.fused_proxy_statistics("silu", weight, bias, proxy_beta, proxy_gamma, 0.03)
    return kernels.fused_norm_act(x, weight, bias, mean, inverse_std, **ARGUMENTS)


@pytest.mark.parametrize(
    "name", ["norm_act", "norm_act_again", "norm_act_backward", "norm_act_differentiable_backward"]
)
def test_arguments_of_a_layer_stand_in_every_schema_as_in_python(name: str) -> None:
    schema = [argument.name for argument in getattr(torch.ops.normact, name).default._schema.arguments]
    start = schema.index("weight")
    assert tuple(schema[start : start + len(LayerArguments._fields)]) == LayerArguments._fields


@pytest.mark.parametrize("backward", ["", "_backward", "_differentiable_backward"])
def test_parameters_of_a_proxy_stand_in_every_schema_as_in_python(backward: str) -> None:
    operator = getattr(torch.ops.normact, f"proxy_statistics{backward}").default
    schema = [argument.name for argument in operator._schema.arguments]
    start = schema.index("weight")
    assert tuple(schema[start : start + len(ProxyArguments._fields)]) == ProxyArguments._fields


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_operators_pass_torchs_own_checks(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 4, 3, 5).contiguous(memory_format=memory_format).requires_grad_()
    weight, bias, proxy_beta, proxy_gamma = parameters()
    torch.library.opcheck(
        torch.ops.normact.proxy_statistics.default, ("silu", weight, bias, proxy_beta, proxy_gamma, 0.03)
    )
    with torch.no_grad():
        mean, inverse_std = kernels.fused_proxy_statistics("silu", weight, bias, proxy_beta, proxy_gamma, 0.03)
    arguments = (x, weight, bias, mean.requires_grad_(), inverse_std.requires_grad_(), 2, False, "silu", 1e-5)
    torch.library.opcheck(torch.ops.normact.norm_act.default, arguments)
    with torch.no_grad():
        out, statistics = torch.ops.normact.norm_act(*arguments)
        plain = [t.detach() for t in arguments[:5]]
        settings = (2, False, "silu")
        torch.library.opcheck(
            torch.ops.normact.norm_act_backward.default, (out, plain[0], statistics, *plain[1:], *settings)
        )
        torch.library.opcheck(torch.ops.normact.norm_act_again.default, (plain[0], statistics, *plain[1:], *settings))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_equal_finite_differences(memory_format: torch.memory_format) -> None:
    # Differences of float32 values: a step of 1e-2 leaves 1e-4 of curvature and 1e-5 of rounding.
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, 3, 5, generator=generator).contiguous(memory_format=memory_format).requires_grad_()
    with pytest.warns(UserWarning, match="double precision"):
        assert torch.autograd.gradcheck(layer, (x, *parameters()), eps=1e-2, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_compiled_layer_equals_the_eager_one(memory_format: torch.memory_format) -> None:
    results = []
    for function in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        leaves = parameters()
        out = function(x, *leaves)
        out.square().sum().backward()
        results.append([out, x.grad, *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_export_keeps_the_operator() -> None:
    module = NormActFactory(norm="group", num_groups=2, kernel="fused")(4, "relu")
    exported = torch.export.export(module, (torch.randn(2, 4, 5, 5),))
    names = {str(node.target) for node in exported.graph.nodes}
    assert "normact.norm_act.default" in names
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(exported.module()(x), module(x))


def test_functional_gradients_equal_backward() -> None:
    x, leaves = torch.randn(2, 4, 5, 5), parameters()
    gradient = torch.func.grad(lambda weight: layer(x, weight, *leaves[1:]).square().sum())(leaves[0].detach())
    layer(x, *leaves).square().sum().backward()
    # torch.func differentiates with create_graph, and so by ordinary operations: float32 sums in another order.
    torch.testing.assert_close(gradient, leaves[0].grad, rtol=1e-4, atol=1e-4)


def test_checkpointing_gives_the_same_gradients() -> None:
    results = []
    for use_checkpoint in (False, True):
        x, leaves = torch.linspace(-1, 1, 200).reshape(2, 4, 5, 5).requires_grad_(), parameters()
        out = checkpoint(layer, x, *leaves, use_reentrant=False) if use_checkpoint else layer(x, *leaves)
        out.square().sum().backward()
        results.append([x.grad, *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_forward_mode_derivative_of_the_operator_itself_is_refused_in_words() -> None:
    x, leaves = torch.randn(2, 4, 5, 5), parameters()
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda v: layer(v, *leaves), (x,), (torch.ones_like(x),))


def test_bfloat16_autocast_with_float32_parameters_stays_bfloat16() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), NormActFactory(norm="group", num_groups=2, kernel="fused")(8, "relu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(torch.randn(2, 3, 8, 8))
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and module[1].weight.grad.dtype == torch.float32


# ---- recomputation --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two layers; the first one's output feeds two convolutions."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(4)])
        self.rows = nn.ParameterList([nn.Parameter(p.detach()) for _ in range(2) for p in parameters(8)])
        self.recompute = recompute

    def norm_act(self, x: Tensor, index: int) -> Tensor:
        rows = list(self.rows)[4 * index : 4 * index + 4]
        mean, inverse_std = kernels.fused_proxy_statistics("silu", *rows, 0.03)  # type: ignore[call-arg]
        return kernels.fused_norm_act(x, rows[0], rows[1], mean, inverse_std, recompute=self.recompute, **ARGUMENTS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_act(self.convs[0](x), 0)
        y = self.convs[1](y) + self.convs[2](y)
        return self.convs[3](self.norm_act(y, 1))


def train(recompute: bool, x: Tensor, micro_batches: int = 2) -> List[Tensor]:
    net = Net(recompute)
    for _ in range(micro_batches):
        with kernels.recomputed_activations():
            out = net(x)
        out.square().sum().backward()
    return [p.grad for p in net.parameters()]  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_gradients_are_bit_identical(dtype: torch.dtype) -> None:
    x = torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected, got = train(False, x), train(True, x)
    assert all(torch.equal(a, b) for a, b in zip(expected, got))


def test_an_output_with_recompute_is_not_kept_for_backward() -> None:
    kept = []
    for recompute in (False, True):
        net = Net(recompute)
        with kernels.recomputed_activations():
            y = net.norm_act(net.convs[0](torch.randn(2, 8, 6, 6)), 0)
            out = net.convs[1](y)
        # Unpacking gives the very memory of y, or a recomputed copy of it.
        saved = out.grad_fn._saved_input
        assert torch.equal(saved, y)
        kept.append(saved.data_ptr() == y.data_ptr())
    assert kept == [True, False]


def test_recomputation_leaves_no_cycle_behind() -> None:
    gc.collect()
    gc.disable()
    try:
        net = Net(True)
        with kernels.recomputed_activations():
            hidden = net.norm_act(net.convs[0](torch.randn(2, 8, 6, 6)), 0)
            out = net.convs[1](hidden)
        watched = weakref.ref(hidden)
        del hidden, out
        assert watched() is None
    finally:
        gc.enable()


def test_an_input_changed_before_backward_is_an_error() -> None:
    net = Net(True)
    x = net.convs[0](torch.randn(2, 8, 6, 6))
    with kernels.recomputed_activations():
        out = net.convs[1](net.norm_act(x, 0))
    with torch.no_grad():
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        out.sum().backward()


def test_an_output_changed_in_place_is_saved_as_it_is() -> None:
    results = []
    for recompute in (False, True):
        net = Net(recompute)
        with kernels.recomputed_activations():
            y = net.norm_act(net.convs[0](torch.ones(2, 8, 6, 6)), 0)
            y.mul_(2.0)
            net.convs[1](y).square().sum().backward()
        results.append(net.convs[1].weight.grad)
    assert torch.equal(*results)


def test_evaluation_inside_the_context_saves_nothing() -> None:
    net = Net(True)
    with kernels.recomputed_activations(), torch.no_grad():
        out = net(torch.randn(2, 8, 6, 6))
    assert out.grad_fn is None
