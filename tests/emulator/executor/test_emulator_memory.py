"""POPTORCH_EMULATOR_IPU: models that do not fit an IPU are refused."""

import poptorch
import pytest
import torch
import torch.nn.functional as F
from poptorch._executor.memory_limit import KINDS, memory_of

from backends.plan.hardware import SYSTEMS

MIB = 1 << 20
WIDTH, ROWS = 512, 256  # a weight is 1 MiB, an activation 0.5 MiB


class Layers(torch.nn.Module):
    """8 linear layers without bias, cut into stages."""

    def __init__(self, stages, checkpoint=None):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(8))
        self.checkpoint = checkpoint
        for stage in range(1, stages):
            poptorch.BeginBlock(self.layers[stage * 8 // stages], ipu_id=stage)

    def forward(self, x, y):
        for position, layer in enumerate(self.layers):
            x = torch.relu(layer(x))
            if position == self.checkpoint:
                x = poptorch.recomputationCheckpoint(x)
        return F.mse_loss(x, y)


def needed(monkeypatch, stages, checkpoint=None, kind="bow", change=lambda options: None, optimizer=None):
    """Return the bytes of each IPU, as compiled with 8 accumulation steps and Adam."""
    monkeypatch.setenv("POPTORCH_EMULATOR_IPU", kind)
    model = Layers(stages, checkpoint)
    options = poptorch.Options()
    options.Training.gradientAccumulation(8)
    change(options)
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1) if optimizer is None else optimizer(model)
    found = {}
    monkeypatch.setattr(
        "poptorch._executor.memory_limit.memory_of", lambda *arguments: found.update(memory_of(*arguments)) or found
    )
    rows = torch.zeros(8 * ROWS * options.replication_factor, WIDTH)
    poptorch.trainingModel(model, options, optimizer).compile(rows, rows)
    return [found[ipu] for ipu in sorted(found)]


def test_one_ipu_keeps_every_activation_once(monkeypatch):
    (ipu,) = needed(monkeypatch, stages=1)
    assert (ipu.weights, ipu.accumulators) == (8 * MIB, 8 * MIB)
    assert ipu.state == 16 * MIB + 8 * 4  # two moments and a step count of each weight
    assert ipu.activations == (2 + 8) * MIB // 2  # x, y and the output of each layer
    assert ipu.temporaries == 3 * MIB  # operand and result with their gradients, and the weight's gradient


def test_stages_of_a_pipeline_keep_their_inputs_for_twice_their_distance_to_the_end(monkeypatch):
    ipus = needed(monkeypatch, stages=4)
    half = MIB // 2
    # what enters times the depth 7, 5, 3, 1 (the last stage takes the labels too), and the stage's two layers again
    assert [ipu.activations for ipu in ipus] == [(7 + 2) * half, (5 + 2) * half, (3 + 2) * half, (2 + 2) * half]
    assert [ipu.weights for ipu in ipus] == [2 * MIB] * 4


def test_without_recomputation_every_activation_is_kept(monkeypatch):
    ipus = needed(monkeypatch, stages=4, change=lambda options: options._Popart.set("autoRecomputation", 0))
    half = MIB // 2
    assert [ipu.activations for ipu in ipus] == [(1 + 2) * 7 * half, (1 + 2) * 5 * half, (1 + 2) * 3 * half, 4 * half]


def test_a_checkpoint_is_kept_and_shortens_what_is_recomputed(monkeypatch):
    first, _ = needed(monkeypatch, stages=2, checkpoint=1)
    half = MIB // 2
    # two tensors for 3 micro batches; the longer part between checkpoints has two layers
    assert first.activations == ((1 + 1) * 3 + 2) * half


def test_combined_accumulators_sharded_state_and_off_chip_weights_save_memory(monkeypatch):
    def combined(model):
        return poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, use_combined_accum=True)

    (ipu,) = needed(monkeypatch, 1, optimizer=combined)
    assert (ipu.accumulators, ipu.state) == (0, 8 * MIB)

    def sharded(options):
        options.replicationFactor(4)
        options.TensorLocations.setOptimizerLocation(
            poptorch.TensorLocationSettings().useReplicatedTensorSharding(True)
        )
        options.TensorLocations.setWeightLocation(poptorch.TensorLocationSettings().useOnChipStorage(False))

    (ipu,) = needed(monkeypatch, 1, change=sharded)
    assert (ipu.weights, ipu.accumulators) == (0, 8 * MIB)
    assert ipu.state == pytest.approx(4 * MIB, abs=64)


def test_half_precision_takes_half_the_memory(monkeypatch):
    monkeypatch.setenv("POPTORCH_EMULATOR_IPU", "bow")
    found = []
    monkeypatch.setattr(
        "poptorch._executor.memory_limit.memory_of", lambda *arguments: found.append(memory_of(*arguments)) or found[-1]
    )
    for dtype in (torch.float32, torch.float16):
        model = Layers(1).to(dtype)
        optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, velocity_accum_type=dtype)
        rows = torch.zeros(ROWS, WIDTH, dtype=dtype)
        poptorch.trainingModel(model, None, optimizer).compile(rows, rows)
    assert [2 * value for value in found[1][0]] == list(found[0][0])


class Wide(torch.nn.Module):
    """Two layers of 14 MiB: with gradients accumulated, and temporaries, 70 MiB on one IPU."""

    def __init__(self, stages):
        super().__init__()
        self.first = torch.nn.Linear(1920, 1920, bias=False)
        self.second = torch.nn.Linear(1920, 1920, bias=False)
        if stages == 2:
            poptorch.BeginBlock(self.second, ipu_id=1)

    def forward(self, x):
        return poptorch.identity_loss(self.second(self.first(x)), "sum")


def compile_wide(stages):
    options = poptorch.Options()
    options.Training.gradientAccumulation(3)
    model = Wide(stages)
    poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1)).compile(torch.ones(3, 1920))


def test_what_does_not_fit_is_refused_and_more_stages_or_another_ipu_make_it_fit(monkeypatch):
    for name, kind in list(KINDS.items()):  # a sixteenth of their memory, so that this process needs no gigabytes
        monkeypatch.setitem(KINDS, name, kind._replace(tile_bytes=kind.tile_bytes // 16))
    monkeypatch.setenv("POPTORCH_EMULATOR_IPU", "mk2")
    with pytest.raises(poptorch.Error, match=r"Out of memory.*IPU 0 needs 70\..*has 56.1 MiB") as caught:
        compile_wide(stages=1)
    assert caught.value.type == "popart_exception"
    compile_wide(stages=2)
    monkeypatch.setenv("POPTORCH_EMULATOR_IPU", "mk1")
    with pytest.raises(poptorch.Error, match=r"IPU 0 needs .*IPU 1 needs .*has 19.0 MiB"):
        compile_wide(stages=2)
    monkeypatch.delenv("POPTORCH_EMULATOR_IPU")
    compile_wide(stages=1)


def test_an_unknown_ipu_is_an_error(monkeypatch):
    monkeypatch.setenv("POPTORCH_EMULATOR_IPU", "mk3")
    with pytest.raises(ValueError, match="mk1, mk2, bow"):
        poptorch.inferenceModel(torch.nn.Identity()).compile(torch.ones(1))


def test_the_kinds_of_ipus_are_those_that_can_be_planned_for():
    assert set(KINDS) == set(SYSTEMS)
    for name, system in SYSTEMS.items():
        assert (KINDS[name].tiles, KINDS[name].tile_bytes) == (system.tiles, system.tile_bytes)
