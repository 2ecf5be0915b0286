"""PoplarExecutor: what trainingModel() and inferenceModel() return, a model that runs on the device."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, Dict, Optional

import torch

from ._device import hardware
from ._device.device_weights import DeviceWeights, ReplicaGrouping
from ._device.random_state import DeviceGenerator
from ._device.substitutions import _OverwriteContextManager  # noqa: F401  PopTorch Geometric finds it here
from ._executor import wrapping
from ._executor.arguments import ArgumentBinder, BoundArguments, check_same_form
from ._executor.cleanup import live_executors
from ._executor.compilation import compile_graph, is_pipelined
from ._executor.compile_hooks import postcompile_hooks, precompile_hooks
from ._executor.executable_file import note_in_cache, read_executable, write_executable
from ._executor.grad_mode import outside_inference_mode
from ._executor.host_copies import ExecutorDevice
from ._executor.memory_limit import check_memory
from ._executor.program import Program
from ._executor.reports import ExecutorReports
from ._logging import logger
from ._optimizer.executor_optimizer import ExecutorOptimizer
from ._printing import module_repr
from .enums import CommGroupType, ConnectionType, OutputMode, VariableRetrievalMode
from .errors import NOT_COMPILED, createPoptorchError
from .options import Options

NO_EXECUTABLE_ERR = NOT_COMPILED


class PoplarExecutor(ExecutorDevice, ExecutorReports):
    """A model with weights of its own on the device. Made by trainingModel() and inferenceModel().

    Args:
        model: the module that runs; shares its submodules with user_model.
        options: frozen from here on; the executor keeps a copy.
        training: whether calls update the weights.
        poptorch_version: not used here.
        optimizer: for training; None: SGD with lr 0.01.
        user_model: the module as the program holds it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        options: Optional[Options],
        training: bool,
        poptorch_version: str,
        optimizer: Optional[torch.optim.Optimizer] = None,
        user_model: Optional[torch.nn.Module] = None,
    ) -> None:
        self._model = model
        self._user_model: Any = model if user_model is None else user_model
        self._training = training
        self._options = self._taken(options)
        self._args_parser = ArgumentBinder(model)
        self._compiled_arguments: Optional[BoundArguments] = None
        self._program: Optional[Program] = None
        self._weights: Optional[DeviceWeights] = None
        self._is_attached = False
        self._dirty_host_weights = False
        self._host_weights_version = 0
        self._compilation_time = timedelta(0)
        self._anchors: Dict[str, torch.Tensor] = {}
        self.per_replica_params: Dict[str, ReplicaGrouping] = {}
        seed = self._options.random_seed if self._options.exists("random_seed") else None
        self._generator = DeviceGenerator(seed)
        self._optimizers: Optional[ExecutorOptimizer] = None
        if training:
            self._optimizers = ExecutorOptimizer(self, optimizer)
        self._options._freeze()
        live_executors.add(self)
        if training:
            wrapping.wrap_model(self._user_model, self)

    def _taken(self, options: Optional[Options]) -> Options:
        if options is None:
            options = Options()
        if not isinstance(options, Options):
            raise createPoptorchError(f"Invalid type: 'options' is of type {type(options)} (Expected poptorch.Options)")
        options._freeze()
        taken = options.clone()
        if taken.defaultOutputMode():
            taken.outputMode(OutputMode.Final if self._training else OutputMode.All)
        for anchor in taken.anchored_tensors.values():
            if anchor[1]:  # without a mode of its own it follows the outputs
                anchor[2], anchor[3] = taken.output_mode, taken.output_return_period
        if not self._training and taken.Training.gradient_accumulation != 1:
            hint = (
                " Use poptorch.Options().deviceIterations to process a sufficient number of batches each run "
                "for pipelined execution instead."
            )
            raise createPoptorchError(
                "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its default value "
                "(1) when running a poptorch.inferenceModel()." + (hint if is_pipelined(taken) else "")
            )
        return taken

    @property
    def model(self) -> torch.nn.Module:
        """The model as the program holds it."""
        return self._user_model

    @property
    def options(self) -> Options:
        """The executor's own, frozen options."""
        return self._options

    def __repr__(self) -> str:
        return module_repr(self._user_model)

    def __getattr__(self, attr: str) -> Any:
        if attr.startswith("__") or attr == "_user_model":
            raise AttributeError(attr)
        value = getattr(self._user_model, attr)
        if isinstance(value, torch.nn.Parameter):
            return _ParameterHandle(self, attr, value)
        return value

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_program": None, "_weights": None, "_is_attached": False}

    @outside_inference_mode
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one combined batch; the first call compiles the model.

        Raises:
            AssertionError: the device is offline.
            Error: inputs of another form than those of the compilation; anything that compiling refuses.
        """
        if self._options.connection_type == ConnectionType.Never:
            raise AssertionError(
                "Trying to run a model on an offline device (ConnectionType.Never): "
                "use model.compile(inputs) instead of model(inputs)"
            )
        arguments = self._args_parser.bind(args, kwargs)
        if not self.isCompiled():
            self._compile(arguments)
        if not self._is_attached:
            self.attachToDevice()
        program, compiled = self._live(), self._compiled_arguments
        assert compiled is not None and self._weights is not None
        if not self._training:
            self._follow_training()
        check_same_form(compiled, arguments)
        if self._optimizers is not None:
            self._optimizers.write_state_if_needed()
        with self._generator.active():
            outputs = program.run(arguments, compiled)
        if self._options._Popart.options["instrumentWithHardwareCycleCounter"]:
            logger.debug("Total number of IPU cycles: %d", self.cycleCount())
        self._anchors = program.anchors.results()
        if self._optimizers is not None:
            self._dirty_host_weights = True
            self._optimizers.has_run()
        _forbid_backward(outputs)
        return outputs

    def _follow_training(self) -> None:
        """Take over the weights of a training executor of the same model, if they are newer."""
        fetch = getattr(self._user_model, "copyWeightsToHostIfNeeded", None)
        if not callable(fetch):
            return
        fetch()
        version = self._user_model._host_weights_version
        if version is not None and version != self._host_weights_version:
            self.copyWeightsToDevice()
            self._host_weights_version = version

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the model for inputs of this form; ignored with a warning if it is compiled already."""
        arguments = self._args_parser.bind(args, kwargs)
        if self.isCompiled():
            logger.warning("Call to compile() ignored: the executable is already compiled")
        else:
            self._compile(arguments)

    @outside_inference_mode
    def _compile(self, arguments: BoundArguments) -> None:
        started = time.perf_counter()
        if hardware.uses_ipu_model(self._options):
            hardware.check_ipu_model(self._options)
        popart = self._options._Popart.options
        if popart.get("cachePath"):
            note_in_cache(popart["cachePath"], repr(self))
        if self._options.exists("use_model"):
            shown = "Enabled" if self._options.use_model else "Disabled"
            logger.info("From the user configuration: Ipu model: %s", shown)
        if any(tensor.requires_grad for tensor in arguments.tensors(arguments)):
            logger.warning(
                "Input tensor has requires_grad=True set. This tensor will be detached because backward pass via "
                "inputs is not supported."
            )
        try:
            self._build(arguments)
        except BaseException:
            hardware.release(self)
            raise
        self._compilation_time = timedelta(seconds=time.perf_counter() - started)
        if self._options.connection_type != ConnectionType.Never:
            self.attachToDevice()

    def _build(self, arguments: BoundArguments) -> None:
        weights = DeviceWeights(self._model, self._options.replication_factor, self.per_replica_params)
        weights.load()
        for hook in precompile_hooks.values():
            hook()
        try:
            with self._generator.active(keep=False):
                graph = compile_graph(self._model, arguments, weights, self._options, self._training)
        finally:
            for hook in postcompile_hooks.values():
                hook()
        hardware.choose(self, self._options, graph.ipus)
        optimizer = None if self._optimizers is None else self._optimizers.on_device(weights)
        if graph.memory is not None:
            is_pipeline = is_pipelined(self._options) and len({stage.ipu for stage in graph.memory.stages}) > 1
            check_memory(graph.memory, weights, optimizer, self._options, is_pipeline)
        self._weights = weights
        self._compiled_arguments = arguments.mapped(lambda tensor: tensor.detach())
        self._program = Program(self._model, weights, graph, self._options, optimizer)
        logger.debug("Finished Poplar compilation.")

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Write the compiled model to a file; export_model=False leaves model and optimizer out."""
        self._live()
        content = {
            "arguments": self._compiled_arguments,
            "options": self._options,
            "training": self._training,
            "model": self._user_model if export_model else None,
            "optimizer": self._optimizers.torch_optimizer if export_model and self._optimizers is not None else None,
            "rng_state": self.rng_state if save_rng_state else None,
        }
        if self._optimizers is not None:
            self._optimizers.read_state_if_needed()
        write_executable(filename, content)

    def loadExecutable(self, filename: str) -> None:
        """Compile for the inputs that the file was compiled for."""
        self._compile(read_executable(filename)["arguments"])

    def compileAndExport(self, filename: str, *args: Any, export_model: bool = True, **kwargs: Any) -> None:
        """compile(), then save()."""
        self.compile(*args, **kwargs)
        self.save(filename, export_model)


class _ParameterHandle:
    """A parameter reached through the executor: itself, and replicaGrouping()."""

    def __init__(self, executor: PoplarExecutor, name: str, parameter: torch.nn.Parameter) -> None:
        self._executor = executor
        self._name = name
        self._parameter = parameter

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Give groups of `shards` replicas values of their own; the host's tensor has one row per group."""
        self._executor.per_replica_params[self._name] = (comm_group_type, shards, variable_retrieval_mode)

    def __getattr__(self, attr: str) -> Any:
        return getattr(self._parameter, attr)


def _forbid_backward(outputs: Any) -> None:
    """backward() on an output says why there is nothing to do."""
    if isinstance(outputs, (list, tuple)):
        for element in outputs:
            _forbid_backward(element)
    elif isinstance(outputs, torch.Tensor):
        outputs.backward = _no_backward  # type: ignore[method-assign]


def _no_backward(*args: Any, **kwargs: Any) -> None:
    raise createPoptorchError(
        "backward() cannot be called explicitly on outputs of a PopTorch model: "
        "calling a trainingModel does the backward pass and the weight update, an inferenceModel has none."
    )
