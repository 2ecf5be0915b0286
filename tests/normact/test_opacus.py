"""Private training by Opacus: per-sample gradients of converted networks, in all modes, against one image at a time."""

import copy
import warnings
from typing import Any, Dict, List

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normact import NormActFactory
from normact.adapters import for_opacus

opacus = pytest.importorskip("opacus", reason="pip install -r requirements-libraries.txt")
NORM_ACT = NormActFactory(norm="group", max_groups=8)


class Segmentation(nn.Module):
    """nnU-Net's plain network, with one number a class for each image."""

    def __init__(self) -> None:
        super().__init__()
        unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
        self.unet = unet.PlainConvUNet(
            1, 2, (4, 8), nn.Conv3d, 3, (1, 2), 1, 5, 1, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True},
            nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.unet(x).mean((2, 3, 4))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "nnunet":
        model: nn.Module = Segmentation()
    elif name.startswith("timm."):
        model = pytest.importorskip("timm").create_model(name[5:], num_classes=5)
    else:
        model = getattr(pytest.importorskip("torchvision").models, name)(num_classes=5)
    model, report = for_opacus(model, NORM_ACT)
    assert not report.in_place
    return model.train()


def data(name: str) -> List[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (3, 1, 8, 8, 8) if name == "nnunet" else (3, 3, 32, 32)
    return [torch.randn(shape, generator=generator), torch.tensor([0, 3, 1])]


def one_by_one(model: nn.Module, x: Tensor, labels: Tensor) -> List[Dict[str, Tensor]]:
    gradients = []
    for image, label in zip(x, labels):
        model.zero_grad()
        F.cross_entropy(model(image[None]), label[None]).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    return gradients


NETWORKS = [
    "timm.resnet18",
    "nnunet",
    pytest.param("timm.resnet50", marks=pytest.mark.slow),
    pytest.param("resnet50", marks=pytest.mark.slow),
]


def expected_warnings() -> None:
    # Opacus' own: the images need no gradient, and the modes that it calls experimental.
    for words in ("Full backward hook is firing", ".*xperimental", "Secure RNG", ".*torch.jit", "Optimal order"):
        warnings.filterwarnings("ignore", message=words)


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ew"])
@pytest.mark.parametrize("name", NETWORKS)
def test_per_sample_gradients_are_those_of_one_image_at_a_time(name: str, mode: str) -> None:
    if (name, mode) == ("nnunet", "ew"):
        pytest.skip("torch's expanded weights know no transposed convolution")
    model = network(name)
    x, labels = data(name)
    expected = one_by_one(copy.deepcopy(model), x, labels)
    # In torchvision's resnet50 float32 itself is no nearer: an element of one image's own gradient is 1.14e-5 away from
    # float64. There the whole gradient, whose length is what clipping measures, is compared with float64.
    exact_gradients = one_by_one(copy.deepcopy(model).double(), x.double(), labels) if name == "resnet50" else []
    wrapped: Any = opacus.grad_sample.utils.wrap_model(model, grad_sample_mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected_warnings()
        F.cross_entropy(wrapped(x), labels).backward()
    for index, gradients in enumerate(expected):
        got = {n: wrapped._module.get_parameter(n).grad_sample[index] for n in gradients}
        if name == "resnet50":
            exact = exact_gradients[index]
            error = torch.cat([(got[n] - exact[n]).flatten() for n in exact]).norm()
            assert error <= 1e-5 * torch.cat([value.flatten() for value in exact.values()]).norm()
            continue
        for parameter_name, gradient in gradients.items():
            difference = (got[parameter_name] - gradient).abs().max()
            assert difference <= 1e-5 * gradient.abs().max().clamp(min=1.0), parameter_name


def test_a_module_with_two_names_is_counted_once_and_stays_an_attribute_under_both() -> None:
    model = network("nnunet")
    modules = list(model.named_modules(remove_duplicate=False))
    assert len(modules) == len({id(module) for _, module in modules})
    block = model.unet.encoder.stages[0][0].convs[0]
    assert block.norm is block.all_modules[1] and "norm" not in block._modules
    assert not any("decoder.encoder" in name for name in model.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_ghost_clipping_has_the_norms_of_one_image_at_a_time(name: str) -> None:
    model = network(name)
    x, labels = data(name)
    gradients = one_by_one(copy.deepcopy(model), x, labels)
    # In float64: a float32 sum over 24 million squares is 0.3 % off by itself.
    expected = torch.stack(
        [torch.cat([g.flatten() for g in of_one.values()]).double().norm().float() for of_one in gradients]
    )
    wrapped: Any = opacus.grad_sample.utils.wrap_model(model, grad_sample_mode="ghost", max_grad_norm=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected_warnings()
        F.cross_entropy(wrapped(x), labels).backward()
    torch.testing.assert_close(wrapped.get_norm_sample(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ew", "ghost"])
def test_a_private_step_moves_every_parameter_of_the_layers(mode: str) -> None:
    model = network("timm.resnet18")
    x, labels = data("timm.resnet18")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        expected_warnings()
        made: Any = opacus.PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=0.1, max_grad_norm=1.0,
            poisson_sampling=False, grad_sample_mode=mode, criterion=nn.CrossEntropyLoss(),
        )  # fmt: skip
        wrapped, optimizer, *rest = made
        criterion = rest[0] if mode == "ghost" else nn.CrossEntropyLoss()
        criterion(wrapped(x), labels).backward()
        optimizer.step()
    moved = {name for name, value in wrapped._module.named_parameters() if not torch.equal(value, before[name])}
    assert {"proxy_beta", "proxy_gamma", "weight", "bias"} <= {name.rpartition(".")[2] for name in moved}
