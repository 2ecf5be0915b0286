"""Weights on the device and on the host, compiling, attaching, saving, the random generator, the kind of device."""

import copy
import io

import poptorch
import pytest
import torch


class OneWeight(torch.nn.Module):
    """Each training call with lr 1 takes the input off the weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return poptorch.identity_loss(self.weight * x, "sum"), self.weight + 0


def trained(model, calls=0, options=None):
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=1.0))
    for _ in range(calls):
        executor(torch.ones(1))
    return executor


def test_weights_come_back_when_they_are_looked_at_and_only_then():
    model = OneWeight()
    executor = trained(model, calls=2)
    assert executor._dirty_host_weights
    assert model.weight.item() == -2.0
    assert not executor._dirty_host_weights


@pytest.mark.parametrize(
    "look",
    [
        lambda m: m.state_dict()["weight"],
        lambda m: next(m.parameters()).detach(),
        lambda m: copy.deepcopy(m).weight.detach(),
        lambda m: torch.add(m.weight, 0).detach(),
        lambda m: m.weight.data,
    ],
)
def test_every_way_to_a_weight_finds_the_new_value(look):
    model = OneWeight()
    executor = trained(model, calls=3)
    assert look(model).item() == -3.0
    assert executor.isCompiled()


def test_changes_on_the_host_reach_the_device_only_when_sent():
    model = OneWeight()
    executor = trained(model, calls=1)
    with torch.no_grad():
        model.weight.fill_(10.0)
    assert executor(torch.ones(1))[1] == -1.0
    executor.copyWeightsToHost()
    with torch.no_grad():
        model.weight.fill_(10.0)
    executor.copyWeightsToDevice()
    assert executor(torch.ones(1))[1] == 10.0


def test_loading_a_state_sends_it():
    executor = trained(OneWeight(), calls=1)
    executor.load_state_dict({"weight": torch.tensor([5.0])})
    assert executor(torch.ones(1))[1] == 5.0


def test_an_inference_model_follows_the_training_of_the_same_module():
    model = OneWeight()
    training = trained(model)
    inference = poptorch.inferenceModel(model)
    assert inference(torch.ones(1))[1] == 0.0
    training(torch.ones(1))
    training(torch.ones(1))
    assert inference(torch.ones(1))[1] == -2.0


def test_an_inference_model_alone_keeps_its_weights_until_they_are_sent():
    model = torch.nn.Linear(1, 1)
    executor = poptorch.inferenceModel(model)
    first = executor(torch.ones(1, 1))
    with torch.no_grad():
        model.weight.add_(1.0)
    assert executor(torch.ones(1, 1)) == first
    executor.copyWeightsToDevice()
    assert executor(torch.ones(1, 1)) == first + 1


def test_a_saved_state_has_plain_tensors():
    model = OneWeight()
    executor = trained(model, calls=1)
    for state in (model.state_dict(), model.state_dict(keep_vars=True), executor.state_dict()):
        assert type(state["weight"]) in (torch.Tensor, torch.nn.Parameter)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert torch.load(file)["weight"] == -1.0


def test_a_model_is_trained_by_one_executor_at_a_time():
    model = OneWeight()
    executor = trained(model, calls=1)
    with pytest.raises(RuntimeError, match="already been wrapped"):
        trained(model)
    executor.destroy()
    assert type(model) is OneWeight and type(model.weight) is torch.nn.Parameter
    assert trained(model, calls=1)(torch.ones(1))[1] == -2.0


def test_a_destroyed_executor_has_nothing_to_copy():
    executor = trained(OneWeight(), calls=1)
    executor.destroy()
    for method in (executor.copyWeightsToHost, executor.copyWeightsToDevice):
        with pytest.raises(poptorch.Error, match="Model has not been compiled or has been destroyed"):
            method()


def test_tied_weights_stay_tied():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(2, 2, bias=False)
            self.b = torch.nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return poptorch.identity_loss(self.b(self.a(x)), "sum")

    model = Tied()
    reference = copy.deepcopy(model)
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    executor(torch.ones(1, 2))
    reference(torch.ones(1, 2)).backward()
    torch.testing.assert_close(model.b.weight.detach(), (reference.a.weight - 0.1 * reference.a.weight.grad).detach())
    assert model.a.weight is model.b.weight


def test_what_train_and_eval_say_counts_when_the_model_is_compiled():
    model = torch.nn.Sequential(torch.nn.Dropout(1.0))
    executor = poptorch.inferenceModel(model)
    assert executor(torch.ones(4)).sum() == 0
    model.eval()
    assert executor(torch.ones(4)).sum() == 0
    assert poptorch.inferenceModel(model)(torch.ones(4)).sum() == 4
    assert not model[0].training


def test_attaching_and_detaching_twice_are_errors_and_keep_the_weights():
    model = OneWeight()
    executor = trained(model, calls=1)
    with pytest.raises(poptorch.Error, match="Device is already attached"):
        executor.attachToDevice()
    executor.detachFromDevice()
    with pytest.raises(poptorch.Error, match="Device is not attached"):
        executor.detachFromDevice()
    assert executor(torch.ones(1))[1] == -1.0


def again(executor):
    executor.detachFromDevice()


def sent(executor):
    executor.copyWeightsToHost()
    executor.copyWeightsToDevice()


def loaded(executor):
    executor.load_state_dict(executor.state_dict())


@pytest.mark.parametrize("send", [again, sent, loaded])
@pytest.mark.parametrize("library, second_step", [(torch.optim, 1.0), (poptorch.optim, 1.5)])
def test_sending_weights_takes_the_momentum_of_torchs_optimizers_and_says_so_once(send, library, second_step, capfd):
    model = OneWeight()
    executor = poptorch.trainingModel(model, optimizer=library.SGD(model.parameters(), lr=1.0, momentum=0.5))
    executor(torch.ones(1))
    assert capfd.readouterr().err == ""
    send(executor)
    executor(torch.ones(1))
    assert model.weight.item() == -1.0 - second_step
    send(executor)
    executor(torch.ones(1))
    warnings = capfd.readouterr().err
    assert warnings.count("has set the state of SGD, its momentum or moments, back") == (library is torch.optim)


def test_sending_weights_takes_the_moments_and_steps_of_torchs_adam():
    model = OneWeight()
    executor = poptorch.trainingModel(model, optimizer=torch.optim.Adam(model.parameters(), lr=0.5))
    for x in (1.0, -1.0):  # each is a first step, which moves a weight by the rate
        executor(torch.tensor([x]))
        executor.copyWeightsToHost()
        executor.copyWeightsToDevice()
    assert model.weight.item() == pytest.approx(0.0, abs=1e-6)


def test_sending_weights_without_a_state_to_lose_gives_no_warning(capfd):
    executor = trained(OneWeight(), calls=1)
    again(executor)
    executor(torch.ones(1))
    assert capfd.readouterr().err == ""


def test_evaluation_beside_training_leaves_the_momentum_of_torchs_optimizers_alone():
    model = OneWeight()
    training = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5))
    evaluation = poptorch.inferenceModel(model)
    weights = []
    for _ in range(3):
        training(torch.ones(1))
        weights.append(evaluation(torch.ones(1))[1].item())
    assert weights == [-1.0, -2.5, -4.25]


def test_one_ipu_serves_one_executor():
    options = poptorch.Options().useIpuId(7)
    first = poptorch.inferenceModel(torch.nn.Identity(), options)
    second = poptorch.inferenceModel(torch.nn.Identity(), options)
    first(torch.ones(1))
    with pytest.raises(poptorch.Error, match="Failed to acquire"):
        second(torch.ones(1))
    first.detachFromDevice()
    second(torch.ones(1))


def test_an_offline_target_only_compiles(monkeypatch):
    executor = poptorch.inferenceModel(torch.nn.Identity(), poptorch.Options().useOfflineIpuTarget())
    executor.compile(torch.ones(1))
    assert executor.isCompiled() and not executor.isAttachedToDevice()
    with pytest.raises(AssertionError, match="offline device"):
        executor(torch.ones(1))
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    with pytest.raises(poptorch.Error, match="not supported for the IPU model"):
        poptorch.inferenceModel(torch.nn.Identity(), poptorch.Options().useOfflineIpuTarget()).compile(torch.ones(1))


def test_the_kind_of_device_is_told_by_the_environment(monkeypatch):
    assert poptorch.ipuHardwareIsAvailable(64) and not poptorch.ipuHardwareIsAvailable(65)
    assert poptorch.ipuHardwareVersion() == 2
    monkeypatch.setenv("POPTORCH_SMALL_IPU_MODEL", "1")
    assert not poptorch.ipuHardwareIsAvailable()
    with pytest.raises(AssertionError, match="No IPU hardware"):
        poptorch.ipuHardwareVersion()


def test_compiling_twice_only_warns(capfd):
    executor = poptorch.inferenceModel(torch.nn.Identity())
    executor.compile(torch.ones(1))
    executor.compile(torch.ones(2))
    assert "ignored: the executable is already compiled" in capfd.readouterr().err


def test_running_a_model_leaves_the_hosts_generator_alone_and_a_seed_repeats_the_devices():
    def draws(seed):
        options = poptorch.Options()
        if seed is not None:
            options.randomSeed(seed)
        executor = poptorch.inferenceModel(torch.nn.Dropout(0.5), options.clone())
        before = torch.get_rng_state()
        result = torch.stack([executor(torch.ones(64)) for _ in range(2)])
        assert torch.equal(torch.get_rng_state(), before)
        return result

    first = draws(5)
    assert torch.equal(first, draws(5))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(draws(None), draws(None))


def test_the_generators_state_can_be_kept_and_given_back():
    executor = poptorch.inferenceModel(torch.nn.Dropout(0.5))
    executor(torch.ones(64))
    state = executor.rng_state
    first = executor(torch.ones(64))
    executor.rng_state = state
    assert torch.equal(executor(torch.ones(64)), first)


def test_random_seed_seeds_torch_at_once():
    poptorch.Options().randomSeed(9)
    first = torch.rand(3)
    torch.manual_seed(9)
    assert torch.equal(first, torch.rand(3))


def test_an_executable_goes_to_a_file_and_back(tmp_path):
    model = torch.nn.Linear(2, 2)
    executor = poptorch.inferenceModel(model)
    x = torch.ones(3, 2)
    expected = executor(x)
    executor.save(str(tmp_path / "sub" / "model.poptorch"))
    loaded = poptorch.load(str(tmp_path / "sub" / "model.poptorch"))
    assert loaded.isCompiled()
    assert torch.equal(loaded(x), expected)
    with pytest.raises(poptorch.Error, match="Shape mismatch"):
        loaded(torch.ones(4, 2))


def test_a_file_without_model_compiles_another_one_for_its_inputs(tmp_path):
    path = str(tmp_path / "model.poptorch")
    poptorch.inferenceModel(torch.nn.Identity()).compileAndExport(path, torch.ones(3), export_model=False)
    with pytest.raises(AssertionError, match="export_model=False"):
        poptorch.load(path)
    executor = poptorch.inferenceModel(torch.nn.Identity())
    executor.loadExecutable(path)
    assert executor.isCompiled()


def test_hooks_run_around_each_compilation():
    calls = []
    handles = [
        poptorch.registerPreCompileHook(lambda: calls.append("before")),
        poptorch.registerPostCompileHook(lambda: calls.append("after")),
    ]
    poptorch.inferenceModel(torch.nn.Identity()).compile(torch.ones(1))
    for handle in handles:
        handle.remove()
    poptorch.inferenceModel(torch.nn.Identity()).compile(torch.ones(1))
    assert calls == ["before", "after"]
    with pytest.raises(RuntimeError):
        poptorch.registerPreCompileHook(3)


def test_anchored_tensors_and_reports():
    model = OneWeight()
    options = poptorch.Options().logCycleCount(True)
    options.anchorTensor("g", "Gradient___weight")
    executor = trained(model, calls=1, options=options)
    assert executor.getAnchoredTensor("g") == 1.0
    assert "UpdatedVar___weight" in executor.getTensorNames()
    assert executor.cycleCount() > 0
    low, high, mean = executor.getLatency()
    assert 0 < low <= mean <= high
    assert executor.compilationTime().total_seconds() > 0
