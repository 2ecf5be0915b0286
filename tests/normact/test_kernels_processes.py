"""The fused layer in processes of their own: DistributedDataParallel, and the kernels for other instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Optional

import pytest
import torch
from torch import Tensor, nn

from normact import NormActFactory
from normact.kernels.cpu.native_library import ISA_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 8
pytestmark = pytest.mark.usefixtures("built_kernels")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    norm_act = NormActFactory(norm="group", num_groups=4, kernel="fused")
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), norm_act(16, "relu"), nn.Conv2d(16, 8, 3, bias=False), norm_act(8, "silu")
    )


def gradients(model: nn.Module, images: Tensor) -> List[Tensor]:
    """Of the mean over images, so that the average over processes is that of the whole batch."""
    model(images).square().sum(dim=(1, 2, 3)).mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def all_images() -> Tensor:
    return torch.randn(IMAGES, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def run_replica(rank: int, replicas: int, folder: Path) -> None:
    """Run one process of DistributedDataParallel; started by the test below."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=replicas)
    share = all_images().chunk(replicas)[rank]
    got = gradients(nn.parallel.DistributedDataParallel(network()), share)
    torch.save(got, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def run_python(arguments: List[str], environment: Optional[Dict[str, str]] = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "normact"))),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results_equal_one_process(function: str, tmp_path: Path) -> None:
    """Run a function of this file in two processes, and compare the gradients that they save with those of one."""
    program = "import pathlib, test_kernels_processes as t; t.{}({}, 2, pathlib.Path({!r}))"
    processes = [run_python(["-c", program.format(function, rank, str(tmp_path))]) for rank in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    expected = gradients(network(), all_images())
    assert len(first) == len(expected) == 10
    for a, b, whole in zip(first, second, expected):
        assert torch.equal(a, b)
        # The halves are added in another order than the images of one batch.
        torch.testing.assert_close(a, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.slow
def test_two_ddp_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    results_equal_one_process("run_replica", tmp_path)


def run_shard(rank: int, replicas: int, folder: Path) -> None:
    """One process of FSDP2, whose network begins on the meta device; started by the test below."""
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=replicas)
    mesh = torch.distributed.init_device_mesh("cpu", (replicas,))
    with torch.device("meta"):
        model = network()
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for layer in model:
        layer.reset_parameters()
    whole = network()
    with torch.no_grad():  # random values of one process are not those of another's shard
        for name, value in whole.named_parameters():
            shard = model.get_parameter(name)
            if name.startswith(("1.", "3.")):
                assert torch.equal(shard.full_tensor(), value), name  # type: ignore[attr-defined]
            else:
                shard.copy_(torch.distributed.tensor.distribute_tensor(value, mesh, shard.placements))  # type: ignore[attr-defined]
    got = gradients(model, all_images().chunk(replicas)[rank])
    torch.save([gradient.full_tensor() for gradient in got], folder / f"{rank}.pt")  # type: ignore[attr-defined]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_fsdp_processes_begun_on_the_meta_device_give_the_gradients_of_one(tmp_path: Path) -> None:
    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("no FSDP2 in this torch")
    results_equal_one_process("run_shard", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["avx2", "baseline"])
def test_other_instruction_sets_equal_float64_too(instructions: str) -> None:
    if instructions == "avx2" and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("no AVX2 here")
    process = run_python(
        ["-m", "pytest", "-q", "-rs", "tests/normact/test_kernels.py", "tests/normact/test_kernels_shapes.py"],
        {ISA_VARIABLE: instructions},
    )
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0 and "skipped" not in output, output
