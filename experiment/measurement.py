"""What is measured of a network between and after its weight updates, on all processes together."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from torch import Tensor, nn

from backends.image_loader import build_loader
from configs import Config
from datasets import DataSets
from experiment.lockstep import Lockstep
from experiment.network import build_network
from experiment.run import Run
from normact import reestimate_statistics
from training.averaging import WeightAverage
from training.classifier import Classifier
from training.metrics import StepSums
from training.weights import load_model_state

REESTIMATION_BATCH = 500  # images normalized together: many enough that their statistics are nearly those of all


def evaluate(run: Run, lockstep: Lockstep, images: Any, weights: Optional[Mapping[str, Tensor]] = None) -> StepSums:
    """Return sums over exactly all of `images`, of all processes. Where the loop is stopped, over some of them.

    Args:
        run: whose network is evaluated.
        lockstep: ends all processes' loops together.
        images: by index, such as run.data.evaluation.
        weights: a state of the network to evaluate instead of the trained one.
    """
    sums = StepSums()
    with contextlib.nullcontext() if weights is None else run.session.evaluating_with(weights):
        for batch in lockstep.batches(run.session.evaluation_batches(images, run.config.data.workers)):
            sums = sums + run.session.eval_step(batch)
    return run.session.total(sums)


def measure_end(run: Run, lockstep: Lockstep, average: Optional[WeightAverage]) -> Dict[str, Any]:
    """Return what summary.json says of the final weights besides the last evaluation, as far as it is asked for.

    train               top1, top5 and loss in evaluation form (no augmentation, mixing, smoothing or dropout) of
                        `images` training images, evenly spaced
    test_reestimated    the same of the evaluation images, with batch norm's statistics re-estimated (see `reestimate`)

    Both are of the averaged weights, if there are any. Where the loop is stopped, what is returned means nothing.
    """
    weights = None if average is None else average.weights
    found: Dict[str, Any] = {}
    count = run.config.run.evaluate_training_images
    if count:
        sums = evaluate(run, lockstep, run.data.plain_training_images(count), weights)
        if not lockstep.is_stopped:
            found["train"] = {**sums.means()._asdict(), "images": int(sums.images)}
    if run.factory.uses_batch_norm and is_reestimated(run.config) and not lockstep.is_stopped:
        _, network = build_network(run.config, run.data)  # plain and eager, whatever the device makes of the other
        load_model_state(network, run.session.weights() if weights is None else weights)
        network.to(next(run.network.parameters()).device)
        if reestimate(network, run.config, run.data, lockstep.batches) and not lockstep.is_stopped:
            sums = evaluate(run, lockstep, run.data.evaluation, network.state_dict())
            if not lockstep.is_stopped:
                found["test_reestimated"] = sums.means()._asdict()
    return found


def is_reestimated(config: Config) -> bool:
    """Whether a run re-estimates batch norm's statistics.

    Those of frozen batch norms are not averages of this run, but constants that the rest was trained with.
    """
    return config.run.reestimation_images > 0 and config.model.train_only is None


def reestimate(network: nn.Module, config: Config, data: DataSets, batches: Any = iter) -> int:
    """Re-estimate the statistics of all batch norms (normact.reestimate_statistics) in place; return their number.

    They are of run.reestimation_images training images, evenly spaced and unaugmented, in equal batches of at most
    REESTIMATION_BATCH, in float32. Every process computes all of it.

    Args:
        network: on any device.
        config: says over how many images.
        data: the images.
        batches: what the loading is wrapped in; where it gives no batch, nothing is done.
    """
    device = next(network.parameters()).device
    classifier = Classifier(network, data.mean, data.std).to(device)
    images = data.plain_training_images(config.run.reestimation_images)
    loaded: Iterator[Tuple[Tensor, Tensor]] = batches(
        build_loader(images, _equal_batches(len(images)), config.data.workers)
    )
    first = next(loaded, None)
    if first is None:
        return 0
    inputs: Iterable[Tensor] = (classifier.scaled(pixels.to(device)) for pixels, _ in itertools.chain([first], loaded))
    return reestimate_statistics(network, inputs)


def _equal_batches(count: int) -> List[List[int]]:
    """Return the numbers below `count` in as few parts as REESTIMATION_BATCH allows, their sizes within one."""
    parts = math.ceil(count / REESTIMATION_BATCH)
    return [list(range(part * count // parts, (part + 1) * count // parts)) for part in range(parts)]
