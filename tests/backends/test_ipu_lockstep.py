"""Twenty weight updates of the IPU backend, each beside the CPU backend's from the same weights and optimizer state."""

import copy
from typing import Dict, List

import pytest
import torch

from backends import choose_device
from configs import load_config
from experiment.prepare import prepare
from experiment.run import Run
from training.schedule import build_schedule

# A network without kinks: at a ReLU's a rounding difference can become a large one.
TINY = ["model.name=efficientnet_small", "model.width=null", "norm.kernel=reference"]
TINY += ["data.image_size=8", "data.num_train_images=80", "batch.global_batch_size=16"]
# 2 stages, 2 replicas, accumulation 4; a loss scale that is a power of 2 rounds nothing.
PIPELINE = ["ipu.ipus=4", "ipu.splits=[stages.1.0]", "batch.micro_batch_size=2", "ipu.loss_scaling=64.0"]


def prepared(device: str, *overrides: str) -> Run:
    config = load_config("generated_smoke", [*TINY, *overrides], [("--device", "device.name", device)])
    return prepare("test", config, choose_device(config.device, config.ipu)).start()


def assert_equal_but_rounding(left: torch.Tensor, right: torch.Tensor, change: torch.Tensor, what: str) -> None:
    """float32 keeps 6e-8 of a weight's size.

    Statistics of a stage's layers are computed on one vector, in which torch sums in another order than in short ones:
    scales differ by their last bit, 1.2e-7, the same for all channels; ten layers make 5e-6 of a gradient of that.
    """
    bound = 3e-7 * float(right.abs().max()) + 1e-5 * float(change.abs().max())
    assert float((left - right).abs().max()) <= bound, what


@pytest.mark.parametrize(
    "optimizer",
    [
        ["optimizer.nesterov=true", "optimizer.weight_decay=0.01"],
        ["optimizer.name=rmsprop", "optimizer.square_decay=0.9", "optimizer.eps=1e-3", "optimizer.learning_rate=0.01"],
    ],
    ids=["nesterov", "rmsprop"],
)
def test_each_of_twenty_updates_is_the_cpus_to_rounding_while_the_learning_rate_rises_and_falls(
    optimizer: List[str],
) -> None:
    cpu, ipu = prepared("cpu", *optimizer), prepared("ipu_emulator", *optimizer, *PIPELINE)
    assert (cpu.plan.gradient_accumulation, cpu.plan.replicas) == (1, 1)
    assert (ipu.plan.gradient_accumulation, ipu.plan.replicas) == (4, 2)
    learning_rate = build_schedule(cpu.config.schedule, cpu.config.optimizer.learning_rate, cpu.steps_per_epoch)
    rates: List[float] = []
    for epoch in range(cpu.config.schedule.epochs):
        batches = [run.session.training_batches(run.data.train, epoch, 0, 0) for run in (cpu, ipu)]
        for on_cpu, on_ipu in zip(*batches):
            step = len(rates)
            rates.append(learning_rate(step))
            before = copy.deepcopy(ipu.session.state())
            cpu.session.load_state(
                copy.deepcopy(before), is_updated=step > 0
            )  # so rounding differences do not grow from step to step
            expected = cpu.session.train_step(on_cpu, step, rates[-1])
            sums = ipu.session.train_step(on_ipu, step, rates[-1])
            assert float(sums.loss_sum) == pytest.approx(float(expected.loss_sum), rel=1e-6)
            assert (int(sums.top1), int(sums.images)) == (int(expected.top1), 16)
            left, right = ipu.session.state(), cpu.session.state()
            for name, weight in right["model"].items():
                what = f"{name} after update {step}"
                assert_equal_but_rounding(left["model"][name], weight, weight - before["model"][name], what)
            assert_same_optimizer(left["optimizer"]["state"], right["optimizer"]["state"], step)
    assert len(rates) == 20
    assert rates[0] < rates[2] > rates[-2] > rates[-1]


def assert_same_optimizer(
    left: Dict[int, Dict[str, torch.Tensor]], right: Dict[int, Dict[str, torch.Tensor]], step: int
) -> None:
    assert left.keys() == right.keys()
    for index, kept in right.items():
        for name, value in kept.items():
            assert_equal_but_rounding(left[index][name], value, value, f"{name} of weight {index} after update {step}")
