"""The shipped experiments: each cell of the paper's tables has its configs, which differ where they should alone."""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, Tuple

import pytest
import torch

from backends.torch_native.device import TorchDevice
from configs import (
    Config,
    config_name,
    config_names,
    expected,
    expected_accuracy,
    expected_of_run,
    find_config,
    load_config,
)
from configs.yaml_file import read_yaml
from experiment.network import build_network
from experiment.prepare import prepare
from models import NETWORKS

Cells = Dict[str, Tuple[float, float]]

# ImageNet top-1 in per cent, without / with extra regularization, as printed in the paper.
TABLE_2: Cells = {
    "rn50_bn": (76.3, 75.8),
    "rn50_bnpn": (76.2, 76.0),
    "rn50_ln": (74.5, 74.6),
    "rn50_lnpn": (75.9, 76.5),
    "rn50_gn8": (75.4, 75.4),
    "rn50_gn8pn": (76.3, 76.7),
    "rn50_gn32": (75.4, 75.3),
    "rn50_gn32pn": (75.8, 76.1),
    "rn50_gn8ws": (76.6, 76.7),
    "rn50_gn8wspn": (76.8, 77.1),
}
# The column of ResNet-50 is in table 2 as well.
TABLE_3: Cells = {
    "rn50_bn": (76.3, 75.8),
    "rn50_gn32": (75.4, 75.3),
    "rn50_gn8pn": (76.3, 76.7),
    "rn101_bn": (77.9, 78.0),
    "rn101_gn32": (77.0, 77.4),
    "rn101_gn8pn": (77.6, 78.6),
    "rnx50_bn": (77.6, 77.2),
    "rnx50_gn32": (76.2, 76.6),
    "rnx50_gn8pn": (76.7, 77.8),
    "rnx101_bn": (78.7, 78.9),
    "rnx101_gn32": (77.4, 78.1),
    "rnx101_gn8pn": (77.7, 79.0),
}
TABLE_4: Cells = {
    "en_b0_bn": (76.9, 77.2),
    "en_b0_gn4": (76.2, 76.2),
    "en_b0_gn4pn": (76.8, 77.0),
    "en_b0_evo": (75.8, 75.8),
    "en_b0_gn4ws": (74.2, 74.1),
    "en_b0_frn": (75.7, 75.7),
    "en_b2_bn": (79.4, 80.0),
    "en_b2_gn4": (78.9, 79.4),
    "en_b2_gn4pn": (79.3, 80.0),
    "en_b2_evo": (78.5, 78.7),
    "en_b2_gn4ws": (77.8, 77.8),
    "en_b2_frn": (78.4, 78.8),
    "en_b0_g16_bn": (76.8, 76.7),
    "en_b0_g16_gn4": (76.2, 76.2),
    "en_b0_g16_gn4pn": (76.7, 76.8),
    "en_b0_g16_evo": (76.2, 76.5),
    "en_b0_g16_gn4ws": (76.2, 76.3),
    "en_b0_g16_frn": (74.9, 75.1),
    "en_b2_g16_bn": (79.5, 79.7),
    "en_b2_g16_gn4": (79.0, 79.6),
    "en_b2_g16_gn4pn": (79.3, 80.1),
    "en_b2_g16_evo": (78.9, 79.6),
    "en_b2_g16_gn4ws": (79.2, 79.4),
    "en_b2_g16_frn": (78.2, 78.6),
}
CELLS: Cells = {**TABLE_2, **TABLE_3, **TABLE_4}  # figure 4 draws the BN, GN and GN+PN of tables 3 and 4
HALF = [f"en_{size}_g16_gn4pn_half{part}" for size in ("b0", "b2") for part in ("", "_finetune")]


def text_of(name: str) -> str:
    return find_config(name).read_text()


def differences(first: str, second: str) -> Dict[str, Tuple[Any, Any]]:
    """section.key -> both values, of two configs."""
    left, right = (load_config(name).model_dump() for name in (first, second))
    return {
        f"{section}.{key}": (value, right[section][key])
        for section, values in left.items()
        for key, value in values.items()
        if value != right[section][key]
    }


@pytest.mark.parametrize(("name", "accuracy"), [(name, CELLS[name]) for name in sorted(CELLS)])
def test_every_cell_of_the_papers_tables_has_its_two_configs(name: str, accuracy: Tuple[float, float]) -> None:
    table = 4 if name in TABLE_4 else 2 if name in TABLE_2 else 3
    for config, top1 in zip((name, f"{name}_extra"), accuracy):
        assert ("extra regularization" in text_of(config)) == config.endswith("_extra")
        expected = expected_accuracy(config)
        assert expected is not None
        assert str(expected) == f"top-1 {top1 / 100:.3f} (the paper, Table {table})"


def test_an_accuracy_is_expected_of_shipped_experiments_alone() -> None:
    rows = [row for rows in read_yaml(expected.FILE)[0].values() for row in rows]
    assert set(rows) <= set(config_names())
    assert expected_accuracy("generated_smoke") is None
    assert str(expected_accuracy("fashion_rn20_bn")) == "top-1 0.915 (measured here, one seed)"


def test_a_run_that_means_something_else_has_no_expected_accuracy() -> None:
    assert expected_of_run("rn50_bn", load_config("rn50_bn", ["device.precision=float32"])) == (
        0.763,
        "the paper, Table 2",
    )
    assert expected_of_run("rn50_bn", load_config("rn50_bn", ["schedule.epochs=50"])) is None
    assert expected_of_run("my_own", load_config("rn50_bn")) is None


FORMER_NAMES = {
    "rn50_gn": "rn50_gn32",
    "rn50_gnpn": "rn50_gn8pn",
    "rn50_gnws": "rn50_gn8ws",
    "rn50_gnwspn_extra": "rn50_gn8wspn_extra",
    "rnx101_gn_extra": "rnx101_gn32_extra",
    "en_b0_gn": "en_b0_gn4",
    "en_b2_g16_gnpn_half_finetune": "en_b2_g16_gn4pn_half_finetune",
    "en_b0_g16_gnws": "en_b0_g16_gn4ws",
    "fashion_rn20_gn": "fashion_rn20_gn8",
    "fashion_en_g16_gnpn": "fashion_en_g16_gn4pn",
    "rn50_gnpn_ipu": "rn50_gn8pn_ipu",
}


@pytest.mark.parametrize(("former", "name"), FORMER_NAMES.items())
def test_a_former_name_without_the_groups_is_still_understood(former: str, name: str) -> None:
    assert former not in config_names()
    assert find_config(former) == find_config(name)
    assert config_name(former) == former  # a run folder keeps its name


@pytest.mark.parametrize("name", config_names())
def test_the_name_tells_the_groups_and_grouped_convolutions_are_normed_in_the_papers_grouping(name: str) -> None:
    config = load_config(name)
    told = re.search(r"_gn(\d+)", name)
    if told:
        assert config.norm.num_groups == int(told.group(1))
    has_grouped_convolutions = config.model.name.startswith("resnext") or config.model.name.endswith("_g16")
    is_group_norm = config.norm.name.startswith("group")
    assert (config.norm.grouping == "strided") == (has_grouped_convolutions and is_group_norm)


def test_the_shipped_imagenet_experiments_are_those_of_the_paper_and_nothing_else() -> None:
    files = [name for name in config_names() if not name.endswith("_ipu")]  # tested with that backend
    shipped = {name for name in files if load_config(name).data.name == "image_folder"}
    assert shipped == set(CELLS) | {f"{name}_extra" for name in CELLS} | set(HALF)


def rows() -> Iterator[Tuple[str, str]]:
    """(config, the batch norm's that it is compared with), where that is not executed elsewhere."""
    for name in config_names():
        match = re.fullmatch(r"(.+)_(?:gn\d+(?:ws)?(?:pn)?|ln(?:ws)?(?:pn)?|bnpn|evo|frn)(_extra)?", name)
        if match and f"{match[1]}_bn" in config_names():
            yield name, f"{match[1]}_bn{match[2] or ''}"


@pytest.mark.parametrize(("name", "reference"), list(rows()))
def test_configs_of_one_comparison_differ_only_in_the_norm(name: str, reference: str) -> None:
    different = set(differences(name, reference))
    assert different
    assert different <= {
        "norm.name",
        "norm.proxy",
        "norm.num_groups",
        "norm.grouping",
        "norm.eps",
        "norm.momentum",
        "batch.norm_batch_size",
    }


@pytest.mark.parametrize("name", sorted(CELLS))
def test_extra_regularization_is_mixing_and_auto_augment_and_nothing_else(name: str) -> None:
    different = set(differences(name, f"{name}_extra"))
    assert "regularization.mixup_alpha" in different
    assert different <= {"regularization.mixup_alpha", "regularization.cutmix_nominal", "data.auto_augment"}


@pytest.mark.parametrize("name", sorted(CELLS))
def test_the_norm_is_the_one_that_the_name_says(name: str) -> None:
    norm = load_config(name).norm
    words = name.rpartition("_")[2]
    base = {"bn": "batch", "ln": "layer", "gn": "group", "ev": "evonorm_s0", "fr": "frn"}[words[:2]]
    assert norm.name == base + ("+ws" if "ws" in words else "")
    assert norm.proxy == words.endswith("pn")
    assert norm.num_groups == (4 if words == "evo" else int(words[2:].rstrip("wspn")) if base == "group" else None)


def test_half_resolution_differs_in_the_image_size_and_its_fine_tuning_starts_from_it() -> None:
    for network, native, half in (("en_b0_g16", 224, 160), ("en_b2_g16", 260, 196)):
        assert differences(f"{network}_gn4pn", f"{network}_gn4pn_half") == {"data.image_size": (native, half)}
        config = load_config(f"{network}_gn4pn_half_finetune")
        assert config.model.pretrained == f"runs/{network}_gn4pn_half"
        assert (config.data.image_size, config.batch.global_batch_size, config.schedule.epochs) == (native, 512, 2)
        assert not {key for key in differences(f"{network}_gn4pn", f"{network}_gn4pn_half_finetune") if "norm." in key}


RECIPES = [name for name in config_names() if not name.startswith("generated") and not name.endswith("_ipu")]


@pytest.mark.parametrize("name", RECIPES)
def test_every_config_says_where_its_values_come_from(name: str) -> None:
    texts = [text_of(name)]
    while (base := re.search(r"(?m)^base: (\w+)$", texts[-1])) is not None:
        texts.append(text_of(base.group(1)))
    complete = texts[-1]
    if load_config(name).data.name == "image_folder":
        assert all(f"[{letter}]" in complete.split("\n\n")[0] for letter in "PASI")
        learning = complete.partition("optimizer:")[2].partition("device:")[0].splitlines()
        untold = [line for line in learning if line.startswith("  ") and "# [" not in line]
        assert not untold
    else:
        assert "[S]" in complete or "[A]" in complete or "common choices" in complete
    assert len(texts[0].splitlines()) < 60


# ---- they build, and they run ----


def on_meta(config: Config) -> torch.nn.Module:
    data: Any = type("Data", (), {"num_classes": 1000, "channels": 3})
    with torch.device("meta"):
        return build_network(config, data)[1].eval()


PARAMETERS = {
    "rn50_bn": 25_549_352,
    "en_b0_bn": 5_288_548,
    "en_b0_gn4pn": 5_325_140,
    "en_b0_g16_bn": 5_913_796,
    "en_b0_g16_gn4pn": 5_938_484,
    "en_b2_bn": 9_109_994,
    "en_b2_gn4pn": 9_169_090,
    "en_b2_g16_bn": 9_504_122,
    "en_b2_g16_gn4pn": 9_543_570,
}


# The other cells have the networks of these, with other norms.
BUILT_OFTEN = {*PARAMETERS, "rn50_gn8wspn", "rn101_gn8pn", "rnx50_gn32", "rnx101_bn", "en_b0_evo", "en_b2_g16_frn"}
BUILT = [pytest.param(name, marks=[] if name in BUILT_OFTEN else [pytest.mark.slow]) for name in sorted(CELLS)]


@pytest.mark.parametrize("name", BUILT)
def test_every_network_of_the_tables_builds_at_its_native_size(name: str) -> None:
    config = load_config(name)
    model = on_meta(config)
    assert config.data.image_size == NETWORKS[config.model.name].image_size
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def run_one_step(name: str) -> None:
    """Train one weight update at a reduced image and batch size, on generated images."""
    config = load_config(name)
    uses_batch_norm = config.norm.name.startswith("batch")
    size = 16 if config.data.image_size is None and "rn20" in name else 32
    overrides = ["data.name=generated", f"data.image_size={size}", "data.num_classes=10", "data.dir=null"]
    overrides += ["data.num_train_images=4", "data.num_eval_images=4", "data.workers=0", "batch.global_batch_size=4"]
    overrides += [
        f"batch.norm_batch_size={4 if uses_batch_norm else 1}",
        "model.pretrained=null",
        "model.reset_classifier=false",
    ]
    small = load_config(name, [*overrides, "device.name=cpu", "device.precision=float32"])
    run = prepare(name, small, TorchDevice(small.device)).start()
    session = run.session
    before = session.state()["model"]
    for batch in session.training_batches(run.data.train, 0, 0, 0):
        sums = session.train_step(batch, 0, small.optimizer.learning_rate)
        # Random logits of ten classes: ln 10 = 2.3, and a few times that for a network whose outputs are wide.
        assert 0.5 < sums.means().loss < 25
    after = session.state()["model"]
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    expected = small.model.train_only or {key.split(".")[0] for key in before}
    assert changed == set(expected)


ONE_OF_EACH_KIND = ["rn50_gn8pn_extra", "en_b0_g16_bn_extra", "en_b0_g16_gn4pn_half_finetune", "fashion_rnx_gn8"]


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_one_step_of_an_experiment_runs(name: str) -> None:
    run_one_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(config_names()) - set(ONE_OF_EACH_KIND)))
def test_one_step_of_every_other_experiment_runs(name: str) -> None:
    run_one_step(name)
