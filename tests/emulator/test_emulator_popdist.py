"""popdist: instances as processes."""

import json
import runpy

import popdist
import popdist.poptorch
import popdist.run
import pytest

PROGRAM = """
import json, sys
import popdist, popdist.poptorch, poptorch, torch


def train():
    popdist.init()
    options = popdist.poptorch.Options()
    options.Training.gradientAccumulation(2)
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, x, y):
            return poptorch.identity_loss((self.layer(x) - y) ** 2, "mean")

    model = Model()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    executor = poptorch.trainingModel(model, options, optimizer)
    instances, index = popdist.getNumInstances(), popdist.getInstanceIndex()
    data = [t.reshape(2, instances, -1, t.shape[1])[:, index] for t in (torch.randn(16, 3), torch.randn(16, 2))]
    for _ in range(3):
        executor(*(part.reshape(-1, part.shape[-1]) for part in data))
    process = [options.Distributed.processId, options.Distributed.numProcesses]
    replicas = [options.replication_factor, popdist.getNumTotalReplicas()]
    return {"process": process, "replicas": replicas, "weight": model.layer.weight.flatten().tolist()}


if __name__ == "__main__":
    open(f"{sys.argv[1]}/{popdist.getInstanceIndex()}.json", "w").write(json.dumps(train()))
"""


def test_two_instances_train_as_one_does(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    assert popdist.run.main(["--num-instances", "2", "--num-replicas", "4", str(program), str(tmp_path)]) == 0
    first, second = (json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2))
    monkeypatch.setenv("POPDIST_NUM_TOTAL_REPLICAS", "4")
    monkeypatch.setenv("POPDIST_NUM_LOCAL_REPLICAS", "4")
    alone = runpy.run_path(str(program), run_name="program")["train"]()
    assert first["weight"] == second["weight"]
    # the same sums in another order, in float32
    assert first["weight"] == pytest.approx(alone["weight"], rel=1e-5, abs=1e-6)
    assert (first["process"], second["process"], alone["process"]) == ([0, 2], [1, 2], [0, 1])
    assert first["replicas"] == second["replicas"] == [2, 4]


def test_one_failing_instance_ends_all(tmp_path):
    program = tmp_path / "program.py"
    outlived = tmp_path / "outlived"
    program.write_text(
        "import os, sys, time\nif os.environ['POPDIST_REPLICA_INDEX_OFFSET'] == '1': sys.exit(7)\n"
        f"time.sleep(60)\nopen({str(outlived)!r}, 'w')\n"
    )
    assert popdist.run.main(["--num-instances", "2", "--num-replicas", "2", str(program)]) == 7
    assert not outlived.exists()


def test_replicas_must_divide_over_instances(capsys):
    with pytest.raises(SystemExit):
        popdist.run.main(["--num-instances", "2", "--num-replicas", "3", "program.py"])
    assert "--num-replicas 3 is not a multiple of --num-instances 2" in capsys.readouterr().err


BLOCKED = [
    ("useIpuId", lambda o: o.useIpuId(1)),
    ("replicationFactor", lambda o: o.replicationFactor(1)),
    ("Distributed.disable", lambda o: o.Distributed.disable()),
    ("Distributed.setEnvVarNames", lambda o: o.Distributed.setEnvVarNames("A", "B")),
    ("Distributed.configureProcessId", lambda o: o.Distributed.configureProcessId(1)),
]


@pytest.mark.parametrize("name, call", BLOCKED)
def test_what_the_launcher_decides_cannot_be_set(name, call):
    with pytest.raises(RuntimeError, match=f"Cannot call `{name}` with popdist.poptorch.Options"):
        call(popdist.poptorch.Options(ipus_per_replica=2))


def test_options_follow_the_environment(monkeypatch):
    for name, value in [
        ("NUM_TOTAL_REPLICAS", 8),
        ("NUM_LOCAL_REPLICAS", 2),
        ("REPLICA_INDEX_OFFSET", 6),
        ("NUM_IPUS_PER_REPLICA", 4),
    ]:
        monkeypatch.setenv(f"POPDIST_{name}", str(value))
    assert popdist.isPopdistEnvSet()
    assert (popdist.getNumInstances(), popdist.getInstanceIndex()) == (4, 3)
    options = popdist.poptorch.Options(ipus_per_replica=4).clone()
    assert (options.replication_factor, options.Distributed.processId, options.Distributed.numProcesses) == (2, 3, 4)
    assert popdist.execute_on_instances({3}, max, 1, 2) == 2
    assert popdist.execute_on_instances([0], max, 1, 2) is None
    with pytest.raises(RuntimeError, match="--ipus-per-replica 4"):
        popdist.poptorch.Options(ipus_per_replica=2)


def test_without_a_launcher_there_is_one_instance():
    assert not popdist.isPopdistEnvSet()
    popdist.init()
    assert (popdist.getNumInstances(), popdist.getInstanceIndex(), popdist.getNumTotalReplicas()) == (1, 0, 1)
