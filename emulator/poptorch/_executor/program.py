"""One call of a compiled model: every device iteration, accumulation step and replica, and the weight updates."""

from __future__ import annotations

import contextlib
import time
import warnings
from typing import Any, List, Optional, Sequence, Set, Tuple

import torch

from .._device.device_run import DeviceRun
from .._device.device_weights import DeviceWeights
from .._device.finite import require_finite
from .._device.interception import DeviceMode
from .._device.marks import is_on_device, mark_on_device
from .._optimizer.device_optimizer import DeviceOptimizer, Gradients
from .._optimizer.process_group import sum_over_processes
from .._optimizer.reduction import Reduction
from ..structures import rebuilt, tensors_in
from .anchors import Anchors
from .arguments import BoundArguments
from .batching import BatchForm, OutputCollector, Step, on_device_type
from .compilation import Graph, strided_group_norm
from .folding import Folding, agree, stacked
from .loss import index_of_final_loss
from .perf_counters import PerfCounters


class Program:
    """The executable of a model.

    Args:
        model: the module that runs.
        weights: its tensors on the device.
        graph: what compiling found out.
        options: as of the compilation.
        optimizer: in training.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        weights: DeviceWeights,
        graph: Graph,
        options: Any,
        optimizer: Optional[DeviceOptimizer],
    ) -> None:
        self._model = model
        self._weights = weights
        self._graph = graph
        self._options = options
        self.optimizer = optimizer
        self._form = BatchForm.of(options)
        self._reduction = Reduction.of(options)
        self._strided_group_norm = strided_group_norm(options)
        self._checks_finite = bool(options._Popart.options.get("enableFloatingPointChecks", False))
        self._is_synthetic = bool(options._Popart.options.get("syntheticDataMode", 0))
        self.counters = PerfCounters()
        self.anchors = Anchors(options, graph.names, weights, optimizer)
        self._host_constants: Set[int] = set()
        self._folding = Folding(self._form, self._may_fold())

    def _may_fold(self) -> bool:
        """Whether micro steps depend on nothing but their inputs and the weights."""
        is_plain = all(not tensor.is_split for tensor in self._weights.parameters)
        if self.optimizer is not None:
            is_plain = is_plain and self.optimizer.settings.accum_type == torch.float32
            is_plain = is_plain and self.optimizer.auto_scaling is None and not self._reduction.is_running
        looks_inside = self.anchors.need_single_steps or self._checks_finite
        return is_plain and self._graph.is_stateless and not looks_inside

    def run(self, arguments: BoundArguments, compiled: BoundArguments) -> Any:
        """Run one call; return outputs in the structure of forward()'s, copy inputs back that it changed in place."""
        inputs = arguments.tensors(compiled)
        device_inputs = [mark_on_device(on_device_type(tensor)) for tensor in inputs]
        if self._is_synthetic:
            device_inputs = [torch.zeros_like(tensor) for tensor in device_inputs]
        versions = [tensor._version for tensor in device_inputs]
        returned = [step for step in range(self._form.micro_steps) if self._form.returns(self._options, step)]
        senders = 0 if self._is_synthetic else self._form.replicas
        self.counters.start(len(inputs), len(tensors_in(self._graph.outputs)), senders, returned)
        self.anchors.begin()
        collectors: List[OutputCollector] = []
        for steps in self._form.steps(are_joined=self.optimizer is None):
            accumulated: Gradients = {}
            if self._folding.needs_verification(device_inputs, len(steps)):
                self._compare_folded(compiled, device_inputs, steps)
            size = self._folding.size(device_inputs, len(steps))
            outputs: List[List[torch.Tensor]] = []
            for first in range(0, len(steps), size):
                outputs += self._some_steps(compiled, device_inputs, steps[first : first + size], accumulated)
            for first in range(0, len(steps), self._form.replicas):
                self._collect(collectors, outputs[first : first + self._form.replicas])
                self.counters.tick(time.perf_counter())
            if self.optimizer is not None:
                self._update(accumulated)
            self.anchors.end_iteration(steps)
        for original, tensor, version in zip(inputs, device_inputs, versions):
            if tensor._version != version and not self._is_synthetic:
                with torch.inference_mode(original.is_inference()), torch.no_grad():  # the first enables gradients
                    original.copy_(tensor)
        return self._results(collectors)

    def _some_steps(
        self,
        compiled: BoundArguments,
        inputs: Sequence[torch.Tensor],
        steps: Sequence[Step],
        accumulated: Gradients,
    ) -> List[List[torch.Tensor]]:
        """Run micro steps, together if there are several; add up their gradients and return the outputs of each."""
        if len(steps) > 1:
            folded, gradients = self._folded(compiled, stacked(self._form, inputs, steps))
            results = [[tensor[index] for tensor in folded] for index in range(len(steps))]
        else:
            micro = [mark_on_device(self._form.micro_batch(tensor, *steps[0])) for tensor in inputs]
            outputs, gradients = self._forward_and_backward(compiled, micro, steps[0].replica)
            # A copy: buffers and inputs that are returned may change in later steps.
            results = [[_kept(tensor) for tensor in outputs]]
        if self._checks_finite:
            require_finite(gradients.values())
        self._accumulate(accumulated, gradients)
        return results

    def _forward_and_backward(
        self, compiled: BoundArguments, micro: Sequence[torch.Tensor], replica: int
    ) -> Tuple[List[torch.Tensor], Gradients]:
        """Run one micro step of one replica."""
        names = self.anchors.names_of_step()
        is_training = self.optimizer is not None
        run = DeviceRun(strided_group_norm=self._strided_group_norm, names=names, is_training=is_training)
        run.checks_finite = self._checks_finite
        if self._checks_finite:
            require_finite(micro)
        run.auto_scaling = None if self.optimizer is None else self.optimizer.auto_scaling
        args, kwargs = compiled.with_tensors(micro)
        with self._weights.in_place(replica), contextlib.ExitStack() as naming:
            if names is not None:
                names.add_inputs(micro)
                naming.enter_context(names.inside(self._model))
            with torch.set_grad_enabled(is_training or self._graph.differentiates), DeviceMode(run):
                outputs = self._model(*args, **kwargs)
            gradients = self._gradients(self._final_loss(run.losses), replica) if is_training else {}
        if run.auto_scaling is not None:
            for gradient in gradients.values():
                run.auto_scaling.watch(gradient)
        self.anchors.add_step(names, gradients, self._reduction.replicas_in_mean)
        return tensors_in(outputs), gradients

    def _folded(self, compiled: BoundArguments, micro: Sequence[torch.Tensor]) -> Tuple[List[torch.Tensor], Gradients]:
        """Several micro steps at once; inputs and outputs have a first dimension that runs over them."""
        is_training = self.optimizer is not None

        def one_step(*tensors: torch.Tensor) -> Tuple[torch.Tensor, ...]:
            run = DeviceRun(strided_group_norm=self._strided_group_norm, is_folded=True, is_training=is_training)
            args, kwargs = compiled.with_tensors([mark_on_device(tensor) for tensor in tensors])
            with DeviceMode(run):
                outputs = self._model(*args, **kwargs)
            return (*tensors_in(outputs), *([self._final_loss(run.losses)] if is_training else []))

        with self._weights.in_place(0):
            with torch.set_grad_enabled(is_training):
                results = list(torch.func.vmap(one_step)(*micro))
            gradients = self._gradients(results.pop(), 0) if is_training else {}
        return [tensor.detach() for tensor in results], gradients

    def _compare_folded(self, compiled: BoundArguments, inputs: Sequence[torch.Tensor], steps: Sequence[Step]) -> None:
        """Run the first two micro steps both ways; fold later ones if they agree."""
        single: Gradients = {}
        expected = [self._some_steps(compiled, inputs, [step], single) for step in steps[:2]]
        together: Gradients = {}
        try:
            folded = self._some_steps(compiled, inputs, steps[:2], together)
        except Exception as error:  # whatever vmap cannot map is run step by step, where real errors show again
            self._folding.reject(error)
            return
        reference = [tensor for (tensors,) in expected for tensor in tensors]
        ours = [tensor for tensors in folded for tensor in tensors]
        is_same = agree(ours, reference) and single.keys() == together.keys()
        if is_same and agree([together[place] for place in single], list(single.values())):
            self._folding.accept()
        else:
            self._folding.reject("results differ")

    def _final_loss(self, losses: List[torch.Tensor]) -> torch.Tensor:
        index = self._graph.loss_index
        if index is None or len(losses) != self._graph.loss_count:
            index = index_of_final_loss(losses)
        return losses[index]

    def _gradients(self, loss: torch.Tensor, replica: int) -> Gradients:
        """Gradients of a loss times the loss scale; one that is not a scalar counts as its sum."""
        assert self.optimizer is not None
        places = [(position, target.weight.group_of[replica]) for position, target in enumerate(self.optimizer.trained)]
        weights = [self.optimizer.trained[position].weight.values[copy] for position, copy in places]
        if not loss.requires_grad or not weights:
            return {}
        seed = torch.full_like(loss, self.optimizer.loss_scaling)
        found = torch.autograd.grad(loss, weights, seed, allow_unused=True)
        # A weight that the loss does not use has no gradient, and is left alone like one outside the graph.
        return {place: gradient for place, gradient in zip(places, found) if gradient is not None}

    def _accumulate(self, accumulated: Gradients, gradients: Gradients) -> None:
        """Add a micro step's gradients.

        As a running mean (strategy Running) or as a sum, and in the accumulators' type where there are any: with one
        accumulation step gradients go to the optimizer as they are.
        """
        if self.optimizer is None:
            return
        has_accumulator = self._form.gradient_accumulation > 1
        share = 1.0 / self._reduction.divisor_of_step
        for place, gradient in gradients.items():
            part = gradient.detach() if share == 1.0 else gradient.detach() * share
            if has_accumulator:
                part = part.to(self.optimizer.settings.accum_type)
            accumulated[place] = accumulated[place] + part if place in accumulated else part

    def _update(self, accumulated: Gradients) -> None:
        """All-reduce over processes, and let the optimizer step."""
        assert self.optimizer is not None
        processes = self._options.Distributed.numProcesses
        if processes > 1:
            accumulated = sum_over_processes(accumulated, processes)
        self.optimizer.step(accumulated)

    def _collect(self, collectors: List[OutputCollector], of_replicas: List[List[torch.Tensor]]) -> None:
        if not collectors:
            mode, period = self._options.output_mode, self._options.output_return_period
            collectors += [OutputCollector(self._form, mode, period) for _ in of_replicas[0]]
            self._find_host_constants(of_replicas[0])
        for collector, tensors in zip(collectors, zip(*of_replicas)):
            collector.add(list(tensors))

    def _find_host_constants(self, outputs: List[torch.Tensor]) -> None:
        """Refuse a tensor that is the same object in every forward pass: it was not computed there, but on the host."""
        traced = tensors_in(self._graph.outputs)
        found = {id(new) for new, old in zip(outputs, traced) if new is old and not is_on_device(new)}
        if found and not self._host_constants:
            warnings.warn("Output expected to be on the IPU but is on cpu", stacklevel=2)
        self._host_constants = found

    def _results(self, collectors: List[OutputCollector]) -> Any:
        results = [collector.result() for collector in collectors]
        if self._is_synthetic:
            results = [torch.zeros_like(result) for result in results]
        traced = tensors_in(self._graph.outputs)
        computed = [result for result, old in zip(results, traced) if id(old) not in self._host_constants]
        return rebuilt(self._graph.outputs, computed, lambda tensor: id(tensor) not in self._host_constants)


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """Return an output as it is now; a constant of the host stays the object that it is."""
    return tensor.detach().clone() if is_on_device(tensor) or tensor.requires_grad else tensor
