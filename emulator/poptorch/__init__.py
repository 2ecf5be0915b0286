"""An emulation of PopTorch 3.4 on plain torch: programs written for IPUs run without the Poplar SDK.

See emulator/README.md for what it does faithfully and what it cannot.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Union

import torch

from . import _impl, enums, optim, poptorch_core, profiling
from ._data.async_accessor import AsynchronousDataAccessor
from ._data.dataloader import DataLoader
from ._device.device_run import isRunningOnIpu
from ._device.hardware import ipuHardwareIsAvailable, ipuHardwareVersion
from ._executor.compile_hooks import registerPostCompileHook, registerPreCompileHook
from ._executor.executable_file import read_executable, require_model
from ._executor.wrapping import copy_for_execution, is_wrapped
from ._logging import setLogLevel
from ._poplar_executor import PoplarExecutor
from ._printing import module_repr, print
from .enums import (
    AutoStage,
    CommGroupType,
    ConnectionType,
    DataLoaderMode,
    HalfFloatCastingBehavior,
    Liveness,
    MatMulSerializationMode,
    MeanReductionStrategy,
    MultiConvPlanType,
    OutputMode,
    OverlapMode,
    ReductionType,
    SharingStrategy,
    SyncPattern,
    VariableRetrievalMode,
)
from .errors import Error, RecoverableError, UnrecoverableError, createPoptorchError
from .ops import (
    cond,
    ctc_beam_search_decoder,
    dynamic_slice,
    dynamic_update,
    for_loop,
    fps,
    identity_loss,
    nearest,
    nop,
    recomputationCheckpoint,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
    torch_ops,
)
from .ops.blocks import BeginBlock, Block, BlockFunction, LegacyBeginBlockFn, removeBlocks
from .ops.host_ops import CPU, custom_op, ipu_print_tensor
from .ops.multi_conv import MultiConv
from .ops.name_scopes import NameScope
from .options import (
    Attribute,
    BlockId,
    ConfigFileError,
    Options,
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
    TensorLocationSettings,
)
from .structures import ICustomArgParser, registerCustomArgParser
from .version import __version__

__all__ = [name for name in dir() if not name.startswith("_") and name not in ("annotations", "torch", "torch_ops")]
__all__ += ["inferenceModel", "load", "trainingModel"]


def trainingModel(
    model: Union[torch.nn.Module, PoplarExecutor],
    options: Optional[Options] = None,
    optimizer: Optional[torch.optim.Optimizer] = None,
) -> PoplarExecutor:
    """Wrap a model for training: each call runs forward, backward and the weight update.

    The model must mark its loss: a loss function of torch, or identity_loss. Without an optimizer: SGD with lr 0.01.

    Raises:
        RuntimeError: the model is wrapped for training already.
    """
    user_model: Any = model.model if isinstance(model, PoplarExecutor) else model
    if is_wrapped(user_model):
        raise RuntimeError(
            "Model has already been wrapped in 'poptorch.trainingModel'. "
            "Call model.destroy() on the model to unwrap before wrapping again."
        )
    return PoplarExecutor(
        model=copy_for_execution(user_model),
        options=options,
        training=True,
        poptorch_version=__version__,
        optimizer=optimizer,
        user_model=user_model,
    )


def inferenceModel(model: Union[torch.nn.Module, PoplarExecutor], options: Optional[Options] = None) -> PoplarExecutor:
    """Wrap a model for inference; one that is trained elsewhere at the same time follows it."""
    user_model: Any = model.model if isinstance(model, PoplarExecutor) else model
    return PoplarExecutor(
        model=copy_for_execution(user_model, keep_wrapping=True),
        options=options,
        training=False,
        poptorch_version=__version__,
    )


def load(filename: str, edit_opts_fn: Optional[Callable[[Options], None]] = None) -> PoplarExecutor:
    """Load what an executor saved; edit_opts_fn may change the options before the device is attached."""
    content = read_executable(filename)
    require_model(filename, content["model"])
    options = content["options"].clone()
    if options.connection_type == ConnectionType.Never:  # compiled offline, to be run here
        options.connectionType(ConnectionType.Always)
    if edit_opts_fn is not None:
        edit_opts_fn(options)
    if content["training"]:
        executor = trainingModel(content["model"], options, content["optimizer"])
    else:
        executor = inferenceModel(content["model"], options)
    executor.loadExecutable(filename)
    if content["rng_state"] is not None:
        executor.rng_state = content["rng_state"]
    return executor
