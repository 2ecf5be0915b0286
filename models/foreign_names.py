"""What timm and torchvision call the modules of the networks that they share with this package.

Equal architectures, with batch norm of eps 1e-5 on our side (torchvision's efficientnet_b5: 1e-3):

| ours | timm's | torchvision's |
|---|---|---|
| resnet50, resnet101 | resnetv2_50, resnetv2_101 | none: its ResNets are in v1 order |
| efficientnet_b0 ... b5 | efficientnet_b0 ... b5, not tf_efficientnet_*, which pad otherwise | efficientnet_b0 ... b5 |

Not the same as any network here: resnetv2_50d, 50t (deep stem, pooled shortcut) and the BiT networks resnetv2_50x1_bit
and so on (group norm, standardized weights everywhere, another padding of the max-pool): they are refused for their
names or missing running statistics. tf_efficientnet_* cannot be distinguished from efficientnet_* by names and shapes;
loaded here they run, with batch norm of the wrong eps and images padded on the wrong sides. timm names no ResNeXt
in v2 order, but its ResNetV2 with grouped convolutions saves what is loaded here.
"""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, Tuple

from torch import nn

from models.efficientnet import EfficientNet
from models.image_classifier import ImageClassifier
from models.resnet import ResNet

B5_FEATURES = 2048  # no other EfficientNet here has as many


def foreign_names(model: ImageClassifier) -> Dict[str, Dict[str, str]]:
    """{"timm": {timm's name of a tensor: its name here}, ...}, for the packages that have this kind of network."""
    if isinstance(model, ResNet):
        return {"timm": _tensor_names(model, _timm_resnet(model))}
    if isinstance(model, EfficientNet):
        return {
            "timm": _tensor_names(model, _timm_efficientnet(model)),
            "torchvision": _tensor_names(model, _torchvision_efficientnet(model)),
        }
    return {}


def foreign_eps(model: ImageClassifier, source: str) -> float:
    """Return the eps of batch norm in the network of "timm" or "torchvision" that has this network's weights."""
    is_b5 = isinstance(model, EfficientNet) and model.num_features == B5_FEATURES
    return 1e-3 if source == "torchvision" and is_b5 else 1e-5


def _tensor_names(model: nn.Module, modules: Iterable[Tuple[str, str]]) -> Dict[str, str]:
    names = {}
    for foreign, module in modules:
        for tensor in model.get_submodule(module).state_dict():
            # The running statistics belong to the norm within a NormAct; others keep them beside gamma and beta.
            within_norm = tensor[len("norm.") :] if tensor.startswith("norm.") else tensor
            names[f"{foreign}.{within_norm}"] = f"{module}.{tensor}"
    return names


def _timm_resnet(model: ResNet) -> Iterator[Tuple[str, str]]:
    yield "stem.conv", "stem.conv"
    for s, b, block in _blocks(model):
        for name, _ in block.named_children():
            timm_name = "downsample.conv" if name == "projection" else name
            yield f"stages.{s}.blocks.{b}.{timm_name}", f"stages.{s}.{b}.{name}"
    yield "norm", "norm"
    yield "head.fc", "classifier"


_TIMM_WITH_EXPANSION = {
    "conv_pw": "conv1",
    "bn1": "norm1",
    "conv_dw": "conv2",
    "bn2": "norm2",
    "se.conv_reduce": "squeeze_excite.reduce",
    "se.conv_expand": "squeeze_excite.expand",
    "conv_pwl": "conv3",
    "bn3": "norm3",
}
_TIMM_WITHOUT_EXPANSION = {
    "conv_dw": "conv2",
    "bn1": "norm2",
    "se.conv_reduce": "squeeze_excite.reduce",
    "se.conv_expand": "squeeze_excite.expand",
    "conv_pw": "conv3",
    "bn2": "norm3",
}


def _timm_efficientnet(model: EfficientNet) -> Iterator[Tuple[str, str]]:
    yield "conv_stem", "stem.conv"
    yield "bn1", "stem.norm"
    for s, b, block in _blocks(model):
        for timm_name, name in (_TIMM_WITH_EXPANSION if block.has_expansion else _TIMM_WITHOUT_EXPANSION).items():
            yield f"blocks.{s}.{b}.{timm_name}", f"stages.{s}.{b}.{name}"
    yield "conv_head", "top.conv"
    yield "bn2", "top.norm"
    yield "classifier", "classifier"


def _torchvision_efficientnet(model: EfficientNet) -> Iterator[Tuple[str, str]]:
    yield "features.0.0", "stem.conv"
    yield "features.0.1", "stem.norm"
    for s, b, block in _blocks(model):
        place = 0
        for layer in ("1", "2") if block.has_expansion else ("2",):
            yield f"features.{s + 1}.{b}.block.{place}.0", f"stages.{s}.{b}.conv{layer}"
            yield f"features.{s + 1}.{b}.block.{place}.1", f"stages.{s}.{b}.norm{layer}"
            place += 1
        yield f"features.{s + 1}.{b}.block.{place}.fc1", f"stages.{s}.{b}.squeeze_excite.reduce"
        yield f"features.{s + 1}.{b}.block.{place}.fc2", f"stages.{s}.{b}.squeeze_excite.expand"
        yield f"features.{s + 1}.{b}.block.{place + 1}.0", f"stages.{s}.{b}.conv3"
        yield f"features.{s + 1}.{b}.block.{place + 1}.1", f"stages.{s}.{b}.norm3"
    top = len(list(model.stages.children())) + 1
    yield f"features.{top}.0", "top.conv"
    yield f"features.{top}.1", "top.norm"
    yield "classifier.1", "classifier"


def _blocks(model: ImageClassifier) -> Iterator[Tuple[int, int, nn.Module]]:
    for s, stage in enumerate(model.stages.children()):
        for b, block in enumerate(stage.children()):
            yield s, b, block
