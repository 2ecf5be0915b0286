"""ONNX models: the weights that they name elsewhere, and files that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import onnx
import pytest
from planted_code import (
    bare_pickle,
    legacy_stream,
    legacy_tar,
)

from experiment.exported_program import load_program
from experiment.onnx_file import load_session
from training.weights import CheckpointError


def onnx_model(location: str, length: int = 16, as_attribute: bool = False) -> Any:
    """y = x + w, where w is to be read from another file; or a constant inside a node is."""
    tensor = onnx.TensorProto(name="w", dims=[4], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    value_of = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4])  # noqa: E731
    nodes = [onnx.helper.make_node("Add", ["x", "w"], ["y"])]
    if as_attribute:
        nodes.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
    graph = onnx.helper.make_graph(nodes, "g", [value_of("x")], [value_of("y")], [] if as_attribute else [tensor])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("as_attribute", [False, True])
@pytest.mark.parametrize(
    "location", ["../secret", "{folder}/secret", "sub/secret", "link", "*/_ORT_MEM_ADDR_/*", "", ".", "missing"]
)
def test_weights_of_an_onnx_model_are_read_from_its_own_folder_alone(
    tmp_path: Path, location: str, as_attribute: bool
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for secret in (tmp_path / "secret", folder / "sub" / "secret"):
        secret.write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "secret")
    model = onnx_model(location.format(folder=tmp_path), as_attribute=as_attribute)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"are to be read from|are not there"):
        load_session(folder / "model.onnx")


def test_weights_beside_an_onnx_model_are_read_and_no_more_than_are_there(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_model("weights.bin").SerializeToString())
    (tmp_path / "weights.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    session = load_session(tmp_path / "model.onnx")
    assert session.run(None, {"x": np.ones(4, dtype=np.float32)})[0].tolist() == [1, 2, 3, 4]
    (tmp_path / "model.onnx").write_bytes(onnx_model("weights.bin", length=1 << 40).SerializeToString())
    with pytest.raises(CheckpointError, match=r"bytes up to 1,099,511,627,776 of .* which are not there"):
        load_session(tmp_path / "model.onnx")


@pytest.mark.parametrize("make", [bare_pickle, legacy_stream, legacy_tar])
def test_a_pickle_called_onnx_or_pt2_is_refused_and_not_run(tmp_path: Path, make: Callable[[Path], bytes]) -> None:
    canary = tmp_path / "canary"
    for name, read in (("model.onnx", load_session), ("model.pt2", load_program)):
        (tmp_path / name).write_bytes(make(canary))
        with pytest.raises(CheckpointError):
            read(tmp_path / name)
    assert not canary.exists()
