"""evaluate.py: numbers by hand, and the same accuracy from a run, its checkpoint and its exported forms."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import timm
import torch
from safetensors.torch import save_file

import evaluate
import train
from configs import load_config
from datasets import build_datasets
from experiment.checkpoint import load_checkpoint, newest_checkpoint
from experiment.network import build_network
from experiment.starting_weights import check_classes, place_weights
from experiment.weights_file import read_weights
from training.evaluation import Evaluation
from training.weights import CheckpointError

CONFIG = ["data.num_train_images=192", "data.num_eval_images=130", "schedule.epochs=2", "averaging.every=epoch"]
CONFIG += ["averaging.decay=0.5"]


def test_counts_equal_hand_computed_numbers() -> None:
    evaluation = Evaluation(3)
    # Probabilities by hand: log p as logits. Class 0 hit at .7, class 1 taken for 2 at .6, class 2 hit at .5.
    rows = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.25, 0.5]]
    evaluation.add(torch.tensor(rows).log()[:2], torch.tensor([0, 1]))
    evaluation.add(torch.tensor(rows).log()[2:], torch.tensor([2]))
    report = evaluation.report(("a", "b", "c"))
    assert (report["images"], report["top1"], report["top5"]) == (3, 2 / 3, 1.0)
    assert report["confusion"] == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert [row["top1"] for row in report["classes"]] == [1.0, 0.0, 1.0]
    # -ln(.7 * .3 * .5) / 3; three bins of one image each: |1 - .7|, |0 - .6|, |1 - .5|.
    assert report["loss"] == pytest.approx(0.75126, abs=1e-5)
    assert report["ece"] == pytest.approx((0.3 + 0.6 + 0.5) / 3, rel=1e-6)


def test_confidences_of_one_bin_are_averaged_before_they_are_compared() -> None:
    evaluation = Evaluation(2)
    # .61 and .65 are both in (9/15, 10/15]: accuracy 1/2, confidence .63.
    evaluation.add(torch.tensor([[0.61, 0.39], [0.65, 0.35]]).log(), torch.tensor([0, 1]))
    assert evaluation.report(("a", "b"))["ece"] == pytest.approx(0.13, rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused_with_their_number(value: float) -> None:
    evaluation = Evaluation(2)
    with pytest.raises(ValueError, match="the outputs for 1 of 2 images are not finite"):
        evaluation.add(torch.tensor([[0.5, value], [0.5, 0.5]]), torch.tensor([0, 1]))
    assert evaluation.images == 0


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(folder)]
    assert train.main(arguments + [part for setting in CONFIG for part in ("--set", setting)]) == 0
    return folder


def evaluated(out: Path, *arguments: str) -> Dict[str, Any]:
    assert evaluate.main([*arguments, "--out", str(out)]) == 0
    return json.loads(out.read_text())


def averaged_network(folder: Path) -> Tuple[torch.nn.Module, torch.Tensor]:
    """Return the network that the run evaluated, and five of its images as it is given them."""
    config = load_config(str(folder / "config.yaml"))
    data = build_datasets(config.data, 0)
    _, network = build_network(config, data)
    path = newest_checkpoint(folder / "checkpoints")
    assert path is not None
    network.load_state_dict(load_checkpoint(path)["average"]["weights"])
    return network.eval(), torch.zeros(5, 3, 16, 16)


def test_a_run_folder_gives_the_accuracy_and_loss_that_its_run_found(run_folder: Path, tmp_path: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    picture = tmp_path / "confusion.png"
    report = evaluated(tmp_path / "report.json", str(run_folder), "--picture", str(picture))
    assert report["images"] == 130 and report["weights"] == "average"
    assert (report["top1"], report["top5"]) == (summary["top1"], summary["top5"])
    # The run normalizes with one multiplication and sums in other parts: float32 rounding.
    assert report["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert sum(map(sum, report["confusion"])) == 130
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_printed_report_has_a_line_for_each_class(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run_folder)]) == 0
    text = capsys.readouterr().out
    report = json.loads(text)
    assert report["images"] == 130 and len(report["classes"]) == len(report["confusion"]) == 10
    assert f"    {json.dumps(report['classes'][3])}," in text.splitlines()
    assert f"    {json.dumps(report['confusion'][9])}" in text.splitlines()


def assert_evaluates_as_the_run(exported: Path, run_folder: Path) -> None:
    out = exported.with_suffix(".json")
    expected = evaluated(out, str(run_folder))
    report = evaluated(out, str(exported), "--config", str(run_folder / "config.yaml"))
    assert report["images"] == 130
    assert report["loss"] == pytest.approx(expected["loss"], rel=1e-4)  # float32 through exported operations
    assert report["confusion"] == expected["confusion"]


@pytest.mark.parametrize("is_fixed", [True, False])
def test_an_exported_program_gives_the_same_accuracy(run_folder: Path, tmp_path: Path, is_fixed: bool) -> None:
    network, x = averaged_network(run_folder)
    sizes = None if is_fixed else ({0: torch.export.Dim("batch", min=2, max=512)},)
    torch.export.save(torch.export.export(network, (x,), dynamic_shapes=sizes), str(tmp_path / "model.pt2"))
    assert_evaluates_as_the_run(tmp_path / "model.pt2", run_folder)


class Doubled(torch.nn.Module):
    """Gives its outputs twice."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        y: torch.Tensor = self.network(x)
        return y, y


def write_program(path: Path, network: torch.nn.Module, x: torch.Tensor) -> Path:
    sizes = ({0: torch.export.Dim("batch", min=2, max=512)},)
    torch.export.save(torch.export.export(network.eval(), (x,), dynamic_shapes=sizes), str(path))
    return path


@pytest.mark.parametrize(
    ("network", "x", "part"),
    [
        (
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 10)).half(),
            torch.zeros(2, 3, 16, 16, dtype=torch.float16),
            "cannot compute with these images: it wants float16 (N, 3, 16, 16), and is given float32 (100, 3, 16, 16)",
        ),
        (
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)),
            torch.zeros(2, 3, 32, 32),
            "cannot compute with these images: it wants float32 (N, 3, 32, 32), and is given float32 (100, 3, 16, 16)",
        ),
        (
            Doubled(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 10))),
            torch.zeros(2, 3, 16, 16),
            "gives 2 outputs, and logits are one tensor",
        ),
    ],
    ids=["float16", "another size", "two outputs"],
)
def test_a_program_for_other_images_says_what_it_wants_and_what_it_got(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], network: torch.nn.Module, x: torch.Tensor, part: str
) -> None:
    path = write_program(tmp_path / "model.pt2", network, x)
    few = ["--set", "data.num_train_images=10", "--set", "data.num_eval_images=130"]
    assert evaluate.main([str(path), "--config", "generated_smoke", *few]) == 4
    error = capsys.readouterr().err
    assert part in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
def test_an_onnx_model_of_one_batch_size_gives_the_same_accuracy(run_folder: Path, tmp_path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    network, x = averaged_network(run_folder)
    torch.onnx.export(network, (x,), str(tmp_path / "model.onnx"), dynamo=True, verbose=False)
    assert_evaluates_as_the_run(tmp_path / "model.onnx", run_folder)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_state_dict_of_timm_gives_the_accuracy_of_timms_network(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    peer = timm.create_model("efficientnet_b0", num_classes=10).eval()
    file = tmp_path / f"efficientnet_b0.{ending}"
    torch.save(peer.state_dict(), file) if ending == "pth" else save_file(peer.state_dict(), file)
    settings = ["data.num_train_images=10", "data.num_eval_images=60", "data.image_size=32", "data.crop_padding=null"]
    settings += ["model.name=efficientnet_b0", "model.width=null", "norm.name=batch", "norm.proxy=false"]
    settings += ["norm.num_groups=null"]
    arguments = ["--config", "generated_smoke", *(part for setting in settings for part in ("--set", setting))]
    report = evaluated(tmp_path / "report.json", str(file), *arguments)
    data = build_datasets(load_config("generated_smoke", settings).data, 0)
    images, labels = zip(*(data.evaluation[index] for index in range(60)))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    with torch.no_grad():
        taken_for = peer((torch.stack(images) / 255 - mean) / std).argmax(dim=1)
    confusion = torch.zeros(10, 10, dtype=torch.long)
    confusion.index_put_((torch.tensor(labels), taken_for), torch.ones(60, dtype=torch.long), accumulate=True)
    assert report["images"] == 60
    assert report["confusion"] == confusion.tolist()
    assert evaluate.main([str(file), *arguments, "--set", "norm.name=layer"]) == 4  # it has no running statistics
    assert "weights do not record theirs" not in caplog.text
    assert evaluate.main([str(file), *arguments, "--set", "norm.eps=0.001"]) == 0
    assert "norm.eps is 0.001, but weights do not record theirs: in timm this network has 1e-05" in caplog.text


def test_a_checkpoint_is_evaluated_with_the_classifier_that_it_trained(run_folder: Path, tmp_path: Path) -> None:
    expected = evaluated(tmp_path / "report.json", str(run_folder))
    gone = ["--set", "model.pretrained=/not/there/any/more.pt", "--set", "model.reset_classifier=true"]
    report = evaluated(tmp_path / "report.json", str(run_folder), *gone)
    assert report["confusion"] == expected["confusion"]


def test_weights_of_as_many_other_classes_are_refused(run_folder: Path) -> None:
    saved = read_weights(run_folder)
    assert saved.class_names is not None
    check_classes(saved, saved.class_names)
    check_classes(saved, saved.class_names[:-1])  # which the classifier's shape tells
    with pytest.raises(CheckpointError, match=r"2 of 10 differ, class 3 is 'pattern 3' there and 'pattern 4' here"):
        check_classes(saved, (*saved.class_names[:3], "pattern 4", "pattern 3", *saved.class_names[5:]))


def test_placing_weights_looks_at_their_classes_unless_the_classifier_is_new(run_folder: Path) -> None:
    config = load_config("generated_smoke", CONFIG)
    data = build_datasets(config.data, 0)
    factory, network = build_network(config, data)
    saved, others = read_weights(run_folder), data.class_names[::-1]
    place_weights(network, factory, saved, data.class_names)
    place_weights(network, factory, saved, others, reset_classifier=True)
    with pytest.raises(CheckpointError, match="10 of 10 differ"):
        place_weights(network, factory, saved, others)
    with pytest.raises(CheckpointError, match="its configuration has no model"):
        place_weights(network, factory, dataclasses.replace(saved, config={}), data.class_names)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["{folder}", "--set", "data.num_classes=7"], 4, "does not fit this ResNet"),
        (["{folder}", "--set", "norm.num_groups=2"], 4, "trained with another norm"),
        (["{folder}", "--set", "device.precision=bfloat16"], 2, "networks are evaluated in float32"),
        (["{folder}/model.onnx", "--device", "cuda"], 2, ".onnx files run on the CPU here"),
        pytest.param(
            ["{folder}", "--device", "cuda"],
            2,
            "no CUDA device is available",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["{folder}", "--picture", "{folder}/confusion.txt"], 2, "is no name of a picture; let it end in .png"),
        (["{folder}", "--reestimate-statistics"], 2, "norm group has no statistics"),
        (["{folder}/model.onnx", "--reestimate-statistics"], 2, "those of .onnx files are fixed"),
        (["{folder}/nothing"], 4, "cannot be read"),
        (["{folder}/model.pt2"], 2, "add --config NAME"),
        (["{folder}/config.pt2", "--config", "generated_smoke"], 4, "cannot be read as an exported program"),
    ],
)
def test_what_does_not_fit_is_one_line_and_an_exit_code(
    run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: List[str], code: int, part: str
) -> None:
    (run_folder / "config.pt2").write_text("no program")
    assert evaluate.main([argument.format(folder=run_folder) for argument in arguments]) == code
    error = capsys.readouterr().err
    assert part in error and error.startswith("error: ") and "Traceback" not in error
