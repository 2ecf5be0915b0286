"""Which loss is minimized, whatever forward returns."""

import poptorch
import pytest
import torch
import torch.nn.functional as F

X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]])


def labels():
    """Made where it is used: the device takes no tensor of the host among its operands."""
    return torch.tensor([2, 0])


class Head(torch.nn.Module):
    """A matrix, and whatever `compute` makes of its product with the input."""

    def __init__(self, compute):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.2, -0.1, 0.4], [0.1, 0.3, -0.2], [0.5, 0.0, 0.1]]))
        self.compute = compute

    def forward(self, x):
        return self.compute(x @ self.weight)


def trained_gradient(compute):
    """Return the gradient that one call applied."""
    model = Head(compute)
    before = model.weight.detach().clone()
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    executor(X)
    return before - model.weight.detach()


def true_gradient(loss):
    model = Head(loss)
    loss(X @ model.weight).sum().backward()
    return model.weight.grad


def nll(z):
    return F.nll_loss(F.log_softmax(z, 1), labels())


def zeros():
    return torch.zeros(2, 3)


def ones():
    return torch.ones(2, 3)


MARKED = [
    lambda z: F.l1_loss(z, zeros()),
    lambda z: F.mse_loss(z, ones()),
    lambda z: F.smooth_l1_loss(z, ones()),
    nll,
    lambda z: F.cross_entropy(z, labels()),
    lambda z: F.cross_entropy(z, labels(), ignore_index=0),
    lambda z: F.cross_entropy(z, labels(), reduction="sum"),
    lambda z: F.binary_cross_entropy(torch.sigmoid(z), ones()),
    lambda z: F.binary_cross_entropy_with_logits(z, ones()),
    lambda z: F.kl_div(F.log_softmax(z, 1), ones() / 3, reduction="sum"),
    lambda z: F.poisson_nll_loss(z, ones()),
    lambda z: F.hinge_embedding_loss(z, ones()),
    lambda z: F.soft_margin_loss(z, ones()),
    lambda z: F.cosine_embedding_loss(z, ones(), torch.tensor([1, -1])),
    lambda z: F.margin_ranking_loss(z, zeros(), ones()),
    lambda z: F.triplet_margin_loss(z, zeros(), ones()),
    lambda z: F.ctc_loss(F.log_softmax(z[:, None], -1), labels()[None, :1], [2], [1]),
    lambda z: F.l1_loss(z, zeros(), reduction="none"),
]


@pytest.mark.parametrize("loss", MARKED)
def test_torchs_loss_functions_are_losses(loss):
    torch.testing.assert_close(trained_gradient(loss), true_gradient(loss), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_identity_loss_reduces_and_back_propagates_ones(reduction):
    def reduced(z):
        return z**2 if reduction == "none" else getattr(z**2, reduction)()

    expected = true_gradient(reduced)
    got = trained_gradient(lambda z: poptorch.identity_loss(z**2, reduction))
    torch.testing.assert_close(got, expected)


def test_what_forward_returns_does_not_matter():
    def hidden(z):
        poptorch.identity_loss(z**2, "sum")
        return z

    torch.testing.assert_close(trained_gradient(hidden), true_gradient(lambda z: (z**2).sum()))


def test_a_loss_that_another_is_computed_from_does_not_count():
    def total(z):
        return poptorch.identity_loss(nll(z) + 3 * F.l1_loss(z, zeros()), "none")

    torch.testing.assert_close(trained_gradient(total), true_gradient(lambda z: nll(z) + 3 * z.abs().mean()))


def test_no_loss_is_an_error():
    with pytest.raises(poptorch.Error, match="Couldn't find a loss in graph!"):
        trained_gradient(lambda z: z.abs().mean())


def test_two_independent_losses_are_an_error():
    with pytest.raises(poptorch.Error, match="Multiple independent losses found in graph"):
        trained_gradient(lambda z: nll(z) + F.l1_loss(z, zeros()))


def test_bare_label_smoothing_trains_on_its_nll_part_alone():
    got = trained_gradient(lambda z: F.cross_entropy(z, labels(), label_smoothing=0.3))
    torch.testing.assert_close(got, true_gradient(nll))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_wrapped_label_smoothing_trains_on_all_of_it_and_has_torchs_value(reduction):
    def smoothed(z):
        return F.cross_entropy(z, labels(), label_smoothing=0.3, reduction=reduction, ignore_index=0)

    got = trained_gradient(lambda z: poptorch.identity_loss(smoothed(z), "none"))
    torch.testing.assert_close(got, true_gradient(smoothed), rtol=1e-5, atol=1e-6)
    value = poptorch.inferenceModel(Head(smoothed))(X)
    torch.testing.assert_close(value, smoothed(X @ Head(smoothed).weight).detach())


def test_probability_targets_are_no_loss():
    with pytest.raises(poptorch.Error, match="Couldn't find a loss"):
        trained_gradient(lambda z: F.cross_entropy(z, ones() / 3))


def test_class_weights_are_refused():
    with pytest.raises(poptorch.Error, match='Parameter "weight" is unsupported'):
        trained_gradient(lambda z: F.cross_entropy(z, labels(), weight=torch.ones(3)))


def test_the_batch_mean_of_kl_div_is_outside_the_loss():
    got = trained_gradient(lambda z: F.kl_div(F.log_softmax(z, 1), ones() / 3, reduction="batchmean"))
    expected = true_gradient(lambda z: F.kl_div(F.log_softmax(z, 1), ones() / 3, reduction="sum"))
    torch.testing.assert_close(got, expected)


def test_labels_of_32_bits_are_labels():
    got = trained_gradient(lambda z: F.cross_entropy(z, labels().int()))
    torch.testing.assert_close(got, true_gradient(lambda z: F.cross_entropy(z, labels())))
