"""The networks whose training is measured, each with every norm that it is compared with."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Dict, NamedTuple, Union

import torch
from torch import Tensor, nn

import backends
from backends.torch_native.device import TorchDevice
from configs.schema import BatchConfig, DeviceConfig, OptimizerConfig
from models import build_model
from normact import NormActFactory, affine_parameter_names, recompute_activations
from training.classifier import Classifier

NUM_GROUPS = 8
OPTIMIZER = OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-4)


class ActivationAlone:
    """Makes networks without norms and their affines: the floor below every norm (norm "none" keeps the affine)."""

    recompute = False

    def __call__(self, channels: int, activation: str) -> nn.Module:
        if activation != "relu":
            raise ValueError(f"activation {activation!r}: the measured networks use only ReLU")
        return nn.ReLU()

    def conv2d(self, in_channels: int, out_channels: int, kernel_size: int, **options: Any) -> nn.Conv2d:
        return nn.Conv2d(in_channels, out_channels, kernel_size, **options)


NormAct = Union[NormActFactory, ActivationAlone]
BATCH_NORM, NO_NORM = "batch norm", "no norm"
GNPN, GNPN_RECOMPUTE = "GN+PN", "GN+PN, recompute"
VARIANTS: Dict[str, NormAct] = {
    BATCH_NORM: NormActFactory(norm="batch", proxy=False),
    NO_NORM: ActivationAlone(),
    "GN": NormActFactory(norm="group", num_groups=NUM_GROUPS, proxy=False),
    GNPN: NormActFactory(norm="group", num_groups=NUM_GROUPS),
    GNPN_RECOMPUTE: NormActFactory(norm="group", num_groups=NUM_GROUPS, recompute=True),
    "GN+PN, reference": NormActFactory(norm="group", num_groups=NUM_GROUPS, kernel="reference"),
    "GN+PN, 256 samples": NormActFactory(
        norm="group", num_groups=NUM_GROUPS, kernel="reference", proxy_method="sampled", num_samples=256
    ),
}


class Workload(NamedTuple):
    """A network at a batch and image size, and how it is executed."""

    network: str
    images: int
    image_size: int
    execution: str
    num_classes: int

    @property
    def name(self) -> str:
        return f"{self.network}, {self.image_size} px, batch {self.images}, {self.execution}"

    @property
    def is_bfloat16(self) -> bool:
        return self.execution == CHANNELS_LAST_BFLOAT16


NCHW_FLOAT32, CHANNELS_LAST_BFLOAT16 = "NCHW float32", "channels_last bfloat16"
WORKLOADS = tuple(
    Workload(network, images, image_size, execution, num_classes)
    for network, images, image_size, num_classes in (("resnet20", 128, 32, 10), ("resnet50", 16, 96, 1000))
    for execution in (NCHW_FLOAT32, CHANNELS_LAST_BFLOAT16)
)


def autocast(workload: Workload) -> ContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if workload.is_bfloat16 else nullcontext()


def build_network(workload: Workload, norm_act: NormAct) -> nn.Module:
    """Return the network of a workload, in training mode, with the same weights for every norm."""
    torch.manual_seed(0)
    model: nn.Module = build_model(
        workload.network,
        num_classes=workload.num_classes,
        norm_act=norm_act,  # type: ignore[arg-type]  # as a factory
    ).train()
    if workload.is_bfloat16:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch
    return model


def images_of(workload: Workload) -> Tensor:
    x = torch.randn(workload.images, 3, workload.image_size, workload.image_size)
    return x.contiguous(memory_format=torch.channels_last) if workload.is_bfloat16 else x


def training_step(workload: Workload, norm_act: NormAct) -> Callable[[], None]:
    """Return a function that makes one weight update as train.py does: one CPU micro-batch, SGD with momentum."""
    model = build_network(workload, norm_act)
    if norm_act.recompute:
        recompute_activations(model)
    precision: Any = "bfloat16" if workload.is_bfloat16 else "float32"
    device = TorchDevice(DeviceConfig(name="cpu", precision=precision, channels_last=workload.is_bfloat16))
    images = workload.images
    settled = device.settle(
        backends.Workload(
            network=model,
            uses_batch_norm=True,  # of the whole batch; the other norms do not ask
            image_size=workload.image_size,
            in_channels=3,
            training_images=images,
            saved_bytes_per_image=1,  # the micro-batch is given
            batch=BatchConfig(global_batch_size=images, norm_batch_size=images, micro_batch_size=images),
            optimizer=OPTIMIZER,
        )
    )
    classifier = Classifier(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    session = settled.start(classifier, affine_parameter_names(model), seed=0)
    pixels = torch.randint(0, 256, (workload.images, 3, workload.image_size, workload.image_size), dtype=torch.uint8)
    labels = torch.randint(0, workload.num_classes, (workload.images,))

    def step() -> None:
        # A rate of 0 keeps the weights, and so every step's numbers, the same.
        session.train_step((pixels, labels), step=0, learning_rate=0.0)

    return step
