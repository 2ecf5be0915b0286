"""Private training by Opacus: group norm without and with Proxy Normalization at the same epsilon.

    pip install opacus
    python -m examples.opacus_private --fashion-mnist data/fashion-mnist --seeds 6

No image's result depends on another, so that per-sample gradients exist; batch norm has none.
"""

import argparse
import warnings
from typing import Any, Dict, List, Optional, Sequence

import torch
import torch.nn.functional as F
from opacus import PrivacyEngine
from torch.utils.data import DataLoader, TensorDataset

from examples.images import Images, load_images
from examples.minimal import SmallNet, accuracy
from normact import NormActFactory

NORMS = {"GN": NormActFactory(max_groups=8, proxy=False), "GN+PN": NormActFactory(max_groups=8)}


def train(norm: str, seed: int, images: Images, options: argparse.Namespace) -> float:
    """Return top-1 on the test images after private training, and print what it spent."""
    torch.manual_seed(seed)
    model = SmallNet(NORMS[norm], images.num_classes)
    loader = DataLoader(TensorDataset(images.train, images.train_labels), batch_size=options.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    engine: Any = PrivacyEngine()
    private: Any = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        target_epsilon=options.epsilon,
        target_delta=1 / len(images.train),
        epochs=options.epochs,
        max_grad_norm=1.0,
        grad_sample_mode="hooks",  # "functorch" and "ew" are as good; "ghost" needs the criterion too
    )
    model, optimizer, loader = private
    for _ in range(options.epochs):
        for x, labels in loader:
            if len(x):  # Poisson sampling may draw none
                optimizer.zero_grad()
                F.cross_entropy(model(x), labels).backward()
                optimizer.step()
    top1 = accuracy(model, images.test, images.test_labels)
    print(f"{norm}, seed {seed}: top-1 {top1:.3f} at epsilon {engine.get_epsilon(1 / len(images.train)):.2f}")
    return top1


def main(arguments: Optional[Sequence[str]] = None) -> Dict[str, List[float]]:
    parser = argparse.ArgumentParser(description="Trains privately with GN and GN+PN.")
    parser.add_argument("--fashion-mnist", help="folder of its four files; stripes without it")
    parser.add_argument("--train-images", type=int, default=60000)
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=0.5)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="Secure RNG|Full backward hook|Optimal order")
    images = load_images(options.fashion_mnist, options.train_images, options.test_images)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results = {norm: [train(norm, seed, images, options) for seed in seeds] for norm in NORMS}
    for norm, values in results.items():
        print(f"{norm}: {torch.tensor(values).mean():.4f} +- {torch.tensor(values).std(correction=0):.4f}")
    return results


if __name__ == "__main__":
    main()
