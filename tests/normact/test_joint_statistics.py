"""Statistics of many layers on one vector: each layer's own, forward and backward, used once and left nowhere."""

import copy
from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import Tensor, nn

from normact import NormAct, NormActFactory
from normact.joint_statistics import JointProxyStatistics

CHANNELS = (8, 24, 8, 16)
FACTORIES: Dict[str, Dict[str, Any]] = {
    "group": {"norm": "group", "num_groups": 4},
    "layer": {"norm": "layer"},
    "batch": {"norm": "batch"},
    "fixed proxy": {"norm": "group", "num_groups": 4, "learn_proxy": False},
    "sampled": {"norm": "group", "num_groups": 4, "proxy_method": "sampled", "num_samples": 50},
}


def layers_of(activations: Tuple[str, ...], **factory: Any) -> nn.ModuleList:
    norm_act = NormActFactory(kernel="reference", **factory)
    layers = nn.ModuleList(
        norm_act(channels, activations[i % len(activations)]) for i, channels in enumerate(CHANNELS)
    ).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layers


def images(dtype: torch.dtype = torch.float64) -> List[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, channels, 4, 4, generator=generator, dtype=torch.float64).to(dtype) for channels in CHANNELS]


def results(layers: nn.ModuleList) -> List[Tensor]:
    """Return outputs, then the gradients of a weighted sum of them in every parameter."""
    inputs = images(next(layers.parameters()).dtype)
    outputs = [layer(x) for layer, x in zip(layers, inputs)]
    total = sum(((i + 1) * output * output.detach().cos()).sum() for i, output in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(total, list(layers.parameters()))]


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("activations", [("relu",), ("silu", "relu")], ids="+".join)
def test_layers_give_and_learn_what_they_do_by_themselves(activations: Tuple[str, ...], factory: str) -> None:
    layers = layers_of(activations, **FACTORIES[factory])
    alone = results(copy.deepcopy(layers))
    JointProxyStatistics(list(layers), torch.float64).hand_out()
    for mine, own in zip(results(layers), alone):  # float64; sums of long vectors run in another order
        torch.testing.assert_close(mine, own, rtol=1e-12, atol=1e-12)


def test_statistics_are_float32_and_what_is_handed_out_has_the_type_that_was_asked_for() -> None:
    layers = layers_of(("relu",), **FACTORIES["group"]).half()
    exact = copy.deepcopy(layers).float()
    JointProxyStatistics(list(exact)).hand_out()
    JointProxyStatistics(list(layers), torch.float16).hand_out()
    for half, single in zip(layers, exact):
        for rounded, computed in zip(half.handed_affine, single.handed_affine):
            assert (rounded.dtype, computed.dtype) == (torch.float16, torch.float32)
            assert torch.equal(rounded, computed.half())  # rounded once, at the end


def test_a_layer_uses_what_it_was_handed_once_and_then_its_own_parameters_again() -> None:
    layer = layers_of(("relu",), **FACTORIES["group"])[0]
    x = images()[0]
    JointProxyStatistics([layer], torch.float64).hand_out()  # type: ignore[list-item]
    before = layer(x)
    with torch.no_grad():
        layer.proxy_beta.add_(1.0)
    assert layer.handed_affine is None
    assert not torch.equal(layer(x), before)


def test_layers_without_proxy_are_left_alone() -> None:
    plain = NormActFactory(norm="group", num_groups=4, proxy=False)(8, "relu")
    projection = NormActFactory(norm="group", num_groups=4)(8, None)
    JointProxyStatistics([plain, projection]).hand_out()
    assert plain.handed_affine is None and projection.handed_affine is None


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm_act = NormActFactory(num_groups=4, kernel="reference")
        self.first, self.second = norm_act(8, "relu"), norm_act(8, "relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def joined() -> Two:
    network = Two()
    layers = [module for module in network.modules() if isinstance(module, NormAct)]
    network.register_forward_pre_hook(JointProxyStatistics(layers))
    return network


def test_as_a_hook_it_leaves_the_names_of_a_checkpoint_and_goes_along_with_copies() -> None:
    network = joined()
    assert network.state_dict().keys() == Two().state_dict().keys()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.first.weight.mul_(2.0)
    x = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    alone = Two()
    alone.load_state_dict(twin.state_dict())
    torch.testing.assert_close(twin(x), alone(x))  # the copy's hook computes with the copy's parameters
    assert not torch.allclose(twin(x), network(x))


def test_a_trace_computes_them_from_the_parameters_once() -> None:
    network = joined()
    x = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    traced = torch.jit.trace(network, x)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count("aten::rsqrt") == 1
    with torch.no_grad():
        network.first.weight.mul_(2.0)
    torch.testing.assert_close(traced(x), network(x))
