"""The IPU planner on small networks: hand-computed bytes and seconds, and properties that any plan must have."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any, List, Tuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from backends.plan import Execution, OptimizerState, largest_micro_batch, plan_ipu, propose_plan, propose_splits
from backends.plan.constants import ALL_REDUCE_EFFICIENCY, CODE_BYTES_PER_PRODUCT, MEMORY_AIM
from backends.plan.hardware import MIB, SYSTEMS, System
from backends.plan.ipu_plan import IpuPlan
from backends.plan.report import format_plan
from backends.plan.splits import split_places
from backends.plan.stages import cut_stages
from backends.plan.timing import Rates, stage_seconds
from backends.plan.trace import Size, Trace, trace_network
from models import build_model
from normact import NormActFactory

MK2 = SYSTEMS["mk2"]


def tiny() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@functools.lru_cache(maxsize=None)
def tiny_trace() -> Trace:
    return trace_network(tiny(), 4)


@functools.lru_cache(maxsize=None)
def small_trace(name: str = "resnet8", norm: str = "group") -> Trace:
    factory = NormActFactory(norm=norm, proxy=norm == "group")
    with torch.device("meta"):
        return trace_network(build_model(name, num_classes=10, norm_act=factory), 32)


def test_the_trace_holds_the_operations_and_tensors_of_one_forward_pass() -> None:
    trace = tiny_trace()
    assert [operation.name for operation in trace.operations] == ["convolution", "relu", "convolution", "relu", "addmm"]
    # An output value of the convolutions sums 3 x 9 and 8 x 9 products, for 8 channels on 4 x 4 pixels.
    assert [operation.multiply_adds for operation in trace.operations] == [128 * 27, 0, 128 * 72, 0, 10 * 128]
    assert [operation.moved for operation in trace.operations] == [
        Size(48 + 128), Size(256), Size(256), Size(256), Size(138)
    ]  # fmt: skip
    assert [tensor.size for tensor in trace.tensors] == [Size(48), Size(128), Size(128), Size(128), Size(128), Size(10)]
    assert [bool(tensor.saved_by) for tensor in trace.tensors] == [True, False, True, False, True, False]
    assert trace.num_parameters == 8 * 27 + 8 * 72 + 1290
    assert trace.begins["2"] == 2


def test_what_does_not_grow_with_the_batch_is_counted_as_fixed() -> None:
    class ScaledWeight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(7, 48))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x.flatten(1), torch.exp(self.weight))

    trace = trace_network(ScaledWeight(), 4)
    assert [tensor.size for tensor in trace.tensors] == [Size(48), Size(0, 336), Size(7)]


def test_tracing_leaves_the_network_and_the_random_numbers_as_they_were() -> None:
    network = build_model("resnet8", num_classes=10, norm_act=NormActFactory(norm="batch", norm_batch_size=4)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trace_network(network, 32)
    assert torch.equal(torch.rand(1), expected)
    assert not network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert {module.norm_batch_size for module in network.modules() if hasattr(module, "norm_batch_size")} == {4}


def test_a_network_whose_operations_depend_on_the_batch_is_refused() -> None:
    class OneByOne(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.exp(image) for image in x])

    with pytest.raises(ValueError, match="4 operations on 2 images and 6 on 4"):
        trace_network(nn.Sequential(nn.Conv2d(3, 3, 1), OneByOne()), 4)


PIPELINE = Execution(micro_batch_size=2, gradient_accumulation=3, splits=("2",))


def test_memory_of_a_pipeline_of_two_stages_is_as_computed_by_hand() -> None:
    first, last = (each.memory for each in plan_ipu(tiny_trace(), PIPELINE).stages)
    assert (first.weights, first.optimizer_state, first.accumulators) == (216 * 2, 216 * 4, 216 * 4)
    # Three micro-batches of two images wait: the image as bytes, and what went to the next stage in float16.
    assert first.stash == 3 * (2 * 48 * 1 + 2 * 128 * 2)
    assert first.activations == 0
    # Convolution: gradients of input and output, the weights' copy and gradient, a workspace as large as the former.
    assert first.temporaries == 2 * 176 * 2 + 216 * (2 + 2) + 2 * 176 * 2
    assert first.code == int(1 * 4 * CODE_BYTES_PER_PRODUCT * 1472)
    assert last.weights == (576 + 1290) * 2
    # No stash, nothing recomputed: what entered and the second relu's output, of the one micro-batch.
    assert (last.stash, last.activations) == (0, 2 * 128 * 2 + 2 * 128 * 2)
    assert last.code == int(2 * 3 * CODE_BYTES_PER_PRODUCT * 1472)
    assert last.total == sum(last.__dict__.values())


def test_one_ipu_saves_everything_unless_told_to_recompute() -> None:
    single = Execution(micro_batch_size=1, gradient_accumulation=1)
    saving = plan_ipu(tiny_trace(), single).stages[0].memory
    assert (saving.stash, saving.activations, saving.accumulators) == (0, 48 + 128 * 2 + 128 * 2, 0)
    # With the first relu's output kept, the larger part to recompute is the second relu's output.
    recomputing = plan_ipu(tiny_trace(), replace(single, recompute=True, checkpoints=("1",))).stages[0].memory
    assert recomputing.activations == 48 + 128 * 2 + 128 * 2
    # Without a checkpoint both are recomputed together.
    assert plan_ipu(tiny_trace(), replace(single, recompute=True)).stages[0].memory.activations == 48 + 2 * 128 * 2


def test_float32_weights_beside_half_activations_and_partials_are_counted_as_such() -> None:
    mixed = plan_ipu(tiny_trace(), replace(PIPELINE, precision="16.32", partials="float")).stages[0].memory
    assert mixed.weights == 216 * 4
    assert mixed.temporaries == 2 * 176 * 2 + 216 * (2 + 4) + 2 * 176 * 4
    single = plan_ipu(tiny_trace(), replace(PIPELINE, precision="32.32", partials="float")).stages[0].memory
    assert (single.weights, single.stash) == (216 * 4, 3 * (2 * 48 + 2 * 128 * 4))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_stash_depths_are_those_of_the_pipeline_transform(stages: int) -> None:
    splits = ("1", "2", "3")[: stages - 1]
    depths = [stage.stash_depth for stage in cut_stages(tiny_trace(), splits)]
    assert depths == {1: [0], 2: [3, 0], 3: [5, 3, 0], 4: [7, 5, 3, 0]}[stages]


@pytest.mark.parametrize(
    "optimizer, accumulation, state, accumulators",
    [
        (OptimizerState("sgd", momentum=False), 1, 0, 0),
        (OptimizerState("sgd"), 1, 4, 0),
        (OptimizerState("sgd"), 3, 4, 4),
        (OptimizerState("sgd", combined_accumulator=True), 3, 0, 4),
        (OptimizerState("adamw"), 3, 8, 4),
        (OptimizerState("lamb", accumulator_bits=16), 3, 8, 2),
        (OptimizerState("rmsprop", momentum=False), 3, 4, 4),
        (OptimizerState("rmsprop", state_bits=16), 3, 4, 4),
        (OptimizerState("adam", off_chip=True), 3, 0, 4),
    ],
)
def test_bytes_of_optimizer_state_and_accumulator_per_weight(
    optimizer: OptimizerState, accumulation: int, state: int, accumulators: int
) -> None:
    execution = Execution(micro_batch_size=1, gradient_accumulation=accumulation, optimizer=optimizer)
    memory = plan_ipu(tiny_trace(), execution).stages[0].memory
    assert (memory.optimizer_state, memory.accumulators) == (2082 * state, 2082 * accumulators)


def test_only_large_tensors_are_sharded_over_replicas() -> None:
    trace = trace_network(nn.Sequential(nn.Conv2d(3, 2731, 1, bias=False), nn.Conv2d(2731, 2, 1, bias=False)), 1)
    sharded = Execution(1, 1, replicas=4, optimizer=OptimizerState("sgd", sharded=True))
    # 8193 weights: a quarter, rounded up. 5462 weights: below 8192, whole.
    assert plan_ipu(trace, sharded).stages[0].memory.optimizer_state == (2049 + 5462) * 4


def test_seconds_of_a_stage_are_as_computed_by_hand() -> None:
    system = System("round numbers", 100, MIB, 1e6, 10, 5, 1e9, 2e9, 1e8, 1e7, 1e7)
    rates = Rates(product_efficiency=0.5, product_overhead_cycles=1000.0, all_reduce_efficiency=0.1)
    first, last = (stage_seconds(each, PIPELINE, system, rates) for each in cut_stages(tiny_trace(), ("2",)))
    # Forward, recomputed, and twice as much backward: 4 passes; two images; the peak is 1e9 and half of it is reached.
    assert first.products == pytest.approx(4 * 2 * (2 * 3456) / 0.5e9)
    assert first.overhead == pytest.approx(4 * 1000 / 1e6)
    assert first.vectors == pytest.approx(4 * (2 * 256 * 2) / 0.25e9)
    assert first.exchange == pytest.approx(4 * (2 * 176 * 2 + 216 * 2) / 2e9)
    assert (first.links, first.host) == (0, pytest.approx(2 * 48 / 1e7))
    # The last stage recomputes nothing, has two products, and gets 128 values an image and gives back their gradients.
    assert last.overhead == pytest.approx(3 * 2 * 1000 / 1e6)
    assert last.links == pytest.approx(2 * 2 * 128 * 2 / 1e8)


def test_small_groups_leave_the_product_unit_idle_and_float32_halves_its_width() -> None:
    def seconds(groups: int, precision: str) -> float:
        conv = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=groups, bias=False))
        stage = cut_stages(trace_network(conv, 8, in_channels=64))[0]
        execution = Execution(1, 1, precision=precision, partials="float")
        return stage_seconds(stage, execution, MK2, Rates()).products

    dense = seconds(1, "16.16")
    assert seconds(4, "16.16") == pytest.approx(dense / 4)  # 16 channels in a group fill it: only fewer products
    assert seconds(64, "16.16") == pytest.approx(dense / 64 * 16)  # a single channel takes the time of 16
    assert seconds(1, "32.32") == pytest.approx(4 * dense)
    assert seconds(64, "32.32") == pytest.approx(4 * dense / 64 * 8)


def test_a_step_is_filled_and_drained_pipeline_cycles_and_an_update() -> None:
    plan = plan_ipu(tiny_trace(), replace(PIPELINE, gradient_accumulation=6, replicas=2))
    slowest = max(each.seconds.total for each in plan.stages)
    assert plan.pipeline_use == 6 / (6 + 2)
    assert plan.step_seconds == pytest.approx((6 + 2) * slowest + plan.update)
    assert plan.images_per_second == pytest.approx(2 * 6 * 2 / plan.step_seconds)
    # Stage 1 has 1866 weights: its float32 accumulators go half around a ring of two, and back.
    ring = 2 * 1 / 2 * 1866 * 4 / (160e9 * ALL_REDUCE_EFFICIENCY)
    assert plan.update == pytest.approx(ring + 2 * 1866 * (2 + 4 + 4) / (47.5e12 * 0.25))


def test_io_tiles_hide_host_transfers_and_take_memory_and_speed() -> None:
    plain = plan_ipu(tiny_trace(), Execution(2, 4))
    overlapped = plan_ipu(tiny_trace(), Execution(2, 4, num_io_tiles=32))
    assert overlapped.stages[0].seconds.host == 0 < plain.stages[0].seconds.host
    assert overlapped.stages[0].seconds.products == pytest.approx(plain.stages[0].seconds.products * 1472 / 1440)
    assert plain.memory_bytes - overlapped.memory_bytes == 32 * 624 * 1024


@pytest.mark.parametrize(
    "change, words",
    [
        ({"replicas": 3}, "use 4 or 8 IPUs"),
        ({"gradient_accumulation": 2}, "a pipeline needs 3 or more"),
        ({"num_io_tiles": 32}, "without a pipeline only"),
        ({"num_io_tiles": 33, "splits": ()}, "must be even and from 32 to 192"),
        ({"splits": (), "checkpoints": ("1",)}, "without recomputation"),
    ],
)
def test_what_poptorch_would_refuse_is_refused_with_a_way_out(change: Any, words: str) -> None:
    plan = plan_ipu(tiny_trace(), replace(PIPELINE, **change))
    assert not plan.fits
    assert any(words in refusal for refusal in plan.refusals)
    assert "refused: " in format_plan(plan)


def test_unknown_paths_name_the_nearest_and_splits_must_follow_the_execution() -> None:
    trace = small_trace()
    with pytest.raises(ValueError, match=r"'stages\.1\.7' is not a module of the network; the nearest are stages\.1"):
        plan_ipu(trace, Execution(1, 3, splits=("stages.1.7",)))
    with pytest.raises(ValueError, match=r"checkpoint 'bn1' is not a module"):
        plan_ipu(trace, Execution(1, 3, splits=("stages.1.0",), checkpoints=("bn1",)))
    with pytest.raises(ValueError, match=r"pipeline split stages\.1\.0 begins at operation .* not after"):
        plan_ipu(trace, Execution(1, 5, splits=("stages.2.0", "stages.1.0")))
    with pytest.raises(ValueError, match="image_size is missing"):
        plan_ipu(tiny(), PIPELINE)
    with pytest.raises(ValueError, match="system 'mk3' is unknown; use one of mk1, mk2, bow"):
        plan_ipu(trace, Execution(1, 1), system="mk3")


TRACES = st.sampled_from([("resnet20", "batch"), ("resnet20", "group"), ("efficientnet_small", "group")])


@st.composite
def pipelines(draw: Any) -> Tuple[Trace, Execution]:
    trace = small_trace(*draw(TRACES))
    places = split_places(trace)
    chosen = sorted(draw(st.sets(st.integers(0, len(places) - 1), max_size=5)))
    execution = Execution(
        micro_batch_size=draw(st.integers(1, 64)),
        gradient_accumulation=draw(st.integers(11, 64)),
        replicas=draw(st.sampled_from([1, 2, 4, 64])),
        splits=tuple(places[i] for i in chosen),
        recompute=draw(st.sampled_from([None, True, False])),
        precision=draw(st.sampled_from(["16.16", "16.32", "32.32"])),
        partials="float",
        optimizer=draw(st.sampled_from([OptimizerState("sgd"), OptimizerState("rmsprop", sharded=True)])),
    )
    return trace, execution


def parts(plan: IpuPlan) -> List[List[int]]:
    return [list(each.memory.__dict__.values()) for each in plan.stages]


@settings(max_examples=40, deadline=None)
@given(pipelines())
def test_stages_cover_the_network_once(case: Tuple[Trace, Execution]) -> None:
    trace, execution = case
    plan = plan_ipu(trace, execution)
    assert len(plan.stages) == len(execution.splits) + 1
    assert plan.multiply_adds == trace.multiply_adds
    assert sum(each.stage.num_parameters for each in plan.stages) == trace.num_parameters
    moved = sum((each.stage.vectors for each in plan.stages), Size())
    assert moved == sum((each.moved for each in trace.operations if not each.is_product), Size())


@settings(max_examples=40, deadline=None)
@given(pipelines(), st.integers(1, 64))
def test_a_larger_micro_batch_never_needs_less_memory_or_time(case: Tuple[Trace, Execution], more: int) -> None:
    trace, execution = case
    small = plan_ipu(trace, execution)
    large = plan_ipu(trace, replace(execution, micro_batch_size=execution.micro_batch_size + more))
    for before, after in zip(parts(small), parts(large)):
        assert all(a >= b for a, b in zip(after, before))
    assert large.pipeline_cycle > small.pipeline_cycle


@settings(max_examples=40, deadline=None)
@given(pipelines(), st.integers(0, 8))
def test_one_more_split_never_raises_the_largest_stages_weights(case: Tuple[Trace, Execution], at: int) -> None:
    trace, execution = case
    places = split_places(trace)
    chosen = {*execution.splits, places[at % len(places)]}
    finer = replace(execution, splits=tuple(place for place in places if place in chosen))
    before, after = (plan_ipu(trace, each).stages for each in (execution, finer))
    assert max(each.memory.weights for each in after) <= max(each.memory.weights for each in before)


@settings(max_examples=40, deadline=None)
@given(pipelines())
def test_recomputation_never_needs_more_memory_for_activations_and_never_less_time(
    case: Tuple[Trace, Execution],
) -> None:
    trace, execution = case
    saving, recomputing = (plan_ipu(trace, replace(execution, recompute=choice)) for choice in (False, True))
    for before, after in zip(saving.stages, recomputing.stages):
        held = after.memory.stash + after.memory.activations
        assert held <= before.memory.stash + before.memory.activations
        assert after.seconds.total >= before.seconds.total


@settings(max_examples=40, deadline=None)
@given(pipelines())
def test_more_accumulation_uses_the_pipeline_better_and_replicas_never_cost_memory(
    case: Tuple[Trace, Execution],
) -> None:
    trace, execution = case
    plan = plan_ipu(trace, execution)
    longer = plan_ipu(trace, replace(execution, gradient_accumulation=2 * execution.gradient_accumulation))
    assert plan.pipeline_use <= longer.pipeline_use <= 1
    assert plan.images_per_second < longer.images_per_second
    wider = plan_ipu(trace, replace(execution, replicas=2 * execution.replicas))
    assert all(a <= b for after, before in zip(parts(wider), parts(plan)) for a, b in zip(after, before))


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 512])
def test_proposed_splits_are_the_best_of_all(stages: int, micro_batch_size: int) -> None:
    trace = small_trace("resnet20")
    # On this system 512 images fit with no splits, so that the fullest stage has to decide; one leaves a margin.
    system = replace(MK2, tile_bytes=56 * 1024)
    execution = Execution(micro_batch_size, 2 * stages - 1)

    def cost(splits: Tuple[str, ...]) -> Tuple[float, float]:
        plan = plan_ipu(trace, replace(execution, splits=splits), system=system)
        fullest = max(each.memory.total for each in plan.stages) / plan.memory_bytes
        return (1.0, plan.pipeline_cycle) if fullest <= MEMORY_AIM else (fullest / MEMORY_AIM, 0.0)

    proposed = propose_splits(trace, stages, system=system, execution=execution)
    every = itertools.combinations(split_places(trace), stages - 1)
    assert cost(proposed) == pytest.approx(min(cost(splits) for splits in every))
    assert (cost(proposed)[0] > 1) == (micro_batch_size == 512)


def test_proposed_splits_are_module_paths_of_blocks() -> None:
    network = build_model("resnet20", num_classes=10, norm_act=NormActFactory())
    splits = propose_splits(network, 4, image_size=32)
    assert len(splits) == 3
    assert all(type(network.get_submodule(path)).__name__ == "BasicBlock" for path in splits)
    with pytest.raises(ValueError, match="stages 11 must be from 1 to 10"):
        propose_splits(network, 11, image_size=32)


def test_the_largest_micro_batch_leaves_a_tenth_of_the_memory_and_the_next_one_does_not() -> None:
    trace, execution = small_trace("resnet20"), Execution(1, 7, splits=("stages.0.2", "stages.1.1", "stages.2.0"))
    largest = largest_micro_batch(trace, execution, system="mk1")
    assert largest > 1
    fitting, narrow = (
        plan_ipu(trace, replace(execution, micro_batch_size=size, replicas=1), system="mk1")
        for size in (largest, largest + 1)
    )
    assert fitting.has_margin
    assert not narrow.has_margin
    none = replace(SYSTEMS["mk1"], tile_bytes=1024)
    assert largest_micro_batch(trace, execution, system=none) == 0


def test_a_refusal_says_what_by_how_much_and_ways_out() -> None:
    execution = Execution(4096, 2, replicas=2, optimizer=OptimizerState("adamw"))
    (refusal,) = plan_ipu(small_trace("resnet20"), execution, system="mk1").refusals
    assert "stage 0 needs" in refusal
    assert "MiB of the 304 MiB of one MK1 (GC2)" in refusal
    assert "MiB activations" in refusal
    for way in ("lower micro_batch_size", "recompute", "shard", "off chip", "use more stages"):
        assert way in refusal


def test_a_whole_pod256_is_planned() -> None:
    like = Execution(1, 1, available_memory_proportion=(0.15,))
    plan = propose_plan(small_trace("resnet20"), like, ipus=256, global_batch_size=8192, system=SYSTEMS["bow"])
    assert plan.fits
    assert plan.execution.ipus == 256
    assert plan.execution.global_batch_size == 8192


@pytest.mark.parametrize("ipus_per_replica", [1, 2, 4])
def test_a_proposal_keeps_what_it_is_told(ipus_per_replica: int) -> None:
    plan = propose_plan(
        small_trace("resnet20", "batch"),
        Execution(1, 1),
        ipus=4,
        global_batch_size=512,
        system=MK2,
        ipus_per_replica=ipus_per_replica,
        micro_batch_size=16,
    )
    assert plan.fits
    assert (plan.execution.ipus_per_replica, plan.execution.micro_batch_size) == (ipus_per_replica, 16)
    assert plan.execution.gradient_accumulation == 512 // 16 // (4 // ipus_per_replica)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"ipus": 12}, "not a power of 2"),
        ({"ipus": 4, "global_batch_size": 510, "ipus_per_replica": 1}, "cannot be cut into micro-batches that fill"),
        ({"ipus": 4, "micro_batch_size": 7}, "micro-batches of 7"),
    ],
)
def test_sizes_that_cannot_be_honoured_are_errors(arguments: Any, words: str) -> None:
    given_arguments = {"global_batch_size": 512, **arguments}
    with pytest.raises(ValueError, match=words):
        propose_plan(small_trace("resnet20"), Execution(1, 1), system=MK2, **given_arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        {"micro_batch_size": 0},
        {"precision": "8.8"},
        {"partials": "double"},
        {"partials": "half", "precision": "32.32"},
        {"available_memory_proportion": (0.1, 0.1, 0.1)},
        {"available_memory_proportion": (1.5,)},
    ],
)
def test_values_out_of_range_are_errors(wrong: Any) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        replace(PIPELINE, **wrong)
    with pytest.raises(ValueError, match="combined_accumulator belongs to sgd"):
        OptimizerState("adam", combined_accumulator=True)
    with pytest.raises(ValueError, match="optimizer 'lars' is unknown"):
        OptimizerState("lars")
