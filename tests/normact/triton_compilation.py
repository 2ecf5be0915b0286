"""Compiles every Triton kernel for compute capability 9.0, which needs no GPU.

It prints the bytes that each spills from registers. test_triton_kernels.py runs it as a process of its own, without
Triton's interpreter.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from normact.kernels.arguments import LayerArguments, ProxyArguments
from normact.kernels.cuda import operators as triton_operators

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64"}
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
Launch = Tuple[Any, Tuple[Any, ...], int]


class Recorder:
    """Stands in for a kernel: notes what it would be launched with."""

    def __init__(self, kernel: Any, launches: List[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Tuple[int, ...]) -> Any:
        return lambda *arguments, num_warps=4: self.launches.append((self.kernel, arguments, num_warps))


def record(launches: List[Launch], x: torch.Tensor, activation: str) -> None:
    """Run all operators on meta tensors, with recorders in the place of the kernels."""
    row = torch.empty(x.shape[1], device="meta")
    layer, proxy = LayerArguments(row, row, row, row, 8, False, activation), ProxyArguments(row, row, row, row)
    out, statistics = triton_operators.norm_act(x, layer, 1e-5)
    triton_operators.norm_act_backward(out, x, statistics, layer)
    mean, _, slopes = triton_operators.proxy_statistics(activation, proxy, 0.03)
    triton_operators.proxy_statistics_backward(mean, mean, slopes, proxy)


def source(kernel: Any, arguments: Tuple[Any, ...]) -> ASTSource:
    """Return what Triton's launcher would compile: 1 is a constant, and multiples of 16 are known to be ones."""
    signature: Dict[str, str] = {}
    constants: Dict[str, Any] = {}
    attributes: Dict[Tuple[int], List[List[Any]]] = {}
    for index, (parameter, value) in enumerate(zip(kernel.params, arguments)):
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def spilled_bytes(launch: Launch) -> int:
    kernel, arguments, num_warps = launch
    target = GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source(kernel, arguments), target=target, options={"num_warps": num_warps})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(compiled.asm["ptx"])
        command = [str(PTXAS), "-v", "-arch=sm_90a", str(path), "-o", str(path.with_suffix(".out"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(number) for number in re.findall(r"(\d+) bytes spill stores", report))


def main() -> None:
    launches: List[Launch] = []
    for name, value in list(vars(triton_operators).items()):
        if isinstance(value, triton.runtime.jit.JITFunction):
            setattr(triton_operators, name, Recorder(value, launches))
    triton_operators._processors = lambda device: 132  # type: ignore[assignment]
    x = torch.empty(64, 256, 28, 28, device="meta", dtype=torch.bfloat16)
    record(launches, x, "silu")
    narrow = torch.empty(64, 64, 112, 112, device="meta", dtype=torch.bfloat16)
    record(launches, narrow.to(memory_format=torch.channels_last), "relu")
    results: Dict[str, int] = {}
    for launch in launches:
        name = launch[0].fn.__name__
        if name not in results:
            results[name] = spilled_bytes(launch)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
