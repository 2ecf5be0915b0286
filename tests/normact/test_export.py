"""torch.export, ONNX and TorchScript carry folded and unfolded networks, in operations that every runtime knows."""

import logging
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import pytest
import torch
import torch._inductor
from torch import Tensor, nn

from normact import NormActFactory
from normact.fold import fold_for_inference
from normact.fold.layers import BorderedConv2d

onnxruntime = pytest.importorskip("onnxruntime", reason="onnx, onnxscript and onnxruntime are development requirements")

# Float32 through some ten layers, with other orders of summation.
TOLERANCE = 1e-5
NORMS = ["batch", "layer", "group", "instance", "group+ws", "frn", "evonorm_s0", "dyt", "derf", "none"]


def randomize(model: nn.Module) -> nn.Module:
    """Move every per-channel value away from its initial one, and go to evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for name, values in model.state_dict().items():
        if values.dim() == 1:
            low = 0.5 if name.endswith(("weight", "running_var", ".v")) else -0.5
            values.copy_(low + torch.rand(values.shape, generator=generator))
    return model.eval()


def factory(norm: str, kernel: str = "auto", **options: Any) -> NormActFactory:
    groups: Dict[str, Any] = {"num_groups": 2, "grouping": "strided"} if norm.startswith(("group", "evonorm")) else {}
    return NormActFactory(norm=norm, kernel=kernel, **groups, **options)


class Small(nn.Module):
    """Every place that constants can go to: a padded convolution, a sum, a pooled linear layer."""

    def __init__(self, norm_act: NormActFactory) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), norm_act(4, "hard_swish")
        self.conv2, self.norm2 = norm_act.conv2d(4, 4, 3, stride=2, padding=1), norm_act(4, "relu")
        self.conv3, self.norm3 = nn.Conv2d(4, 4, 1), norm_act(4, None)
        self.norm4, self.classifier = norm_act(4, "silu"), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return self.classifier(self.norm4(self.norm3(self.conv3(y)) + y).mean((2, 3)))


def small(norm: str, kernel: str = "auto") -> nn.Module:
    torch.manual_seed(0)
    return randomize(Small(factory(norm, kernel)))


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 9, 11, generator=torch.Generator().manual_seed(2))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def operators(program: torch.export.ExportedProgram) -> str:
    return " ".join(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def onnx_function(model: nn.Module, x: Tensor, **options: Any) -> Tuple[Callable[[Tensor], Tensor], Any]:
    """Return the model as onnxruntime runs it, and its ONNX graph."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, **options)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), program.model_proto.graph


@pytest.mark.parametrize("norm", NORMS)
def test_torch_export_carries_a_folded_network_in_torch_operations_alone(norm: str) -> None:
    model = small(norm)
    folded, _ = fold_for_inference(model)
    program = torch.export.export(folded, (images(),))
    assert "normact" not in operators(program)
    with torch.no_grad():
        assert relative_error(program.module()(images()), model(images())) < TOLERANCE


@pytest.mark.parametrize("norm", NORMS)
def test_torch_export_carries_an_unfolded_network_in_torch_operations_alone(norm: str) -> None:
    model = small(norm, "auto")
    program = torch.export.export(model, (images(),))
    assert "normact" not in operators(program)
    with torch.no_grad():
        assert relative_error(program.module()(images()), model(images())) < TOLERANCE


def test_an_exported_folded_network_takes_any_batch_and_image_size() -> None:
    model = small("batch")
    folded, report = fold_for_inference(model)
    assert isinstance(folded.get_submodule("conv2"), BorderedConv2d), str(report)
    dims = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(folded, (images(),), dynamic_shapes=(dims,))
    with torch.no_grad():
        for x in (images(5), torch.randn(3, 3, 6, 17)):
            assert relative_error(program.module()(x), model(x)) < TOLERANCE


@pytest.mark.parametrize("norm", ["batch", "group", "evonorm_s0"])
def test_onnx_runtime_computes_what_the_folded_network_computes(norm: str) -> None:
    model = small(norm)
    folded, _ = fold_for_inference(model)
    run, graph = onnx_function(folded, images())
    with torch.no_grad():
        assert relative_error(run(images()), model(images())) < TOLERANCE
    assert {node.domain for node in graph.node} == {""}


def test_onnx_of_a_folded_network_takes_any_batch() -> None:
    model = small("batch")
    folded, _ = fold_for_inference(model)
    run, _ = onnx_function(folded, images(), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    with torch.no_grad():
        assert relative_error(run(images(5)), model(images(5))) < TOLERANCE


def test_onnx_runtime_computes_what_an_unfolded_network_computes_and_folding_makes_it_smaller() -> None:
    model = small("group", "auto")
    run, graph = onnx_function(model, images())
    run_folded, folded_graph = onnx_function(fold_for_inference(model)[0], images())
    with torch.no_grad():
        expected = model(images())
    assert relative_error(run(images()), expected) < TOLERANCE
    assert relative_error(run_folded(images()), expected) < TOLERANCE
    assert len(folded_graph.node) < len(graph.node)


class DefaultLayers(nn.Sequential):
    """A layer with everything at its default, and one without an activation."""

    def __init__(self, kernel: str = "auto") -> None:
        norm_act = NormActFactory(kernel=kernel)
        conv1, conv2 = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False)
        super().__init__(conv1, norm_act(8, "silu"), conv2, norm_act(8, None, bias=True))


def default_layers(kernel: str = "auto") -> nn.Module:
    torch.manual_seed(0)
    return randomize(DefaultLayers(kernel))


def test_the_default_layer_decomposes_into_the_core_operations_that_compilers_know() -> None:
    model = default_layers()
    program = torch.export.export(model, (images(),)).run_decompositions()
    called = [n.target for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]  # and getitem
    # torch's own assertions beside its conversions of types compute nothing.
    others = [op for op in called if torch.Tag.core not in op.tags and "_assert" not in str(op)]
    assert len(called) > 20 and others == []
    with torch.no_grad():
        assert relative_error(program.module()(images()), model(images())) < TOLERANCE


def test_onnx_of_default_layers_takes_any_batch_and_image_size() -> None:
    model = default_layers()
    dims = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    run, _ = onnx_function(model, images(), dynamic_shapes=(dims,))
    for x in (images(5), torch.randn(3, 3, 6, 17)):
        with torch.no_grad():
            assert relative_error(run(x), model(x)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["auto", "fused"])
def test_a_network_compiled_ahead_of_time_computes_the_same(kernel: str, tmp_path: Path) -> None:
    if not hasattr(torch._inductor, "aoti_compile_and_package") or shutil.which("g++") is None:
        pytest.skip("torch's compiler ahead of time needs a C++ compiler")
    model = default_layers(kernel)
    with torch.no_grad():
        program = torch.export.export(model, (images(),))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        compiled = torch._inductor.aoti_load_package(path)
        assert relative_error(compiled(images()), model(images())) < TOLERANCE


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("is_folded", [False, True])
def test_torch_script_traces_carry_both(norm: str, is_folded: bool) -> None:
    model = small(norm)
    network = fold_for_inference(model)[0] if is_folded else model
    with torch.no_grad():
        traced = torch.jit.trace(network, images(), check_trace=False)
        assert "normact::" not in str(traced.inlined_graph)
        assert relative_error(traced(images()), model(images())) < TOLERANCE
