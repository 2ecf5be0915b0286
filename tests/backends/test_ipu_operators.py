"""PopTorch compiles only the operators it knows: every operator of a training or evaluation step is on this list.

The list is what PopTorch 3.4.0 has handlers for, as far as the networks need it; it was read from the handlers in its
public sources (popart_canonicalization) and its dispatcher.
"""

import itertools
from typing import Any, Dict, List, Set

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from backends.ipu.step import DeviceStep, use_device_grouping, use_plain_operations
from configs.schema.learning import RegularizationConfig
from models import build_model
from normact import NormActFactory
from training.classifier import Classifier
from training.draws import StepDraws
from training.mixing import Mixing

# Views, copies and changes of type; the dispatcher follows them itself.
VIEWS = "_to_copy _unsafe_view alias clone detach expand select slice squeeze t unsqueeze view"
# Made from constants, or computed from the inputs.
CREATION = "arange empty"
POINTWISE = """
abs add addcmul bitwise_and bitwise_or clamp div eq erf exp ge gt isnan lt masked_fill maximum mul ne neg relu rsqrt
rsub sigmoid silu sub tanh where
"""
REDUCTIONS = "mean std_mean sum var"
LAYERS = """
_log_softmax addmm convolution gather max_pool2d_with_indices native_batch_norm native_group_norm stack
"""
# Without a device named, PopTorch warns and takes the IPU.
FACTORIES = """
arange empty full full_like linspace logspace normal ones rand randint randn randperm range tensor zeros zeros_like
"""
SUPPORTED = {name for names in (VIEWS, CREATION, POINTWISE, REDUCTIONS, LAYERS) for name in names.split()}

RESNET: Dict[str, Any] = {"name": "resnet50", "image_size": 64}  # bottlenecks, and the stem with max-pooling
EFFICIENTNET: Dict[str, Any] = {"name": "efficientnet_small_g16", "image_size": 32, "drop": 0.2}
GNPN: Dict[str, Any] = {"norm": "group", "num_groups": 8}
NORMS: List[Dict[str, Any]] = [
    GNPN,
    {**GNPN, "grouping": "strided"},
    {**GNPN, "norm": "group+ws"},
    {"norm": "layer"},
    {"norm": "batch", "proxy": False, "norm_batch_size": 2},
    {"norm": "frn"},
    {"norm": "evonorm_s0", "num_groups": 8},
    {"norm": "dyt"},
    {"norm": "derf"},
    {"norm": "none"},
]


class Recorder(TorchDispatchMode):
    """Notes the operators that run, and those whose operands PopTorch refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Set[str] = set()
        self.unplaced: Set[str] = set()
        self.refused: List[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.names.add(name)
        if name in ("native_group_norm", "native_batch_norm") and (args[1] is None) != (args[2] is None):
            self.refused.append(f"{name} with a weight and no bias, or the reverse")
        return func(*args, **(kwargs or {}))


class Makers(TorchFunctionMode):
    """Notes the functions that make a tensor and do not say on which device."""

    def __init__(self) -> None:
        super().__init__()
        self.unplaced: Set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in FACTORIES.split() and "device" not in kwargs:
            self.unplaced.add(name)
        return func(*args, **kwargs)


def operators_of(network: Dict[str, Any], norm: Dict[str, Any], training: bool) -> Recorder:
    drop = network.get("drop", 0.0)
    model = build_model(
        network["name"], num_classes=10, norm_act=NormActFactory(**norm), drop_rate=drop, drop_path_rate=drop
    )
    use_plain_operations(model)
    use_device_grouping(model)
    mixing = Mixing.of(RegularizationConfig(mixup_alpha=0.2, cutmix_alpha=1.0), network["image_size"])
    draws = StepDraws(mixing, model.drops())
    classifier = Classifier(model, (0.5,) * 3, (0.25,) * 3, label_smoothing=0.1, draws=draws)
    step = DeviceStep(classifier, 2, lambda loss, reduction: loss).train(training)
    images = 2 + (draws.partners if training else 0)
    inputs = [torch.zeros((images, 3, network["image_size"], network["image_size"]), dtype=torch.uint8)]
    inputs += [torch.zeros(images, dtype=torch.int64)]
    inputs += [draws.rows(0, 0, 2, 0, 2)] if training else []
    with Recorder() as recorder, Makers() as makers, torch.no_grad():
        step(*inputs)
    recorder.unplaced = makers.unplaced
    return recorder


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("network", "norm"), [*itertools.product([EFFICIENTNET], NORMS), (RESNET, GNPN)], ids=str)
def test_a_step_uses_only_operators_that_poptorch_has(
    network: Dict[str, Any], norm: Dict[str, Any], training: bool
) -> None:
    recorder = operators_of(network, norm, training)
    assert sorted(recorder.names - SUPPORTED) == []
    assert not recorder.refused
    assert not recorder.unplaced
    assert {"convolution", "addmm", "_log_softmax"} <= recorder.names


def test_strided_groups_are_left_to_the_device_without_moving_channels() -> None:
    plain = operators_of(EFFICIENTNET, GNPN, training=True).names
    assert operators_of(EFFICIENTNET, {**GNPN, "grouping": "strided"}, training=True).names == plain
