"""An experiment made ready: configuration -> data -> network -> batch plan, placed on a device.

train.py, evaluate.py and analyze.py begin here, so that all of them build the same network from the same file.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Dict, Tuple

import torch
from torch import nn

from backends import Backend
from configs import BatchPlan, Config, ConfigError, plan_batch
from datasets import DataSets, build_datasets
from models import build_model
from models.cost import Cost, measure_cost
from proxynorm import (
    NormActFactory,
    affine_parameter_names,
    has_fused_kernels,
    rebuild_activations,
    share_statistics,
)
from training.classifier import Classifier
from training.resume import execution_facts


@dataclass(frozen=True)
class Run:
    """Everything that is settled before the first step."""

    name: str
    config: Config
    backend: Backend
    data: DataSets
    factory: NormActFactory
    plan: BatchPlan
    cost: Cost

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data.train) // self.plan.global_batch_size

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.schedule.epochs

    @property
    def norm_record(self) -> Dict[str, Any]:
        """What decides how saved weights are to be read; checkpoints keep it."""
        return {"name": self.factory.norm, "num_groups": self.factory.num_groups, "grouping": self.factory.grouping}

    @property
    def execution(self) -> Dict[str, Any]:
        """What decides the result to the last bit, besides the configuration."""
        return execution_facts(self.plan, self.backend.name, self.config, has_fused_kernels())


def prepare(name: str, config: Config, backend: Backend) -> Run:
    """Data, network and batch plan, placed on the device."""
    data = build_datasets(config.data, config.run.seed)
    factory, network = build_network(config, data)
    uses_batch_norm = factory.uses_batch_norm
    # Batch norm has no fused kernel, so what it saves can be counted without computing it on many images.
    measured = copy.deepcopy(network).to("meta") if uses_batch_norm else network
    try:
        cost = measure_cost(measured, data.image_size, in_channels=data.channels, images=config.batch.norm_batch_size)
    except ValueError as error:  # images too small for the network
        raise ConfigError(str(error)) from error
    plan = plan_batch(
        config.batch,
        uses_batch_norm=uses_batch_norm,
        replicas=backend.replicas,
        local_replicas=backend.local_replicas,
        max_micro_batch_size=backend.max_micro_batch_size(cost.saved_bytes_per_image),
        can_share_statistics=backend.can_share_statistics,
    )
    run = Run(name, config, backend, data, factory, plan, cost)
    if run.steps_per_epoch == 0:
        raise ConfigError(
            f"batch.global_batch_size {plan.global_batch_size} is more than the {len(data.train)} training images of "
            f"{config.data.name}; lower it to {len(data.train)} or less"
        )
    share_statistics(network, backend.norm_group(plan))
    if config.norm.recompute:
        rebuild_activations(network)
    classifier = Classifier(network, data.mean, data.std, config.regularization.label_smoothing)
    backend.setup(classifier, plan, config.optimizer, affine_parameter_names(network), config.run.seed)
    return run


def build_network(config: Config, data: DataSets) -> Tuple[NormActFactory, nn.Module]:
    """The network of sections `model` and `norm` for the images of `data`, its weights drawn from the run's seed.

    Raises:
        ConfigError: names and sizes that do not fit together.
    """
    uses_batch_norm = config.norm.name.split("+")[0] == "batch"
    # What the file leaves out is left to the layer's defaults.
    given = {key: value for key, value in config.norm.model_dump(exclude={"name"}).items() if value is not None}
    try:
        factory = NormActFactory(
            norm=config.norm.name, norm_batch_size=config.batch.norm_batch_size if uses_batch_norm else None, **given
        )
        torch.manual_seed(config.run.seed)  # here and not earlier: even imports draw from torch's generator
        network = build_model(
            config.model.name,
            num_classes=data.num_classes,
            norm_act=factory,
            in_channels=data.channels,
            width=config.model.width,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return factory, network


def describe(run: Run) -> str:
    """What is about to run, one aspect a line."""
    config, data, cost = run.config, run.data, run.cost
    saved = cost.saved_bytes(run.plan.micro_batch_size) / 2**20
    lines = {
        "device": f"{run.backend.name} ({run.backend.reason}), {config.device.precision}, "
        f"{torch.get_num_threads()} threads",
        "data": f"{config.data.name}: {len(data.train):,} training images, {len(data.evaluation):,} to evaluate, "
        f"{data.num_classes} classes, {data.channels}x{data.image_size}x{data.image_size}",
        "network": f"{config.model.name}, norm {config.norm.name}{' with proxy' if config.norm.proxy else ''}: "
        f"{cost.parameters:,} parameters, {cost.multiply_adds / 1e6:,.1f} M multiply-adds per image",
        "batch": str(run.plan),
        "memory": f"{saved:,.0f} MiB of activations saved for backward in a micro-batch",
        "steps": f"{run.steps:,} = {config.schedule.epochs} epochs x {run.steps_per_epoch:,}",
    }
    return "\n".join(f"{name:<8} {text}" for name, text in lines.items())
