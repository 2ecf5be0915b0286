"""Take over the weights of timm's networks of the same architecture.

Equal architectures, with batch norm of eps 1e-5 on our side:

| ours | timm's |
|---|---|
| resnet50, resnet101 | resnetv2_50, resnetv2_101: 7x7 stem padded by 3, max-pool padded by 1, plain convolutions |
| efficientnet_b0 ... b5 | efficientnet_b0 ... b5, padded symmetrically; not tf_efficientnet_*, which pad otherwise |

Not the same as any network here: resnetv2_50d, 50t (deep stem, pooled shortcut) and the BiT networks resnetv2_50x1_bit
and so on (group norm, standardized weights everywhere, another padding of the max-pool): they are refused for their
names or missing running statistics. tf_efficientnet_* cannot be told from efficientnet_* by names and shapes; loaded
here they run, with batch norm of the wrong eps and images padded on the wrong sides. timm names no ResNeXt in v2 order,
but its ResNetV2 with grouped convolutions saves what is loaded here. The 1x1 convolution that classifies in timm's
ResNets becomes a linear layer.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Mapping, Tuple, Union

import torch
from torch import nn

from models.efficientnet import EfficientNet
from models.resnet import ResNet

_SHOWN = 5


def load_timm_state_dict(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Copy a timm state dict into a network built with batch norm, all of it or nothing.

    Args:
        model: a ResNet or EfficientNet of this package, with as many classes as the state dict.
        state_dict: of the timm network of the same architecture.

    dtype: values are converted to the type of the model's own parameters.

    Raises:
        TypeError: no timm network corresponds to this kind of model.
        ValueError: tensors are missing, left over or of another shape; they are listed by their timm names.
    """
    own = model.state_dict()
    timm_names = _timm_names(model)
    missing = [timm_name for timm_name in timm_names if timm_name not in state_dict]
    # A count of updates, which timm's batch norm keeps and never reads; ours has none.
    counters = {f"{timm_name[: -len('.running_mean')]}.num_batches_tracked" for timm_name in timm_names}
    unexpected = [timm_name for timm_name in state_dict if timm_name not in timm_names and timm_name not in counters]
    loaded: Dict[str, torch.Tensor] = {}
    shapes: List[str] = []
    for timm_name, name in timm_names.items():
        if timm_name not in state_dict:
            continue
        tensor = state_dict[timm_name]
        if timm_name == "head.fc.weight" and tensor.dim() == 4:
            tensor = tensor.flatten(1)  # timm's ResNets classify by a 1x1 convolution
        if tensor.shape != own[name].shape:
            shapes.append(f"{timm_name} {tuple(tensor.shape)}, here {name} {tuple(own[name].shape)}")
        loaded[name] = tensor
    differences = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(differences.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in differences.items() if names)
        raise ValueError(
            f"the timm state dict does not fit this {type(model).__name__}, nothing was loaded. {listed}. "
            "Use the timm network of the same architecture, batch norm without proxy norm here, "
            "and the number of classes of the state dict (reset_classifier can follow)"
        )
    model.load_state_dict(loaded)


def _first(names: List[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _timm_names(model: nn.Module) -> Dict[str, str]:
    """timm's name of each tensor of the model -> its name here."""
    if isinstance(model, ResNet):
        modules = _resnet_modules(model)
    elif isinstance(model, EfficientNet):
        modules = _efficientnet_modules(model)
    else:
        raise TypeError(f"timm weights fit a ResNet or EfficientNet of this package, not a {type(model).__name__}")
    names = {}
    for timm_module, module in modules:
        for tensor in model.get_submodule(module).state_dict():
            # The running statistics belong to the norm within a NormAct; timm keeps them beside gamma and beta.
            within_norm = tensor[len("norm.") :] if tensor.startswith("norm.") else tensor
            names[f"{timm_module}.{within_norm}"] = f"{module}.{tensor}"
    return names


def _resnet_modules(model: ResNet) -> Iterator[Tuple[str, str]]:
    yield "stem.conv", "stem.conv"
    for s, b, block in _blocks(model):
        for name, _ in block.named_children():
            timm_name = "downsample.conv" if name == "projection" else name
            yield f"stages.{s}.blocks.{b}.{timm_name}", f"stages.{s}.{b}.{name}"
    yield "norm", "norm"
    yield "head.fc", "classifier"


_WITH_EXPANSION = {
    "conv_pw": "conv1",
    "bn1": "norm1",
    "conv_dw": "conv2",
    "bn2": "norm2",
    "se.conv_reduce": "squeeze_excite.reduce",
    "se.conv_expand": "squeeze_excite.expand",
    "conv_pwl": "conv3",
    "bn3": "norm3",
}
_WITHOUT_EXPANSION = {
    "conv_dw": "conv2",
    "bn1": "norm2",
    "se.conv_reduce": "squeeze_excite.reduce",
    "se.conv_expand": "squeeze_excite.expand",
    "conv_pw": "conv3",
    "bn2": "norm3",
}


def _efficientnet_modules(model: EfficientNet) -> Iterator[Tuple[str, str]]:
    yield "conv_stem", "stem.conv"
    yield "bn1", "stem.norm"
    for s, b, block in _blocks(model):
        for timm_name, name in (_WITH_EXPANSION if block.has_expansion else _WITHOUT_EXPANSION).items():
            yield f"blocks.{s}.{b}.{timm_name}", f"stages.{s}.{b}.{name}"
    yield "conv_head", "top.conv"
    yield "bn2", "top.norm"
    yield "classifier", "classifier"


def _blocks(model: Union[ResNet, EfficientNet]) -> Iterator[Tuple[int, int, nn.Module]]:
    for s, stage in enumerate(model.stages.children()):
        for b, block in enumerate(stage.children()):
            yield s, b, block
