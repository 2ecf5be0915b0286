"""The kernels that a wheel brings: which library is chosen, what happens without one, and their bits."""

from __future__ import annotations

import hashlib
import logging
import subprocess
from pathlib import Path
from typing import Any, List, Optional

import pytest
import torch
from test_kernels_processes import run_python

from normact.kernels import operators
from normact.kernels.cpu import prebuilt
from normact.kernels.cpu.build import torch_version
from normact.kernels.cpu.compiler import BuildError
from normact.kernels.cpu.native_library import ISA_VARIABLE, processor_flags

SERVER = "fpu sse2 fma movbe f16c bmi1 avx2 bmi2 avx512f avx512dq avx512cd avx512bw avx512vl"
DESKTOP = "fpu sse2 fma movbe f16c bmi1 avx2 bmi2"
needs_stable_torch = pytest.mark.skipif(
    torch_version() < prebuilt.OLDEST_TORCH, reason="torch has no stable interface before 2.10"
)


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a wheel's folder: names and sums as they are, and no code."""
    for name in prebuilt.ISA_NEEDS:
        content = name.encode()
        (tmp_path / f"normact_kernels_{name}.so").write_bytes(content)
        (tmp_path / f"normact_kernels_{name}.so.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")
    monkeypatch.setattr(prebuilt, "LIBRARY_FOLDER", tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.10.0+cpu")
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("processor", "wanted", "chosen"),
    [
        (SERVER, None, "avx512"),
        (DESKTOP, None, "avx2"),
        (DESKTOP.replace("bmi2", ""), None, "baseline"),
        ("half thumb neon", None, "baseline"),
        ("", None, "baseline"),
        (SERVER, "avx2", "avx2"),
        (SERVER, "baseline", "baseline"),
        (SERVER, "native", None),  # built here, for all that this processor has
        (DESKTOP, "avx512", None),
    ],
)
def test_the_processor_chooses_the_library_unless_it_is_told(
    processor: str, wanted: Optional[str], chosen: Optional[str], libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prebuilt, "processor_flags", lambda: processor)
    if wanted is not None:
        monkeypatch.setenv(ISA_VARIABLE, wanted)
    found = prebuilt.prebuilt_library()
    assert (found and found.name) == (chosen and f"normact_kernels_{chosen}.so")


@pytest.mark.parametrize("version", ["2.4.1", "2.9.1+cu128"])
def test_an_older_torch_has_its_kernels_built(version: str, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert prebuilt.prebuilt_library() is None


@pytest.mark.parametrize("damage", ["cut", "zeroed", "no sum", "no text", "not there"])
def test_a_damaged_library_is_told_of_and_the_next_one_taken(
    damage: str, libraries: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prebuilt, "processor_flags", lambda: DESKTOP)
    library = libraries / "normact_kernels_avx2.so"
    sum_file = libraries / "normact_kernels_avx2.so.sha256"
    damages = {
        "cut": lambda: library.write_bytes(library.read_bytes()[:-1]),
        "zeroed": lambda: library.write_bytes(bytes(4)),
        "no sum": sum_file.unlink,
        "no text": lambda: sum_file.write_bytes(b"\xff\xfe"),
        "not there": library.unlink,
    }
    damages[damage]()
    with caplog.at_level(logging.WARNING, logger="normact.kernels"):
        found = prebuilt.prebuilt_library()
    assert found is not None and found.name == "normact_kernels_baseline.so"
    assert ("is damaged" in caplog.text) == (damage != "not there")


def test_a_source_tree_brings_none() -> None:
    assert not prebuilt.LIBRARY_FOLDER.exists() and prebuilt.prebuilt_library() is None


def test_a_library_that_does_not_load_has_the_kernels_built(libraries: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="normact.kernels"):
        assert not operators._load_prebuilt()
    assert "the wheel's kernels do not load here" in caplog.text and "so they are built" in caplog.text


# ---- the real libraries, each in a process of its own, since a process has one set of operators ---------------------

USE = "from pathlib import Path; from normact.kernels.cpu import prebuilt; prebuilt.LIBRARY_FOLDER = Path({!r}); "


@pytest.fixture(scope="module")
def real_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel") / "prebuilt_libraries"
    try:
        prebuilt.build_prebuilt_libraries(folder)
    except BuildError as error:
        pytest.skip(str(error))
    return folder


def results_of_many_layers(file: str) -> None:
    """Save outputs and gradients of every activation, type and layout; run in processes by the test below."""
    from normact import NormActFactory, has_fused_kernels

    results: List[Any] = []
    cases = [((2, 32, 13, 11), torch.contiguous_format), ((2, 32, 13, 11), torch.channels_last),
             ((3, 64), torch.contiguous_format), ((2, 48, 200), torch.contiguous_format),
             ((1, 96, 40, 40), torch.channels_last), ((2, 6, 3, 5, 7), torch.channels_last_3d)]  # fmt: skip
    for activation in ("relu", "silu", "gelu", None):
        for dtype in (torch.float32, torch.bfloat16):
            for shape, memory_format in cases:
                generator = torch.Generator().manual_seed(0)
                layer = NormActFactory(norm="group", num_groups=2, kernel="fused")(shape[1], activation)
                with torch.no_grad():
                    for parameter in layer.parameters():
                        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
                x = (3 * torch.randn(shape, generator=generator) + 1).to(dtype).contiguous(memory_format=memory_format)
                out = layer(x.requires_grad_())
                out.backward(torch.randn(shape, generator=generator).to(dtype))
                results.append([out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())])
    assert has_fused_kernels()
    torch.save(results, file)


def finished(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
@needs_stable_torch
@pytest.mark.parametrize("instructions", list(prebuilt.ISA_NEEDS))
def test_they_give_the_bits_of_the_kernels_built_here(instructions: str, real_libraries: Path, tmp_path: Path) -> None:
    if not prebuilt.ISA_NEEDS[instructions] <= frozenset(processor_flags().split()):
        pytest.skip(f"no {instructions} here")
    for name, use in (("wheel", USE.format(str(real_libraries))), ("built", "")):
        program = f"{use}import test_prebuilt; test_prebuilt.results_of_many_layers({str(tmp_path / name)!r})"
        output = finished(run_python(["-c", program], {ISA_VARIABLE: instructions}))
        assert name == "built" or "building" not in output
    for layer, expected in zip(*(torch.load(tmp_path / name) for name in ("wheel", "built"))):
        assert len(layer) == len(expected) >= 4 and all(map(torch.equal, layer, expected))


@pytest.mark.slow
@needs_stable_torch
def test_their_gradients_pass_all_that_the_built_ones_do(real_libraries: Path) -> None:
    files = ["test_kernels_operators.py", "test_function_transforms.py", "test_kernels.py"]
    arguments = ["-q", "-rs", *(f"tests/normact/{name}" for name in files)]
    use = USE.format(str(real_libraries))
    output = finished(run_python(["-c", f"{use}import pytest, sys; sys.exit(pytest.main({arguments!r}))"]))
    assert "skipped" not in output and "building" not in output, output
