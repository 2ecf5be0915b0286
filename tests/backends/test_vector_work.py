"""Proxy Normalization's operations on vectors that an IPU has to run, before and after stages compute them jointly."""

from typing import Any, List, Sequence, Tuple

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from backends.ipu.placement import begin_stages, join_statistics, layers_by_stage
from backends.ipu.step import DeviceStep, use_plain_operations
from backends.plan.execution import Execution
from backends.plan.small_operations import small_operations
from backends.plan.stages import cut_stages
from backends.plan.trace import trace_network
from models import build_model
from normact import NormAct, NormActFactory
from training.classifier import Classifier

NODES = (129, 200)  # of the quadratures: (nodes, C)
ONE_STAGE: Tuple[str, ...] = ()
FOUR_STAGES = ("stages.1.0", "stages.2.0", "stages.3.0")


class VectorOperations(TorchDispatchMode):
    """Counts, for each stage, operations all of whose tensors are per channel. Views are left out."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.counts, self.stage = [0] * stages, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_flatten(t)[0] if isinstance(x, torch.Tensor)] for t in ((args, kwargs), result))
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        is_new = func._schema.is_mutable or any(tensor.untyped_storage()._cdata not in storages for tensor in made)
        tensors = given + made
        # torch's formula for the gradient of addcmul; PopART, which differentiates a product and a sum, has none.
        is_times_one = func is torch.ops.aten.mul.Scalar and args[0].dim() > 2 and args[1] == 1
        if (
            is_new
            and not is_times_one
            and all(per_channel(t) for t in tensors)
            and any(t.numel() >= 16 for t in tensors)
        ):
            self.counts[self.stage] += 1
        return result


def per_channel(tensor: torch.Tensor) -> bool:
    is_quadrature = tensor.dim() == 2 and tensor.shape[0] in NODES
    return is_quadrature or sum(size > 1 for size in tensor.shape) <= 1


def network_of(name: str, proxy: bool = True) -> nn.Module:
    norm_act = NormActFactory(norm="group", num_groups=8 if name == "resnet50" else 4, proxy=proxy)
    with torch.device("meta"):  # computes nothing, so it takes no time
        network = build_model(name, num_classes=10, norm_act=norm_act)
    use_plain_operations(network)
    return network


def counted(network: nn.Module, splits: Sequence[str], joint: bool) -> Tuple[List[int], List[int]]:
    """Operations on vectors of each stage, forward and backward, in one training step."""
    begins = trace_network(network, 64).begins
    counter = VectorOperations(len(splits) + 1)

    def begin_block(module: nn.Module, user_id: str, ipu_id: int) -> None:
        def enter(_: nn.Module, inputs: Any) -> None:
            counter.stage = ipu_id
            inputs[0].register_hook(lambda gradient: setattr(counter, "stage", ipu_id - 1))

        module.register_forward_pre_hook(enter)

    begin_stages(network, splits, begin_block)
    if joint:
        join_statistics(network, splits, begins, torch.float32)
    classifier = Classifier(network, (0.5,) * 3, (0.25,) * 3, label_smoothing=0.1).to("meta")
    step = DeviceStep(classifier, 2, lambda loss, reduction: loss)
    images = torch.zeros((2, 3, 64, 64), dtype=torch.uint8, device="meta")
    with counter:
        loss = step(images, torch.zeros(2, dtype=torch.int64, device="meta"))[0]
    forward, counter.counts = counter.counts, [0] * (len(splits) + 1)
    with counter:
        torch.autograd.grad(loss, list(network.parameters()))
    return forward, counter.counts


def test_resnet50_has_two_thousand_operations_on_vectors_without_joining() -> None:
    (forward,), (backward,) = counted(network_of("resnet50"), ONE_STAGE, joint=False)
    assert forward > 2000 and backward > 4000  # 41 and about 90 a layer
    (plain,), (plain_backward,) = counted(network_of("resnet50", proxy=False), ONE_STAGE, joint=False)
    assert (plain, plain_backward) == (0, 0)


@pytest.mark.parametrize("splits", [ONE_STAGE, FOUR_STAGES], ids=["one stage", "four stages"])
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b2"])
def test_a_stage_has_fewer_than_two_hundred_each_way(name: str, splits: Sequence[str]) -> None:
    if name == "efficientnet_b2":
        splits = splits and ("stages.2.0", "stages.3.0", "stages.5.0")
    forward, backward = counted(network_of(name), splits, joint=True)
    assert all(0 < count < 200 for count in (*forward, *backward))


def test_a_further_layer_costs_slices_and_two_sums_of_gradients_alone() -> None:
    (forward,), (backward,) = counted(network_of("resnet50"), ONE_STAGE, joint=True)
    of_stages = counted(network_of("resnet50"), FOUR_STAGES, joint=True)
    layers = sum(
        isinstance(module, NormAct) and module.proxy is not None for module in network_of("resnet50").modules()
    )
    assert layers == 49
    alone = backward - 2 * layers  # of the joint vector; gamma and beta of each layer are its norm's affine too
    assert of_stages[0] == [forward] * 4
    assert sum(of_stages[1]) == 4 * alone + 2 * layers


def test_layers_belong_to_the_stage_in_which_they_run() -> None:
    network = network_of("resnet50")
    stages = layers_by_stage(network, FOUR_STAGES, trace_network(network, 64).begins)
    names = {module: name for name, module in network.named_modules()}
    parts = [sorted({names[layer].rsplit(".", 2)[0] for layer in stage}) for stage in stages]
    assert parts == [["stages.0"], ["stages.1"], ["stages.2"], ["norm", "stages.3"]]  # v2: the last norm is at the end


@pytest.mark.parametrize("splits", [ONE_STAGE, FOUR_STAGES], ids=["one stage", "four stages"])
def test_the_planner_prices_about_as_many_as_run_and_the_padding_of_gradients(splits: Sequence[str]) -> None:
    network = network_of("resnet50")
    trace = trace_network(network, 64)
    forward, backward = counted(network, splits, joint=True)
    execution = Execution(8, 8, splits=tuple(splits), recompute=False)
    for stage, layers, ahead, back in zip(
        cut_stages(trace, splits), layers_by_stage(network, splits, trace.begins), forward, backward
    ):
        padded = 2 * sum(layer.proxy is not None for layer in layers)  # PopART pads the gradient of each slice
        assert small_operations(stage, execution).run == pytest.approx(ahead + back + padded, rel=0.1)
