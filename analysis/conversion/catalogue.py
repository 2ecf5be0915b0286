"""The networks of other libraries, by family."""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, Iterator, List, Tuple

from torch import nn

from analysis.conversion.survey import Candidate

ImportModule = Callable[[str], Any]


def timm_networks(import_module: ImportModule, *, every: bool) -> Iterator[Candidate]:
    """timm's; a family is the file that builds a network."""
    timm = import_module("timm")
    families: Dict[str, List[str]] = {}
    for name in timm.list_models():
        family = str(timm.models.model_entrypoint(name).__module__).rpartition(".")[2]
        families.setdefault(family, []).append(name)
    for family, names in sorted(families.items()):
        for name in names if every else [_first(names)]:
            shape = timm.models.get_pretrained_cfg(name).input_size
            yield Candidate("timm", family, name, functools.partial(timm.create_model, name), tuple(shape))


def _first(names: List[str]) -> str:
    """Return the shortest name, which tends to be that of a small network."""
    return min(names, key=lambda name: (len(name), name))


def torchvision_networks(import_module: ImportModule, *, every: bool) -> Iterator[Candidate]:
    """torchvision's, but for quantized copies; of detectors the backbone."""
    models = import_module("torchvision.models")
    families: Dict[str, List[str]] = {}
    for name in models.list_models():
        if not name.startswith("quantized_"):
            families.setdefault(str(models.get_model_builder(name).__module__), []).append(name)
    chosen = [(file, name) for file, names in families.items() for name in (names if every else [_first(names)])]
    for module, name in chosen:
        family, is_detector = module.rpartition(".")[2], ".detection." in module
        shape: Tuple[int, ...] = (3, 224, 224)
        if ".video." in module:
            shape = (3, 16, 224, 224) if family in ("mvit", "s3d") else (3, 8, 112, 112)
        elif family in ("inception", "ssd"):
            shape = (3, 300, 300)
        build = functools.partial(_build_torchvision, models.get_model, name, is_detector)
        yield Candidate("torchvision", family, name, build, shape, inputs=2 if ".optical_flow." in module else 1)


def _build_torchvision(get_model: Callable[..., nn.Module], name: str, is_detector: bool) -> nn.Module:
    options: Dict[str, Any] = {"weights_backbone": None} if is_detector or _is_segmentation(name) else {}
    model = get_model(name, weights=None, **options)
    return model.get_submodule("backbone") if is_detector else model


def _is_segmentation(name: str) -> bool:
    return name.startswith(("fcn_", "deeplabv3_", "lraspp_"))


def monai_networks(import_module: ImportModule) -> Iterator[Candidate]:
    """MONAI's convolutional networks with their defaults, in three dimensions where they have them."""
    nets = import_module("monai.networks.nets")
    unet = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2)}
    volumes: Dict[str, Dict[str, Any]] = {
        "UNet": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, **unet, "num_res_units": 2},
        "UNet, batch": {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            **unet,
            "norm": "batch",
            "dropout": 0.1,
        },
        "BasicUNet": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
        "DynUNet": {
            **{"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3]},
            **{"strides": [1, 2, 2], "upsample_kernel_size": [2, 2]},
        },
        "SegResNet": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
        "SegResNetDS": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
        "VNet": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
        "AttentionUnet": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, **unet},
        "HighResNet": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
        "FlexibleUNet": {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0", "spatial_dims": 2},
        "DenseNet121": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
        "resnet18": {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 2},
        "SENet154": {"spatial_dims": 3, "in_channels": 1, "num_classes": 2},
        "EfficientNetBN": {"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 3, "in_channels": 1},
    }
    for name, options in volumes.items():
        shape = (1, 64, 64, 64) if "backbone" not in options else (3, 64, 64)
        build = functools.partial(getattr(nets, name.partition(",")[0]), **options)
        yield Candidate("monai", "monai", name, build, shape)


def segmentation_networks(import_module: ImportModule) -> Iterator[Candidate]:
    """segmentation-models-pytorch: each decoder with its default encoder, resnet34."""
    library = import_module("segmentation_models_pytorch")
    for name in (
        "Unet",
        "UnetPlusPlus",
        "MAnet",
        "Linknet",
        "FPN",
        "PSPNet",
        "PAN",
        "DeepLabV3",
        "DeepLabV3Plus",
        "UPerNet",
    ):
        build = functools.partial(getattr(library, name), encoder_weights=None, classes=2)
        # Below, PAN's smallest map is one pixel of one channel, which no norm over an image normalizes.
        shape = (3, 256, 256) if name == "PAN" else (3, 64, 64)
        yield Candidate("segmentation-models-pytorch", "decoders", name, build, shape)


def nnunet_networks(import_module: ImportModule) -> Iterator[Candidate]:
    """nnU-Net's plain and residual U-Net, as its plans configure them."""
    unet = import_module("dynamic_network_architectures.architectures.unet")
    options: Dict[str, Any] = {
        **{"input_channels": 1, "n_stages": 4, "features_per_stage": (16, 32, 64, 128), "conv_op": nn.Conv3d},
        **{"kernel_sizes": 3, "strides": (1, 2, 2, 2), "num_classes": 2, "n_conv_per_stage_decoder": 2},
        **{"conv_bias": True, "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}},
        **{"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True},
    }
    for name, depth in (("PlainConvUNet", "n_conv_per_stage"), ("ResidualEncoderUNet", "n_blocks_per_stage")):
        build = functools.partial(getattr(unet, name), **options, **{depth: 2})
        yield Candidate("nnU-Net", "dynamic_network_architectures", name, build, (1, 32, 32, 32))


LIBRARIES: Dict[str, Callable[..., Iterator[Candidate]]] = {
    "nnU-Net": nnunet_networks,
    "monai": monai_networks,
    "segmentation-models-pytorch": segmentation_networks,
    "torchvision": torchvision_networks,
    "timm": timm_networks,
}


def candidates(library: str, import_module: ImportModule, *, every: bool) -> Iterator[Candidate]:
    """Return a library's networks: one of each family, or every one (of the smaller libraries: all).

    Raises:
        ImportError: it is not installed.
    """
    list_networks = LIBRARIES[library]
    if library in ("timm", "torchvision"):
        return list_networks(import_module, every=every)
    return list_networks(import_module)
