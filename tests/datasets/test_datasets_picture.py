"""Pictures of a data set: the first images of each class, each in its place."""

import numpy as np
import pytest
import torch
from made_images import save_noise, write_image_folder
from PIL import Image

from analysis.confusion import plot_confusion
from datasets import picture
from datasets.memory import ImagesInMemory


def test_the_first_images_of_each_class_stand_in_its_row_on_white():
    labels = np.array([1, 0, 1, 1, 2, 0])
    images = np.arange(6, dtype=np.uint8).repeat(3 * 4 * 4).reshape(6, 3, 4, 4)
    rows = picture.first_of_each_class(ImagesInMemory(images, labels), 3, 2)
    assert [[int(image[0, 0, 0]) for image in row] for row in rows] == [[1, 5], [0, 2], [4]]
    tiled = picture.tile(rows, 4)
    assert tiled.shape == (3 * 4 + 2 * 2, 2 * 4 + 2, 3)
    assert [int(tiled[row, column, 2]) for row in (0, 6, 12) for column in (0, 6)] == [1, 5, 0, 2, 4, 255]
    assert (tiled[4:6] == 255).all() and (tiled[:, 4:6] == 255).all()


def test_gray_images_are_shown_gray():
    tiled = picture.tile([[torch.full((1, 2, 2), 7, dtype=torch.uint8)]], 2)
    assert tiled.shape == (2, 2, 3) and (tiled == 7).all()


def test_the_command_draws_made_images_and_says_what_it_cannot(tmp_path, capsys):
    out = tmp_path / "made.png"
    assert picture.main(["--config", "generated_smoke", "--columns", "3", "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.width > 200 and len(np.unique(np.asarray(image))) > 100
    assert picture.main(["--config", "nothing", "--out", str(out)]) == 2
    with pytest.raises(SystemExit, match="2"):
        picture.main(["--config", "generated_smoke", "--out", str(tmp_path / "no" / "made.png")])
    assert "no is not a folder" in capsys.readouterr().err
    folder = write_image_folder(tmp_path / "images")
    save_noise(folder / "train" / "ant" / "0.jpg", (50, 20))
    assert picture.main(["--config", "rn50_gn8pn", "--set", f"data.dir={folder}", "--out", str(out)]) == 3
    assert "a picture needs one size" in capsys.readouterr().err
    assert picture.main(["--config", "generated_smoke", "--out", str(tmp_path / "made.docx")]) == 2


@pytest.mark.parametrize("name", ["$100", "$\\frac$", "a$b$c", "caf\udce9", "鳥"])
def test_a_picture_has_names_as_they_are(tmp_path, name):
    plot_confusion([[1, 2], [3, 4]], [name, "b"], name, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as drawn:
        assert drawn.width > 100
