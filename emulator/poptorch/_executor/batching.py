"""How a combined batch is cut into micro batches, and how their outputs are put together again.

Layout of a combined batch: [device iteration][gradient accumulation][replica][micro batch]; the rows of one micro step
follow each other. Outputs come back in the same order.
"""

from __future__ import annotations

from typing import Any, List, NamedTuple

import torch

from ..enums import CommGroupType, OutputMode
from ..errors import backend_error


class Step(NamedTuple):
    """One forward pass: which replica in which micro step."""

    iteration: int
    accumulation: int
    replica: int


class BatchForm(NamedTuple):
    """The factors of a combined batch."""

    device_iterations: int
    gradient_accumulation: int
    replicas: int
    group_size: int  # replicas that read the same input
    group_type: CommGroupType

    @staticmethod
    def of(options: Any) -> BatchForm:
        """Return the factors that these options say."""
        return BatchForm(
            options.device_iterations,
            options.Training.gradient_accumulation,
            options.replication_factor,
            options.input_group_size,
            options.input_cgt,
        )

    @property
    def groups(self) -> int:
        """Groups of replicas that read different inputs."""
        return self.replicas // self.group_size

    @property
    def micro_steps(self) -> int:
        """Micro steps of each replica in one call."""
        return self.device_iterations * self.gradient_accumulation

    def returns(self, options: Any, step: int) -> bool:
        """Whether outputs are sent after this micro step."""
        if options.output_mode == OutputMode.EveryN:
            return (step + 1) % int(options.output_return_period) == 0
        return options.output_mode == OutputMode.All or step == self.micro_steps - 1

    @property
    def inputs(self) -> int:
        """Micro batches in one combined batch."""
        return self.device_iterations * self.gradient_accumulation * self.groups

    def steps(self, are_joined: bool) -> List[List[Step]]:
        """Run all forward passes of one call in order; return a list per device iteration, or one of all."""
        per_iteration = [
            [
                Step(iteration, accumulation, replica)
                for accumulation in range(self.gradient_accumulation)
                for replica in range(self.replicas)
            ]
            for iteration in range(self.device_iterations)
        ]
        return [[step for steps in per_iteration for step in steps]] if are_joined else per_iteration

    def group_of(self, replica: int) -> int:
        """Return the input group that a replica reads."""
        if self.group_type == CommGroupType.Orthogonal:
            return replica % self.groups
        return replica // self.group_size

    def micro_batch_rows(self, tensor: torch.Tensor) -> int:
        """Rows of a micro batch.

        Raises:
            AssertionError: the rows are not a multiple of the micro batches.
        """
        rows = 1 if tensor.dim() == 0 else tensor.shape[0]
        if rows % self.inputs:
            raise AssertionError(
                f"Invalid batch dimension: In the input {tensor.shape}, the batch dimension ({rows}) must be a "
                f"multiple of Options.deviceIterations({self.device_iterations}) * "
                f"(Options.replicationFactor({self.replicas}) / "
                f"Options.inputReplicaGrouping.input_group_size({self.group_size})) * "
                f"Options.Training.gradientAccumulation({self.gradient_accumulation}) = {self.inputs}"
            )
        return rows // self.inputs

    def micro_batch(self, tensor: torch.Tensor, iteration: int, accumulation: int, replica: int) -> torch.Tensor:
        """Return a view of the rows that a replica reads in one micro step."""
        if tensor.dim() == 0:
            return tensor.detach()
        rows = self.micro_batch_rows(tensor)
        step = iteration * self.gradient_accumulation + accumulation
        return tensor.detach().narrow(0, (step * self.groups + self.group_of(replica)) * rows, rows)


def on_device_type(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of an input with the values it has after its way to the device.

    float64 and bfloat16 become float32. Integers keep torch's 64 bits, which its functions on the CPU ask for, but
    lose what the device's 32 bits cannot hold.
    """
    if tensor.dtype in (torch.float64, torch.bfloat16):
        return tensor.detach().float()
    if tensor.dtype == torch.int64:
        return tensor.detach().to(torch.int32).to(torch.int64)
    return tensor.detach().clone()


def on_host_type(tensor: torch.Tensor) -> torch.Tensor:
    """Return an output as it arrives: int64 as int32, float64 as float32."""
    types = {torch.int64: torch.int32, torch.float64: torch.float32}
    return tensor.detach().to(types.get(tensor.dtype, tensor.dtype))


def check_output_mode(mode: int, period: int, device_iterations: int, is_pipelined: bool) -> None:
    """Check what the compiler asks of a return period.

    Raises:
        Error: EveryN in a pipeline, or with a period that does not divide the device iterations.
    """
    if mode != OutputMode.EveryN:
        return
    if is_pipelined:
        raise backend_error("AnchorReturnType::EVERYN is not valid for pipelined models: use Final, All or Sum")
    if period > device_iterations or device_iterations % period:
        raise backend_error(
            f"EveryN return period {period} must divide the number of device iterations {device_iterations}"
        )


class OutputCollector:
    """Keeps of one output tensor, micro step after micro step, what its output mode returns."""

    def __init__(self, form: BatchForm, mode: int, period: int) -> None:
        self._last_step = form.device_iterations * form.gradient_accumulation
        self._mode = mode
        self._period = period
        self._step = 0
        self._rows: List[torch.Tensor] = []

    def add(self, of_replicas: List[torch.Tensor]) -> None:
        """Take the outputs of all replicas in the next micro step."""
        self._step += 1
        arrived = [on_host_type(tensor) for tensor in of_replicas]
        if self._mode == OutputMode.All or (self._mode == OutputMode.EveryN and self._step % self._period == 0):
            self._rows += [tensor.clone() for tensor in arrived]
        elif self._mode == OutputMode.Sum:
            if self._rows:
                arrived = [total + tensor for total, tensor in zip(self._rows, arrived)]
            self._rows = [tensor.clone() for tensor in arrived]
        elif self._mode == OutputMode.Final and self._step == self._last_step:
            self._rows = [tensor.clone() for tensor in arrived]

    def result(self) -> torch.Tensor:
        """Return all rows one after the other; scalars as a vector, or as they are where there is only one."""
        if len(self._rows) == 1:
            return self._rows[0]
        if self._rows[0].dim() == 0:
            return torch.stack(self._rows)
        return torch.cat(self._rows)
