"""Fashion-MNIST itself, where its files are."""

import numpy as np
import pytest

from datasets import fashion_mnist, fashion_mnist_files


def test_the_real_fashion_mnist_has_the_documented_statistics():
    found = fashion_mnist_files.find_files(fashion_mnist_files.data_folder(None))
    if found is None:
        pytest.skip("the files of Fashion-MNIST are not here; `python -m datasets.fashion_mnist` obtains them")
    train, evaluation = (fashion_mnist.read_half(found, half) for half in ("train", "t10k"))
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(evaluation.labels).tolist() == [1000] * 10
    scaled = train.images / 255.0
    # the constants have four decimals
    assert abs(scaled.mean() - fashion_mnist.MEAN[0]) < 5e-5
    assert abs(scaled.std() - fashion_mnist.STD[0]) < 5e-5
    assert [fashion_mnist.CLASS_NAMES[label] for label in train.labels[:3]] == [
        "Ankle boot",
        "T-shirt/top",
        "T-shirt/top",
    ]
