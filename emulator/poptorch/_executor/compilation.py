"""Compiling a model: one forward pass on weights that are reloaded afterwards, and the checks of what it found."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, List, NamedTuple, Optional, Sequence

import torch

from .._device import hardware
from .._device.device_run import DeviceRun
from .._device.device_weights import DeviceWeights
from .._device.graph_gradients import warn_of_hooks
from .._device.interception import DeviceMode
from .._device.marks import is_on_device, mark_on_device, mark_variable
from .._device.memory_meter import MemoryMeter
from .._device.operation_names import OperationNames
from .._device.operator_watch import OperatorWatch, is_strict
from .._device.overlap import check_overlap_options
from .._logging import logger
from .._options.backend_options import validate_backend_options
from .._options.strategies import PipelinedExecution, ShardedExecution, _IPhasedExecution
from ..errors import backend_error, createPoptorchError
from ..structures import rebuilt, tensors_in
from .arguments import BoundArguments
from .batching import BatchForm, check_output_mode, on_device_type
from .loss import index_of_final_loss
from .memory_limit import limited_kind


class Graph(NamedTuple):
    """What compiling found out about a model."""

    outputs: Any  # what forward() returned
    loss_index: Optional[int]  # position of the final loss among the marked ones; None in inference
    loss_count: int  # how many losses were marked
    is_stateless: bool  # a forward pass changes no buffer or input and calls nothing on the host
    differentiates: bool  # forward() asks for gradients itself
    ipus: int  # of all replicas
    names: List[str]  # of the inputs and of what is computed, in order
    memory: Optional[MemoryMeter]  # where it is limited


def compile_graph(
    model: torch.nn.Module, arguments: BoundArguments, weights: DeviceWeights, options: Any, training: bool
) -> Graph:
    """Run forward() once on the first micro batch and check the model and its options.

    Raises:
        Error: what the compiler refuses: unknown options, no or several losses, operations outside blocks, too short
            pipelines, too many IPUs, buffers updated under replication, inputs that need gradients.
        AssertionError: a batch that cannot be divided; blocks without IPU or stage.
    """
    validate_backend_options(options.toDict())
    form = BatchForm.of(options)
    for tensor in tensors_in((arguments.args, arguments.kwargs)):
        _check_input(tensor)
    micro = arguments.mapped(lambda tensor: _first_micro_batch(tensor, form))
    args, kwargs = micro.args, micro.kwargs
    inputs = tensors_in((args, kwargs))
    # Each compilation places the blocks anew: a strategy may serve several models.
    naming = OperationNames(use_modules=options._module_namescope_enabled)
    run = DeviceRun(
        copy.deepcopy(options._execution_strategy._stages_manager),
        strided_group_norm(options),
        names=naming,
        mode=options._execution_strategy.shown_mode,
        is_training=training,
    )
    run.variables = [tensor.values[0] for tensor in weights.parameters + weights.buffers]
    naming.add_inputs(inputs)
    if training:
        warn_of_hooks(model)
    if is_strict(options):
        run.operators = OperatorWatch(training)
    if limited_kind() is not None:
        run.memory = MemoryMeter(run.variables, inputs)
    versions = [buffer.values[0]._version for buffer in weights.buffers]
    # Buffers that change here are loaded again when the device is attached, before the first call.
    with_gradients = training or torch.is_grad_enabled()  # whether forward() wants any is not known yet
    with weights.in_place(0), torch.set_grad_enabled(with_gradients), contextlib.ExitStack() as watching:
        if run.memory is not None and training:
            watching.enter_context(run.memory.watching_autograd())
        watching.enter_context(naming.inside(model))
        if run.operators is not None:
            watching.enter_context(run.operators)
        watching.enter_context(DeviceMode(run))
        outputs = model(*args, **kwargs)
    if run.operators is not None:
        run.operators.note_use_of(tensors_in(outputs))
        run.operators.check()
    if run.memory is not None:
        run.memory.finish()
    updated = [
        position for position, buffer in enumerate(weights.buffers) if buffer.values[0]._version != versions[position]
    ]
    if options.broadcast_buffers and form.replicas > 1:
        _refuse_buffer_updates(weights, updated, versions, run)
    ipus = _check_placement(run, options, form, training)
    run.overlap.check(inputs, tensors_in(outputs))
    if run.overlap.is_wanted:
        check_overlap_options(options, is_pipelined(options))
    _check_named_buffers(weights, options)
    loss_index = index_of_final_loss(run.losses) if training else None
    is_stateless = (
        not updated
        and not run.updates_statistics
        and not run.calls_host
        and not run.differentiates
        and all(is_on_device(tensor) for tensor in tensors_in(outputs))
        and all(tensor._version == 0 for tensor in inputs)
    )
    losses, names = len(run.losses), naming.names
    found = (loss_index, losses, is_stateless, run.differentiates, ipus, names, run.memory)
    return Graph(_without_autograd(outputs), *found)


def _without_autograd(outputs: Any) -> Any:
    """Return the outputs without what their gradients would need; constants of the host stay the objects they are."""
    tensors = tensors_in(outputs)
    return rebuilt(outputs, [tensor.detach() if tensor.requires_grad else tensor for tensor in tensors])


def strided_group_norm(options: Any) -> bool:
    """Whether group norm takes strided channel groups."""
    return bool(options._Popart.options.get("groupNormStridedChannelGrouping", False))


def is_pipelined(options: Any) -> bool:
    """Whether the execution strategy is pipelined (and not sharded, which derives from it)."""
    strategy = options._execution_strategy
    return isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution)


def _check_input(tensor: torch.Tensor) -> None:
    if 0 in tensor.shape:
        raise backend_error(f"Zero-sized tensors are unsupported (Got shape {list(tensor.shape)}).")


def _first_micro_batch(tensor: torch.Tensor, form: BatchForm) -> torch.Tensor:
    rows = form.micro_batch_rows(tensor)
    part = tensor if tensor.dim() == 0 else tensor.narrow(0, 0, rows)
    return mark_on_device(mark_variable(on_device_type(part).contiguous()))


def _refuse_buffer_updates(
    weights: DeviceWeights, updated: Sequence[int], versions: Sequence[int], run: DeviceRun
) -> None:
    for position in updated:
        buffer = weights.buffers[position]
        value = buffer.values[0]
        by_norms = run.updates_by_norms.get(id(value), 0)
        if not buffer.slots[0].is_free and value._version - versions[position] != by_norms:
            raise backend_error(
                f"Buffer {buffer.name} is updated in place. PopTorch does not support broadcasting buffers. "
                "If your model is able to tolerate buffers becoming out of sync between replicas, you can disable "
                "buffer broadcasting using poptorch.Options.broadcastBuffers(False)."
            )


def _check_placement(run: DeviceRun, options: Any, form: BatchForm, training: bool) -> int:
    """Check pipeline and IPUs; return the number of IPUs."""
    used = run.used_ipus or {0}
    ipus = max(len(used), max(used) + 1) * form.replicas
    hardware.check_ipu_count(ipus, options)
    logger.debug("enablePipelining set to value %d", is_pipelined(options) and len(used) > 1)
    if isinstance(options._execution_strategy, _IPhasedExecution):
        options._execution_strategy.log_phases(run.last_phase)
    check_output_mode(
        options.output_mode,
        options.output_return_period,
        form.device_iterations,
        is_pipelined(options) and len(used) > 1,
    )
    if not is_pipelined(options):
        return ipus
    forward_stages = 1 + run.ipu_changes
    stages = 2 * forward_stages - 1
    if training and form.gradient_accumulation < stages:
        raise backend_error(
            "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of pipeline "
            f"stages ({stages}) when using poptorch.PipelinedExecution. Please note that a model with {forward_stages} "
            f"pipeline stages in PopTorch will have an additional {stages - forward_stages} stages when training."
        )
    if not training and form.device_iterations < forward_stages:
        raise backend_error(
            "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages "
            f"({forward_stages}) when using PopTorch.PipelinedExecution."
        )
    return ipus


def _check_named_buffers(weights: DeviceWeights, options: Any) -> None:
    known = [slot.name for buffer in weights.buffers for slot in buffer.slots]
    for name in options._Popart.options.get("updatableNamedBuffers", []):
        if name not in known:
            raise createPoptorchError(f"updatableNamedBuffers names {name}, which is not a buffer; there are {known}")
