"""A file with a `base`: the base's values with the file's own over them, and errors that name the file at fault."""

from pathlib import Path

import pytest

from configs import ConfigError, find_config, load_config

BASE = find_config("generated_smoke")


def write(folder: Path, text: str) -> str:
    path = folder / "elsewhere.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_replaces_single_keys_of_its_base_and_the_command_line_replaces_both(tmp_path: Path) -> None:
    file = write(tmp_path, "base: generated_smoke\nschedule:\n  epochs: 7\ndevice:\n  name: cpu\n")
    plain, config = load_config("generated_smoke").model_dump(), load_config(file).model_dump()
    assert (config["schedule"].pop("epochs"), config["device"].pop("name")) == (7, "cpu")
    plain["schedule"].pop("epochs")
    plain["device"].pop("name")
    assert config == plain
    over = load_config(file, ["schedule.epochs=9"], [("--device", "device.name", "cuda")])
    assert (over.schedule.epochs, over.device.name) == (9, "cuda")


def test_a_path_is_a_base_too(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, f"base: {BASE}\n")) == load_config("generated_smoke")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "base: generated_smok\n",
            "elsewhere.yaml: base generated_smok: no such experiment; the nearest are generated",
        ),
        ("base: not/there.yaml\n", "elsewhere.yaml: base not/there.yaml: no such file"),
        ("base: elsewhere.yaml\n", "no such file"),
        ("base: generated_smoke\nschedule: 5\n", "schedule is not a section with keys"),
        ("base: generated_smoke\nschedule:\n  epochs: 0\n", "elsewhere.yaml:3: schedule.epochs: got 0"),
        ("base: generated_smoke\nschedule:\n  epoch: 5\n", "elsewhere.yaml:3: schedule.epoch: unknown key"),
        ("base: generated_smoke\nbases: 5\n", "bases is not a section with keys"),
    ],
)
def test_a_mistake_is_named_with_the_file_that_has_it(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_base_has_a_base_and_each_replaces_what_is_below(tmp_path: Path) -> None:
    file = write(tmp_path, "base: rn50_gn8pn_extra\nregularization:\n  cutmix_nominal: null\n")
    config = load_config(file)
    assert (config.model.name, config.norm.num_groups) == ("resnet50", 8)  # from two and three files below
    assert (config.regularization.mixup_alpha, config.regularization.cutmix_nominal) == (0.2, None)


def test_files_that_are_each_others_base_are_an_error(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"base: {second}\n")
    second.write_text(f"base: {first}\n")
    with pytest.raises(ConfigError, match=r"second\.yaml: base .*first\.yaml is a file that has this one as a base"):
        load_config(str(first))


def test_a_mistake_is_named_with_the_nearest_file_that_gives_the_key(tmp_path: Path) -> None:
    middle = tmp_path / "middle.yaml"
    middle.write_text("base: generated_smoke\nschedule:\n  epochs: 0\n")
    with pytest.raises(ConfigError, match=r"middle\.yaml:3: schedule\.epochs: got 0"):
        load_config(write(tmp_path, f"base: {middle}\nrun:\n  seed: 3\n"))


def test_a_mistake_in_the_base_is_named_with_the_base(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(BASE.read_text().replace("  epochs: 4", "  epochs: 0", 1))
    with pytest.raises(ConfigError, match=r"base\.yaml:33: schedule\.epochs: got 0"):
        load_config(write(tmp_path, f"base: {base}\ndevice:\n  name: cpu\n"))
