"""Float16 weights rounded at random: right on average, to a neighbour, from the seed, and only where asked for."""

import poptorch
import pytest
import torch


class Weight(torch.nn.Module):
    """A loss whose gradient is 1 for each of 4,096 float16 weights."""

    def __init__(self, start=1.0):
        super().__init__()
        self.w = torch.nn.Parameter(torch.full((4096,), start, dtype=torch.float16))

    def forward(self, x):
        return poptorch.identity_loss((self.w * x).float(), "sum")


def updated(lr, rounding=True, seed=7, start=1.0):
    model, options = Weight(start), poptorch.Options()
    options.Precision.enableStochasticRounding(rounding)
    options.randomSeed(seed)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=lr))
    executor(torch.ones(4096, dtype=torch.float16))
    return model.w.detach().clone()


def test_an_update_below_half_a_step_is_lost_to_the_nearest_and_kept_on_average_at_random():
    step = 2.0**-11  # of float16 below 1
    lr = step / 4
    assert torch.equal(updated(lr, rounding=False), torch.ones(4096, dtype=torch.float16))
    moved = updated(lr)
    assert set(moved.tolist()) == {1.0, 1.0 - step}
    # 4,096 draws with probability 1/4: the mean is off by more than 5 of its deviations once in two million.
    share = float((moved < 1).float().mean())
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 4096) ** 0.5)


@pytest.mark.parametrize(("start", "step"), [(-3.0, 2.0**-9), (2.0**-15, 2.0**-24)])
def test_the_neighbours_are_those_of_float16_for_negative_and_for_the_smallest_numbers(start, step):
    assert set(updated(step / 2, start=start).double().tolist()) == {start, start - step}


def test_what_float16_holds_exactly_is_not_rounded():
    assert torch.equal(updated(0.25), torch.full((4096,), 0.75, dtype=torch.float16))


def test_the_seed_decides():
    first, again, other = updated(1e-4), updated(1e-4), updated(1e-4, seed=8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_float32_weights_are_never_rounded():
    model, options = Weight(), poptorch.Options()
    model.w.data = model.w.data.float()
    options.Precision.enableStochasticRounding(True)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=1e-5))
    executor(torch.ones(4096))
    assert torch.equal(model.w.detach(), torch.full((4096,), 1.0) - 1e-5)
