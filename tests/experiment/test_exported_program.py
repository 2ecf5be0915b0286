"""Programs of torch.export: code in them is refused and not run, and harmless ones give their outputs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch
from planted_code import (
    Nested,
    Payload,
    Records,
    pickled,
    records_of,
    write_records,
)
from torch import nn

import evaluate
from experiment.exported_program import load_program
from training.weights import CheckpointError


class Network(nn.Module):
    """With a parameter, a buffer, a constant, and a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.classifier = nn.Linear(4, 10)
        self.register_buffer("scale", torch.ones(4))
        self.shift = torch.zeros(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.convolution(x).mean((2, 3))
        with torch.no_grad():
            offset = features * self.scale + self.shift
        return self.classifier(torch.einsum("bi,bi->bi", features, offset))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program with a free batch size, as torch writes it."""
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    torch.manual_seed(0)
    sizes = ({0: torch.export.Dim("batch", min=2, max=512)},)
    torch.export.save(torch.export.export(Network().eval(), (torch.ones(4, 3, 16, 16),), dynamic_shapes=sizes), path)
    return path


def edit_graph(records: Records, edit: Callable[[Dict[str, Any]], None]) -> None:
    graph = json.loads(records["model/models/model.json"])
    edit(graph)
    records["model/models/model.json"] = json.dumps(graph).encode()


def python(canary: Path) -> str:
    return f"__import__('os').system('touch {canary}')"


def sample_inputs(records: Records, canary: Path) -> None:
    records["model/data/sample_inputs/model.pt"] = pickled(((Payload(canary),), {}))


def bare_sample_inputs(records: Records, canary: Path) -> None:
    records["model/data/sample_inputs/model.pt"] = pickle.dumps(((Payload(canary),), {}))


def second_pickle_inputs(records: Records, canary: Path) -> None:
    """Of a second pickle behind a harmless first one."""
    records["model/data/sample_inputs/model.pt"] = pickle.dumps(1) + pickle.dumps(Payload(canary))


def edit_payload(records: Records, folder: str, path_name: str, content: bytes) -> None:
    name = f"model/data/{folder}/model_{folder}_config.json"
    config = json.loads(records[name])
    entry = next(iter(config["config"].values()))
    entry.update({"path_name": path_name, "use_pickle": True})
    records.update({name: json.dumps(config).encode(), f"model/data/{folder}/{path_name}": content})


def pickled_weight(records: Records, canary: Path) -> None:
    edit_payload(records, "weights", "weight_0", pickled(Payload(canary)))


def pickled_constant(records: Records, canary: Path) -> None:
    edit_payload(records, "constants", "tensor_0", pickled(Payload(canary)))


def opaque_constant(records: Records, canary: Path) -> None:
    edit_payload(records, "constants", "opaque_obj_0", pickle.dumps(Payload(canary)))


def legacy_weights(records: Records, canary: Path) -> None:
    records["model/data/weights/model.pt"] = pickled({"w": Payload(canary)})


def legacy_constants(records: Records, canary: Path) -> None:
    records["model/data/constants/model.pt"] = pickled({"w": Payload(canary)})


def nested_load(records: Records, canary: Path) -> None:
    inner = canary.parent / "inner.pt"
    inner.write_bytes(pickled(Payload(canary)))
    records["model/data/sample_inputs/model.pt"] = pickled(((Nested(inner),), {}))


def shared_library(records: Records, canary: Path) -> None:
    """As AOTInductor packs one; that it is none shows only when it is loaded."""
    records["model/data/aotinductor/model/model.so"] = b"\x7fELF"
    records["model/data/aotinductor/model/model_metadata.json"] = b"{}"


def first_node(graph: Dict[str, Any]) -> Dict[str, Any]:
    return graph["graph_module"]["graph"]["nodes"][0]


def operator_of_python(records: Records, canary: Path) -> None:
    def edit(graph: Dict[str, Any]) -> None:
        node = first_node(graph)
        node.update({"target": "torch.os.system"})
        node["inputs"] = [{"name": "command", "arg": {"as_string": f"touch {canary}"}, "kind": 1}]

    edit_graph(records, edit)


def operator_that_loads_a_library(records: Records, canary: Path) -> None:
    edit_graph(records, lambda graph: first_node(graph).update({"target": "torch.ops.load_library"}))


def operator_that_writes_a_file(records: Records, canary: Path) -> None:
    def edit(graph: Dict[str, Any]) -> None:
        node = first_node(graph)
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [
            {"name": "filename", "arg": {"as_string": str(canary)}, "kind": 1},
            {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
            {"name": "size", "arg": {"as_int": 16}, "kind": 1},
        ]

    edit_graph(records, edit)


def size_that_is_python(records: Records, canary: Path) -> None:
    def edit(graph: Dict[str, Any]) -> None:
        values = graph["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0] = {"as_expr": {"expr_str": python(canary), "hint": None}}

    edit_graph(records, edit)


def guard_that_is_python(records: Records, canary: Path) -> None:
    edit_graph(records, lambda graph: graph.update({"guards_code": [python(canary)]}))


def name_that_is_python(records: Records, canary: Path) -> None:
    """Give an input a name with a default value, since names go into the source of forward()."""
    old, new = json.dumps("x"), json.dumps(f"x={python(canary)}")
    name = "model/models/model.json"
    records[name] = records[name].replace(old.encode(), new.encode())


def tree_that_imports(records: Records, canary: Path) -> None:
    def edit(graph: Dict[str, Any]) -> None:
        (canary.parent / "planted.py").write_text(f"import os; os.system('touch {canary}')")
        context = {"default_factory_module": "planted", "default_factory_name": "os", "dict_context": []}
        tree = {"type": "collections.defaultdict", "context": context, "children_spec": []}
        for entry in graph["graph_module"]["module_call_graph"]:
            if entry["signature"]:
                entry["signature"]["in_spec"] = json.dumps([1, tree])

    edit_graph(records, edit)


PROGRAMS = [
    (sample_inputs, "asks for the global posix.system"),
    (bare_sample_inputs, "asks for the global posix.system"),
    (second_pickle_inputs, "not the zip archive"),
    (nested_load, "asks for the global torch.serialization.load"),
    (pickled_weight, "asks for the global posix.system"),
    (pickled_constant, "asks for the global posix.system"),
    (opaque_constant, "data/constants/opaque_obj_0 is not a tensor"),
    (legacy_weights, "'data/weights/model.pt' is neither graph nor tensors"),
    (legacy_constants, "'data/constants/model.pt' is neither graph nor tensors"),
    (shared_library, "'data/aotinductor/model/model.so' is neither graph nor tensors"),
    (operator_of_python, "its graph calls 'torch.os.system'"),
    (operator_that_loads_a_library, "its graph calls 'torch.ops.load_library'"),
    (operator_that_writes_a_file, "which reaches beyond tensors"),
    (size_that_is_python, "expected arithmetic of numbers and symbols"),
    (name_that_is_python, "which is not a plain name"),
    (tree_that_imports, "nested in 'collections.defaultdict'"),
]


@pytest.mark.parametrize("plant, part", PROGRAMS, ids=[plant.__name__ for plant, _ in PROGRAMS])
def test_code_in_an_exported_program_is_refused_and_not_run(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plant: Callable[[Records, Path], None],
    part: str,
) -> None:
    canary, path, records = tmp_path / "canary", tmp_path / "evil.pt2", records_of(exported)
    plant(records, canary)
    write_records(path, records)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert evaluate.main([str(path), "--config", "generated_smoke"]) == 4
    assert part in capsys.readouterr().err
    assert not canary.exists()


# What torch itself does with these files: a canary that cannot sing proves nothing.
REAL = [sample_inputs, bare_sample_inputs, pickled_weight, pickled_constant, opaque_constant]
REAL += [legacy_weights, legacy_constants, operator_that_writes_a_file, size_that_is_python, name_that_is_python]
REAL += [guard_that_is_python, tree_that_imports]


@pytest.mark.parametrize("plant", REAL, ids=[plant.__name__ for plant in REAL])
def test_torch_alone_would_run_it(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Records, Path], None]
) -> None:
    canary, path, records = tmp_path / "canary", tmp_path / "evil.pt2", records_of(exported)
    plant(records, canary)
    write_records(path, records)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        torch.export.load(path).module()(torch.ones(4, 3, 16, 16))
    except Exception:
        pass
    assert canary.exists()


def test_a_guard_of_python_is_left_out_and_not_run(exported: Path, tmp_path: Path) -> None:
    canary, path, records = tmp_path / "canary", tmp_path / "evil.pt2", records_of(exported)
    guard_that_is_python(records, canary)
    write_records(path, records)
    module = load_program(path).module
    module(torch.ones(4, 3, 16, 16))
    assert not canary.exists()


def test_a_program_that_is_harmless_gives_the_outputs_of_its_network_to_the_bit(exported: Path) -> None:
    torch.manual_seed(0)
    network, x = Network().eval(), torch.randn(7, 3, 16, 16)
    module, batch_size, _ = load_program(exported)
    assert batch_size is None and torch.equal(module(x), network(x))


def test_a_pickled_tensor_of_a_program_is_still_read(exported: Path, tmp_path: Path) -> None:
    records = records_of(exported)
    edit_payload(records, "constants", "tensor_0", pickled(torch.full((4,), 2.0)))
    write_records(tmp_path / "model.pt2", records)
    module = load_program(tmp_path / "model.pt2").module
    assert torch.equal(module.shift, torch.full((4,), 2.0))


def test_an_empty_record_that_claims_to_be_large_is_refused(exported: Path, tmp_path: Path) -> None:
    records = records_of(exported)
    records["model/data/weights/weight_0"] = b""
    write_records(tmp_path / "model.pt2", records)
    with pytest.raises(CheckpointError, match="is empty, and claims to be a tensor that is not"):
        load_program(tmp_path / "model.pt2")
