"""The loss sum and the classifier around a network, against hand-computed numbers and torch's own functions."""

from __future__ import annotations

import math
from typing import List, Tuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from training.classifier import Classifier, true_class_rank
from training.loss import IGNORED, cross_entropy_sum

LOGITS = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("smoothing, mean", [(0.0, 0.9132420), (0.1, 0.9882420), (0.5, 1.2882420)])
def test_smoothed_loss_equals_the_published_values(smoothing: float, mean: float) -> None:
    loss = cross_entropy_sum(torch.tensor(LOGITS), torch.tensor([3, 1]), smoothing)
    assert float(loss) / 2 == pytest.approx(mean, abs=5e-7)  # the table has seven digits


def test_loss_of_equal_logits_is_log_of_the_number_of_classes_whatever_the_smoothing() -> None:
    for smoothing in (0.0, 0.3):
        loss = cross_entropy_sum(torch.zeros(3, 7), torch.tensor([0, 3, 6]), smoothing)
        assert float(loss) == pytest.approx(3 * math.log(7), rel=1e-6)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(images=st.integers(1, 6), classes=st.integers(1, 12), smoothing=st.sampled_from([0.0, 0.1, 0.9]))
def test_loss_and_gradient_equal_torch_cross_entropy_in_float64(images: int, classes: int, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(images * 100 + classes)
    logits = torch.randn(images, classes, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(-1, classes, (images,), generator=generator)
    reference = nn.functional.cross_entropy(
        logits, labels, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum"
    )
    loss = cross_entropy_sum(logits, labels, smoothing)
    # float64 rounding of sums of at most 72 terms
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    (reference_gradient,) = torch.autograd.grad(reference, logits)
    torch.testing.assert_close(gradient, reference_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_loss_is_float32_and_as_exact_as_the_logits(dtype: torch.dtype) -> None:
    logits = torch.linspace(-8, 8, 60).reshape(6, 10).to(dtype)
    labels = torch.arange(6)
    loss = cross_entropy_sum(logits, labels)
    assert loss.dtype == torch.float32
    exact = cross_entropy_sum(logits.double(), labels)
    assert exact.dtype == torch.float64
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)  # float32 rounding; bfloat16 sums would be off by 1e-2


def test_padding_counts_nothing_in_loss_and_gradient() -> None:
    logits = torch.tensor(LOGITS, requires_grad=True)
    loss = cross_entropy_sum(logits, torch.tensor([3, IGNORED]), 0.1)
    loss.backward()
    alone = cross_entropy_sum(torch.tensor(LOGITS[:1]), torch.tensor([3]), 0.1)
    assert float(loss.detach()) == float(alone)
    assert logits.grad is not None and not logits.grad[1].any() and logits.grad[0].any()


def test_loss_of_padding_alone_is_zero() -> None:
    assert float(cross_entropy_sum(torch.randn(2, 3), torch.tensor([IGNORED, IGNORED]))) == 0.0


def test_loss_without_smoothing_is_finite_when_another_class_is_excluded() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    assert float(cross_entropy_sum(logits, torch.tensor([0]))) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("label", [4, -2])
def test_labels_outside_the_classes_are_errors(label: int) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy_sum(torch.tensor(LOGITS), torch.tensor([0, label]))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 1\)"):
        cross_entropy_sum(torch.tensor(LOGITS), torch.tensor([[0], [1]]))


RANKS: List[Tuple[str, List[float], int, int]] = [
    ("best", [1, 5, 2, 3, 4, 0], 1, 0),
    ("third", [1, 5, 2, 3, 4, 0], 3, 2),
    ("last", [1, 5, 2, 3, 4, 0], 5, 5),
    ("tie, smaller class first", [7, 7, 0, 0, 0, 0], 0, 0),
    ("tie, larger class second", [7, 7, 0, 0, 0, 0], 1, 1),
    ("all equal: the class index is the rank", [0, 0, 0, 0, 0, 0], 4, 4),
    ("minus infinity ranks last", [0, 0, -math.inf, 0, 0, 0], 2, 5),
    ("infinity ranks first", [0, 0, math.inf, 0, 0, 0], 2, 0),
    ("true logit NaN: never a hit", [0, 0, math.nan, 0, 0, 0], 2, 11),
    ("another logit NaN: never a hit", [9, 0, math.nan, 0, 0, 0], 0, 11),
    ("padding: never a hit", [9, 0, 0, 0, 0, 0], IGNORED, 11),
]


@pytest.mark.parametrize("name, logits, label, rank", RANKS, ids=[row[0] for row in RANKS])
def test_rank_of_the_true_class(name: str, logits: List[float], label: int, rank: int) -> None:
    assert true_class_rank(torch.tensor([logits]), torch.tensor([label])).tolist() == [rank]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(classes=st.integers(1, 9), seed=st.integers(0, 1000))
def test_hits_equal_torch_topk_without_ties(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(16, classes, generator=generator).argsort(dim=1).double()  # permutations: no two are equal
    labels = torch.randint(0, classes, (16,), generator=generator)
    rank = true_class_rank(logits, labels)
    for k in (1, 5):
        best = logits.topk(min(k, classes), dim=1).indices
        assert torch.equal(rank < k, (best == labels.unsqueeze(1)).any(dim=1))


class Flat(nn.Module):
    """A linear map of all pixels, to see what reaches a network."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 2 * 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def small_batch(classes: int = 7) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (6, 3, 2, 2), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([0, classes - 1, 2, IGNORED, 1, IGNORED])


def small_classifier(label_smoothing: float = 0.1) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Flat(7), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), label_smoothing=label_smoothing)


def test_classifier_feeds_standardized_pixels() -> None:
    class Identity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x.flatten(1)

    network = Identity()
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 2, 1, 1)
    Classifier(network, mean=(0.5, 0.25), std=(0.25, 0.5))(images, torch.tensor([0]))
    assert network.seen.dtype == torch.float32
    assert network.seen.flatten().tolist() == pytest.approx([(0 - 0.5) / 0.25, (1 - 0.25) / 0.5], rel=1e-6)


def test_classifier_sums_equal_plain_torch() -> None:
    network = Flat(7)
    classifier = Classifier(network, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), label_smoothing=0.1)
    images, labels = small_batch()
    pixels = images.double() / 255
    standard = (pixels - torch.tensor([0.5, 0.4, 0.3]).double().view(1, 3, 1, 1)) / torch.tensor(
        [0.2, 0.25, 0.5]
    ).double().view(1, 3, 1, 1)
    logits = standard.flatten(1) @ network.linear.weight.double().T + network.linear.bias.double()
    counted = labels != IGNORED
    loss = nn.functional.cross_entropy(logits[counted], labels[counted], label_smoothing=0.1, reduction="sum")
    top5 = (logits.topk(5, dim=1).indices == labels.unsqueeze(1)).any(dim=1)
    loss_sum, top1_count, top5_count, images_count = classifier(images, labels)
    assert loss_sum.item() == pytest.approx(loss.item(), rel=1e-5)  # float32 network
    assert int(top1_count) == int((logits.argmax(dim=1) == labels)[counted].sum())
    assert int(top5_count) == int(top5[counted].sum())
    assert int(images_count) == 4


def test_classifier_smooths_labels_in_training_only() -> None:
    classifier, (images, labels) = small_classifier(0.5), small_batch()
    plain = small_classifier(0.0)(images, labels)[0]
    assert not torch.equal(classifier.train()(images, labels)[0], plain)
    assert torch.equal(classifier.eval()(images, labels)[0], plain)


def test_classifier_state_is_the_networks_alone() -> None:
    classifier = small_classifier()
    assert list(classifier.state_dict()) == ["network.linear.weight", "network.linear.bias"]
    assert list(classifier.network.state_dict()) == ["linear.weight", "linear.bias"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")  # it would mean a value frozen into the trace
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")  # PopTorch's torch has no other
def test_traced_classifier_equals_eager_on_other_images(training: bool) -> None:
    classifier, (images, labels) = small_classifier().train(training), small_batch()
    traced = torch.jit.trace(classifier, (torch.zeros_like(images), torch.zeros_like(labels)))
    for eager, replayed in zip(classifier(images, labels), traced(images, labels)):
        assert torch.equal(eager, replayed)


def test_classifier_refuses_what_would_broadcast_or_is_scaled_already() -> None:
    classifier, (images, labels) = small_classifier(), small_batch()
    with pytest.raises(ValueError, match="1 channels, but mean and std have 3"):
        classifier(images[:, :1], labels)
    with pytest.raises(ValueError, match=r"torch\.float32, but must be uint8"):
        classifier(images.float(), labels)
    with pytest.raises(ValueError, match="one value per channel"):
        Classifier(Flat(7), mean=(0.5,), std=(0.2, 0.2))
    with pytest.raises(ValueError, match="must be positive"):
        Classifier(Flat(7), mean=(0.5,), std=(0.0,))
    with pytest.raises(ValueError, match=r"label_smoothing 1\.0"):
        Classifier(Flat(7), mean=(0.5,), std=(0.5,), label_smoothing=1.0)
