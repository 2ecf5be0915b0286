"""The CPU backend: how a batch is cut up does not change the weights, unless the norm depends on it."""

import logging
import math
from typing import Any, Dict, List

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import DeviceError, Workload, choose_device
from backends.torch_native.device import TorchDevice
from backends.torch_native.session import TorchSession
from configs.schema import BatchConfig
from configs.schema.device import DeviceConfig, IpuConfig
from configs.schema.learning import OptimizerConfig
from models import build_model
from normact import NormActFactory, affine_parameter_names
from training.classifier import Classifier
from training.nonfinite import NonFiniteLossError, are_finite
from training.order import step_key

GLOBAL_BATCH = 32
OPTIMIZER = OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=5e-4)


def images_and_labels(step: int) -> Any:
    generator = torch.Generator().manual_seed(step_key(7, step))
    images = torch.randint(0, 256, (GLOBAL_BATCH, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (GLOBAL_BATCH,), generator=generator)


def started(norm: Dict[str, Any], micro: int, norm_batch_size: int, dtype: torch.dtype, **device: Any) -> TorchSession:
    torch.manual_seed(3)
    is_batch = norm["norm"] == "batch"
    factory = NormActFactory(**norm, norm_batch_size=norm_batch_size if is_batch else None)
    network = build_model("resnet8", num_classes=10, norm_act=factory, width=8)
    classifier = Classifier(network, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 0.1).to(dtype)
    batch = BatchConfig(global_batch_size=GLOBAL_BATCH, norm_batch_size=norm_batch_size, micro_batch_size=micro)
    workload = Workload(
        network=network,
        uses_batch_norm=is_batch,
        image_size=8,
        in_channels=3,
        training_images=GLOBAL_BATCH,
        saved_bytes_per_image=1,
        batch=batch,
        optimizer=OPTIMIZER,
    )
    placement = TorchDevice(DeviceConfig(name="cpu", **device)).settle(workload)
    return placement.start(classifier, affine_parameter_names(network), seed=0)


def weights_after_three_updates(
    norm: Dict[str, Any], micro: int, norm_batch_size: int = 1, dtype: torch.dtype = torch.float64, **device: Any
) -> Dict[str, torch.Tensor]:
    session = started(norm, micro, norm_batch_size, dtype, **device)
    for step in range(3):
        session.train_step(images_and_labels(step), step, 0.1)
    return session.state()["model"]


def largest_difference(first: Dict[str, torch.Tensor], second: Dict[str, torch.Tensor]) -> float:
    """Over all entries, relative to the entry's largest value."""
    assert first.keys() == second.keys()
    return max(
        float((first[name] - second[name]).abs().max() / first[name].abs().max().clamp(min=1e-3))
        for name in first
        if first[name].is_floating_point()
    )


SPLITS = [1, 2, 4, 8, 16, 32]
GNPN: Dict[str, Any] = {"norm": "group", "num_groups": 4}
LNPN: Dict[str, Any] = {"norm": "layer"}
BN: Dict[str, Any] = {"norm": "batch", "proxy": False}


@given(st.sampled_from([GNPN, LNPN]), st.sampled_from(SPLITS[:-1]))
@settings(max_examples=10)
def test_any_split_of_a_global_batch_gives_the_same_weights_in_float64(norm: Dict[str, Any], micro: int) -> None:
    whole = weights_after_three_updates(norm, GLOBAL_BATCH)
    assert largest_difference(weights_after_three_updates(norm, micro), whole) < 1e-10


@given(st.sampled_from([GNPN, LNPN]), st.sampled_from(SPLITS[:-1]))
@settings(max_examples=6)
def test_any_split_of_a_global_batch_gives_the_same_weights_to_rounding_in_float32(
    norm: Dict[str, Any], micro: int
) -> None:
    # The bound: float32 rounding of the sums of gradients (1e-7), grown by three updates through ten layers.
    whole = weights_after_three_updates(norm, GLOBAL_BATCH, dtype=torch.float32)
    assert largest_difference(weights_after_three_updates(norm, micro, dtype=torch.float32), whole) < 5e-4


@pytest.mark.parametrize("micro", [4, 8, 16])
def test_batch_norm_gives_other_weights_when_the_split_sets_its_batch(micro: int) -> None:
    whole = weights_after_three_updates(BN, GLOBAL_BATCH, norm_batch_size=GLOBAL_BATCH)
    assert largest_difference(weights_after_three_updates(BN, micro, norm_batch_size=micro), whole) > 1e-2


@pytest.mark.parametrize("micro", [8, 16])
def test_batch_norm_gives_the_same_weights_and_statistics_when_norm_batch_size_is_kept(micro: int) -> None:
    whole = weights_after_three_updates(BN, GLOBAL_BATCH, norm_batch_size=8)
    assert largest_difference(weights_after_three_updates(BN, micro, norm_batch_size=8), whole) < 1e-10


@pytest.mark.parametrize("device", [{"channels_last": True}, pytest.param({"compile": True}, marks=pytest.mark.slow)])
def test_execution_options_change_nothing_beyond_rounding(device: Dict[str, bool]) -> None:
    plain = weights_after_three_updates(GNPN, 16, dtype=torch.float32)
    assert largest_difference(weights_after_three_updates(GNPN, 16, dtype=torch.float32, **device), plain) < 5e-4


def test_bfloat16_trains_close_to_float32_and_keeps_float32_weights() -> None:
    plain = weights_after_three_updates(GNPN, 32, dtype=torch.float32)
    half = weights_after_three_updates(GNPN, 32, dtype=torch.float32, precision="bfloat16")
    assert all(tensor.dtype != torch.bfloat16 for tensor in half.values())
    # bfloat16 has 8 bits: gradients differ by about 1 %, updates of 0.1 x gradient by much less of a weight.
    name = "stem.conv.weight"
    assert 0 < float((half[name] - plain[name]).norm() / plain[name].norm()) < 0.03


def test_a_step_reports_sums_over_its_images_and_applies_the_mean_gradient() -> None:
    session = started(GNPN, 8, 1, torch.float64)
    reference = started(GNPN, 32, 1, torch.float64)
    batch = images_and_labels(0)
    sums = session.train_step(batch, 0, 0.1)
    outputs = reference._classifier(*batch)
    assert int(sums.images) == GLOBAL_BATCH
    assert float(sums.loss_sum) == pytest.approx(float(outputs[0]), rel=1e-12)
    # One SGD step by hand on one parameter without weight decay: w - learning_rate * mean gradient.
    name = "classifier.bias"
    before = dict(reference._classifier.network.named_parameters())[name]
    gradient = torch.autograd.grad(outputs[0] / GLOBAL_BATCH, before)[0] + OPTIMIZER.weight_decay * before
    torch.testing.assert_close(
        session.state()["model"][name], (before - 0.1 * gradient).detach(), rtol=1e-10, atol=1e-12
    )


def test_a_non_finite_gradient_stops_before_the_weights_change() -> None:
    session = started(GNPN, 16, 1, torch.float32)
    before = session.state()["model"]
    with torch.no_grad():
        next(session._classifier.network.parameters()).view(-1)[0] = float("nan")
    spoiled = session.state()["model"]
    with pytest.raises(NonFiniteLossError, match="step 5"):
        session.train_step(images_and_labels(0), 5, 0.1)
    after = session.state()["model"]
    changed = [name for name in before if not torch.equal(spoiled[name], after[name])]
    assert changed == [next(iter(before))]  # the NaN itself, which equals nothing


HUGE = 3e38  # finite, and its square is not: the norm of the gradient overflows


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, -1.0], True),
        ([HUGE, -HUGE, HUGE], True),
        ([math.nan, 1.0], False),
        ([math.inf, -math.inf], False),
        ([HUGE, -math.inf], False),
        ([1e-45, 0.0], True),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_huge_finite_gradients_are_finite_and_anything_else_is_noticed(
    values: List[float], expected: bool, place: int
) -> None:
    tensors = [torch.ones(33), torch.ones(2, 2)]
    tensors[place].view(-1)[: len(values)] = torch.tensor(values)
    assert are_finite(tensors) is expected


def test_a_step_with_huge_finite_gradients_is_made() -> None:
    session = started(GNPN, 32, 1, torch.float32)
    network = session._classifier.network
    network.classifier.bias.register_hook(lambda gradient: torch.full_like(gradient, HUGE))
    session.train_step(images_and_labels(0), 0, 1e-30)
    assert network.classifier.bias.detach().abs().max() > 1e7


def test_continuing_from_a_state_is_bit_identical() -> None:
    straight = started(GNPN, 16, 1, torch.float32)
    states: List[Dict[str, Any]] = []
    for step in range(4):
        states.append(straight.state())
        straight.train_step(images_and_labels(step), step, 0.1)
    continued = started(GNPN, 16, 1, torch.float32)
    continued.load_state(states[2])
    for step in (2, 3):
        continued.train_step(images_and_labels(step), step, 0.1)
    first, second = straight.state()["model"], continued.state()["model"]
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("saved_bytes", "processes", "images"),
    [(10**6, "1", 4666), (10**8, "1", 46), (10**8, "4", 11), (10**15, "1", 1)],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the memory of a CUDA device is its own")
def test_the_largest_micro_batch_takes_seven_tenths_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, saved_bytes: int, processes: str, images: int
) -> None:
    monkeypatch.setattr("backends.torch_native.device.available_bytes", lambda: 10**10)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    # .7 of 10^10 bytes, shared by the processes, over 1.5 of what an image leaves; never less than one image.
    assert TorchDevice(DeviceConfig(name="cpu")).largest_micro_batch(saved_bytes) == images


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is available")
def test_a_device_that_is_not_here_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match="no CUDA device"):
        choose_device(DeviceConfig(name="cuda"), IpuConfig())


def test_the_choice_of_a_device_says_why() -> None:
    assert choose_device(DeviceConfig(name="auto"), IpuConfig()).reason


@pytest.mark.parametrize(
    ("asked", "has_instructions", "precision", "warns"),
    [
        ("auto", True, "bfloat16", False),
        ("auto", False, "float32", False),
        ("bfloat16", True, "bfloat16", False),
        ("bfloat16", False, "bfloat16", True),
        ("float32", False, "float32", False),
    ],
)
def test_bfloat16_is_chosen_or_warned_of_by_the_processors_instructions(
    asked: Any,
    has_instructions: bool,
    precision: str,
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("backends.torch_native.device.has_bfloat16_instructions", lambda: has_instructions)
    with caplog.at_level(logging.WARNING):
        device = TorchDevice(DeviceConfig(name="cpu", precision=asked))
    assert device.precision == precision
    assert ("use --set device.precision=auto" in caplog.text) == warns
    seen: List[torch.dtype] = []
    session = started(GNPN, 32, 1, torch.float32, precision=asked)
    conv = session._classifier.network.stem.conv
    conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    session.eval_step(images_and_labels(0))
    assert seen == [torch.bfloat16 if precision == "bfloat16" else torch.float32]


def test_only_what_compiles_at_the_first_step_says_so() -> None:
    session = started(GNPN, 32, 1, torch.float32)
    assert not session.will_compile
    assert started(GNPN, 32, 1, torch.float32, compile=True).will_compile
    session.will_compile = True
    session.train_step(images_and_labels(0), 0, 0.1)
    assert not session.will_compile
