"""A run: planned, and started."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict

from backends import Device, Placement, Session
from configs import BatchPlan, Config
from datasets import DataSets
from experiment.resume import execution_facts
from experiment.starting_weights import norm_record
from models import ImageClassifier
from models.cost import Cost
from normact import NormActFactory, affine_parameter_names, has_fused_kernels
from training.classifier import Classifier

DEFAULT_POWER_IMAGES = 1000


@dataclass(frozen=True)
class PlannedRun:
    """Everything that is settled before anything is executed: what a dry run describes.

    Attributes:
        name: of the experiment.
        config: the complete configuration.
        device: this process's.
        placement: of the network on it.
        data: the images.
        factory: of the network's norms.
        classifier: around the network.
        cost: of the network.
    """

    name: str
    config: Config
    device: Device
    placement: Placement
    data: DataSets
    factory: NormActFactory
    classifier: Classifier
    cost: Cost

    def start(self) -> Run:
        """Place the network on the device. Every process must call it."""
        undecayed = affine_parameter_names(self.network)
        session = self.placement.start(self.classifier, undecayed, self.config.run.seed)
        return Run(**vars(self), session=session)

    @property
    def network(self) -> ImageClassifier:
        network: ImageClassifier = self.classifier.network  # type: ignore[assignment]  # nn.Module says less
        return network

    @property
    def plan(self) -> BatchPlan:
        return self.placement.plan

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data.train) // self.plan.global_batch_size

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.schedule.epochs

    @property
    def power_images(self) -> int:
        """Evaluation images over which power is measured."""
        return min(self.config.run.power_images or DEFAULT_POWER_IMAGES, len(self.data.evaluation))

    @property
    def settings(self) -> Dict[str, Any]:
        """What distinguishes runs, for their summaries; the complete configuration is in config.yaml."""
        config = self.config
        settings = dataclasses.asdict(self.factory)
        norm = {"name": settings.pop("norm"), **{key: value for key, value in settings.items() if value is not None}}
        return {
            "data": config.data.name,
            **({"images_changed": self.data.changed} if self.data.changed else {}),
            "model": config.model.name,
            "activation": self.network.activation,
            "norm": norm,
            "optimizer": config.optimizer.name,
            "learning_rate": config.optimizer.learning_rate,
            "seed": config.run.seed,
            "epochs": config.schedule.epochs,
            "global_batch_size": self.plan.global_batch_size,
            "norm_batch_size": self.plan.norm_batch_size,
            "micro_batch_size": self.plan.micro_batch_size,
            "replicas": self.plan.replicas,
            "precision": self.device.precision,
        }

    @property
    def norm_record(self) -> Dict[str, Any]:
        """What decides how saved weights are to be read; checkpoints keep it."""
        return norm_record(self.factory)

    @property
    def execution(self) -> Dict[str, Any]:
        """What decides the result to the last bit, besides the configuration."""
        device = self.device
        facts = execution_facts(self.plan, device.name, device.precision, self.config, has_fused_kernels())
        return {**facts, "decoder": self.data.decoder, "images_changed": self.data.changed}


@dataclass(frozen=True)
class Run(PlannedRun):
    """A run that executes.

    Attributes:
        session: the network at work on the device.
    """

    session: Session
