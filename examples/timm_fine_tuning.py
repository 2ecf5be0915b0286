"""A network of timm, converted and fine-tuned.

    pip install timm
    python -m examples.timm_fine_tuning --network resnet18 --pretrained

Converting keeps the weights of the convolutions; another norm is another function, which the training adapts to.
"""

import argparse
from typing import Optional, Sequence

import timm
import torch
import torch.nn.functional as F

from examples.images import load_images
from examples.minimal import accuracy, parameter_groups
from normact import NormActFactory, convert_norm, fold_for_inference


def main(arguments: Optional[Sequence[str]] = None) -> float:
    parser = argparse.ArgumentParser(description="Converts a network of timm to GN+PN and trains it.")
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--pretrained", action="store_true", help="start from timm's weights, which it downloads")
    parser.add_argument("--fashion-mnist", help="folder of its four files; stripes without it")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8, help="no image depends on another: any size will do")
    parser.add_argument("--lr", type=float, default=0.02)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    images = load_images(options.fashion_mnist, 60000 if options.fashion_mnist else 2000, 500)
    model = timm.create_model(options.network, pretrained=options.pretrained, num_classes=images.num_classes)
    model, report = convert_norm(model, NormActFactory(norm="group", max_groups=8))
    print(report)
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=options.lr, momentum=0.9)
    model.train()
    for step in range(1, options.steps + 1):
        chosen = torch.randint(0, len(images.train), (options.batch_size,))
        loss = F.cross_entropy(model(images.train[chosen]), images.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    top1 = accuracy(model, images.test, images.test_labels)
    folded, _ = fold_for_inference(model.eval())  # PN's constants move into the convolutions
    print(f"top-1 {top1:.3f}; folded for inference: {accuracy(folded, images.test, images.test_labels):.3f}")
    return top1


if __name__ == "__main__":
    main()
