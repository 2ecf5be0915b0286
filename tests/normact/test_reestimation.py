"""Batch norm's statistics re-estimated: against numpy over all values at once, and what is left as it was."""

from typing import List, Tuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models import build_model
from normact import NormActFactory, reestimate_statistics
from normact.norms import BatchNorm
from normact.reestimation import PooledStatistics


def test_pooled_statistics_by_hand() -> None:
    # Values 1, 3 and then 8: mean 4, squares 9 + 1 + 16 = 26, unbiased variance 13.
    pooled = PooledStatistics()
    pooled.add(torch.tensor([[1.0], [3.0]]))
    pooled.add(torch.tensor([[8.0]]))
    assert (pooled.count, pooled.mean.item(), pooled.unbiased_var.item()) == (3, 4.0, 13.0)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 99))
def test_pooled_statistics_do_not_depend_on_how_images_are_batched(
    sizes: List[int], spatial: Tuple[int, ...], seed: int
) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).normal(50.0, 2.0, (sum(sizes), 4, *spatial)))
    pooled = PooledStatistics()
    for part in x.split(sizes):
        pooled.add(part)
    axes = (0, *range(2, x.dim()))
    np.testing.assert_allclose(pooled.mean.numpy(), x.numpy().mean(axis=axes), rtol=1e-12)
    if x.numel() > 4:
        np.testing.assert_allclose(pooled.unbiased_var.numpy(), x.numpy().var(axis=axes, ddof=1), rtol=1e-8)


def two_layers(norm_batch_size: int) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 4, 3), BatchNorm(4, norm_batch_size=norm_batch_size), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)).double()


def test_every_batch_norm_gets_the_statistics_of_what_reaches_it_with_whole_batches_and_without_dropout() -> None:
    x = torch.randn(12, 3, 6, 6, dtype=torch.float64)
    network = two_layers(norm_batch_size=2)
    assert reestimate_statistics(network, [x]) == 2
    first = network[0](x)
    torch.testing.assert_close(network[1].running_mean, first.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network[1].running_var, first.var((0, 2, 3)), rtol=1e-12, atol=1e-12)
    var = first.var((0, 2, 3), unbiased=False, keepdim=True)
    hidden = network[4](((first - first.mean((0, 2, 3), keepdim=True)) / (var + 1e-5).sqrt()).relu())
    torch.testing.assert_close(network[5].running_mean, hidden.mean((0, 2, 3)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(network[5].running_var, hidden.var((0, 2, 3)), rtol=1e-10, atol=1e-12)


def test_all_but_the_statistics_is_left_as_it_was_and_doing_it_again_changes_nothing() -> None:
    x = torch.randn(12, 3, 6, 6, dtype=torch.float64)
    network = two_layers(norm_batch_size=2)
    weights = {name: parameter.clone() for name, parameter in network.named_parameters()}
    reestimate_statistics(network, x.split(6))
    once = {name: buffer.clone() for name, buffer in network.named_buffers() if "num_batches" not in name}
    reestimate_statistics(network, x.split(6))
    assert all(torch.equal(buffer, network.get_buffer(name)) for name, buffer in once.items())
    assert all(torch.equal(parameter, network.get_parameter(name)) for name, parameter in weights.items())
    assert network[1].norm_batch_size == 2 and not any(module.training for module in network.modules())
    assert not network[1]._forward_pre_hooks


def test_running_averages_of_pairs_miss_what_pairs_differ_by_and_the_new_statistics_do_not() -> None:
    # Constant images: within a pair (1, 1) or (5, 5) nothing varies, and over all images the deviation is 2.
    x = torch.tensor([1.0, 1.0, 5.0, 5.0] * 8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    norm = BatchNorm(1, norm_batch_size=2)
    for _ in range(200):
        norm(x)
    assert norm.running_var.item() < 1e-6
    reestimate_statistics(norm, [x])
    assert norm.running_var.item() == pytest.approx(4 * 128 / 127)


def test_networks_without_batch_norm_are_left_alone_and_no_image_is_an_error() -> None:
    network = build_model("resnet8", num_classes=4, norm_act=NormActFactory(norm="group"), width=8)
    assert reestimate_statistics(network, iter(())) == 0
    with pytest.raises(ValueError, match="no batch of images"):
        reestimate_statistics(BatchNorm(3), [])
