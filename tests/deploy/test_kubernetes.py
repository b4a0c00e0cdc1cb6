"""The manifests of `deploy/kubernetes`: valid, consistent, and with commands that lrtrain takes."""

import copy
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import manifests
from deploy_commands import check_accepted
from lrtrain.runtime.errors import TemporaryError, UserError
from manifests import FOLDER, after_exit, command_line, kustomizations, of_kind, pods_in, rendered, training_pod
from ranks import free_port

PREPARING = ["overlays/prepare", "overlays/prepare-merge"]
TRAINING = [folder for folder in kustomizations() if folder not in ("mlflow", *PREPARING)]
SEVERAL_NODES = {"overlays/several-nodes": "JobSet", "overlays/trainjob": "TrainJob"}

REFUSALS = (AssertionError, kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError)


def test_every_file_is_reached_by_what_can_be_applied() -> None:
    reached: set[Path] = set()

    def reach(folder: Path) -> None:
        file = folder / "kustomization.yaml"
        if file in reached:
            return
        reached.add(file)
        content = yaml.safe_load(file.read_text())
        patches = [patch["path"] for patch in content.get("patches", []) if "path" in patch]
        for name in [*content.get("resources", []), *content.get("components", []), *patches]:
            path = (folder / name).resolve()
            reach(path) if path.is_dir() else reached.add(path)

    for folder in kustomizations():
        reach(FOLDER / folder)
    assert reached == {*FOLDER.rglob("*.yaml")}


@pytest.mark.parametrize("folder", kustomizations())
def test_what_is_rendered_is_valid(folder: str) -> None:
    for manifest in rendered(folder):
        manifests.check(manifest)
        assert manifest["kind"] != "Secret", "secrets are made by the user"


@pytest.mark.parametrize(
    ("folder", "kind", "where"),
    [
        ("overlays/one-gpu", "Job", ["spec"]),
        ("overlays/one-gpu", "Job", ["spec", "template", "spec", "containers", 0, "livenessProbe"]),
        ("overlays/several-nodes", "JobSet", ["spec", "failurePolicy"]),
        ("overlays/several-nodes", "JobSet", ["spec", "replicatedJobs", 0, "template", "spec", "template", "spec"]),
        ("overlays/trainjob", "TrainJob", ["spec", "trainer"]),
        ("overlays/trainjob", "TrainingRuntime", ["spec", "mlPolicy"]),
        ("mlflow", "Service", ["spec", "ports", 0]),
    ],
)
def test_a_misspelt_field_or_kind_would_be_found(folder: str, kind: str, where: list[Any]) -> None:
    for change in ("field", "kind"):
        manifest = copy.deepcopy(of_kind(folder, kind))
        part: Any = manifest
        for key in where:
            part = part[key]
        if change == "field":
            part["misspelt"] = 1
        else:
            manifest["kind"] += "s"
        with pytest.raises(REFUSALS):
            manifests.check(manifest)


@pytest.mark.parametrize("folder", kustomizations())
def test_pods_need_no_rights_and_write_to_volumes_alone(folder: str) -> None:
    for pod in [pod for manifest in rendered(folder) for pod in pods_in(manifest)]:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        assert not pod["enableServiceLinks"], "a service named mlflow would set MLFLOW_PORT, which MLflow reads"
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            limits = container["securityContext"]
            assert limits["readOnlyRootFilesystem"]
            assert not limits["allowPrivilegeEscalation"]
            assert limits["capabilities"] == {"drop": ["ALL"]}
            assert container["image"].startswith("registry.example.org/lrtrain:")
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert {*mounts} >= {"/workspace", "/tmp", "/home/lrtrain"}, "what the image writes to"
            assert {*mounts.values()} == volumes


@pytest.mark.parametrize("folder", kustomizations())
def test_names_that_refer_to_one_another_agree(folder: str) -> None:
    found = rendered(folder)
    claims = {manifest["metadata"]["name"] for manifest in found if manifest["kind"] == "PersistentVolumeClaim"}
    used = [volume["persistentVolumeClaim"]["claimName"] for m in found for p in pods_in(m) for volume in p["volumes"]
            if "persistentVolumeClaim" in volume]  # fmt: skip
    assert {*used} == claims
    for manifest in found:
        if manifest["kind"] == "TrainJob":
            runtime = manifest["spec"]["runtimeRef"]
            assert of_kind(folder, runtime["kind"])["metadata"]["name"] == runtime["name"]
            assert [container["name"] for container in training_pod(folder)["containers"]] == ["node"]


def test_training_reports_to_the_service_of_mlflow() -> None:
    service, deployment = of_kind("mlflow", "Service"), of_kind("mlflow", "Deployment")
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    for folder in TRAINING:
        environment = training_pod(folder)["containers"][0]["env"]
        assert {"name": "MLFLOW_TRACKING_URI", "value": address} in environment
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("folder", TRAINING)
def test_lrtrain_takes_the_command_line_and_starts_a_process_a_gpu(folder: str) -> None:
    nodes, said = 1, command_line(folder)
    if folder in SEVERAL_NODES:
        spec = of_kind(folder, SEVERAL_NODES[folder])["spec"]
        job = spec["replicatedJobs"][0]["template"]["spec"] if "replicatedJobs" in spec else {}
        nodes = job.get("parallelism") or spec["trainer"]["numNodes"]
        assert job.get("completions", nodes) == nodes
        assert {"--trainer.num_nodes=2", "--trainer.num_nodes=$(PET_NNODES)"} & {*said}
    arguments = command_line(folder, RUN_NAME="run", PET_NNODES=str(nodes))
    assert "$(" not in " ".join(arguments)
    check_accepted(arguments)
    assert "--ckpt_path=last" in arguments
    gpus = int(training_pod(folder)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert f"--trainer.devices={gpus}" in arguments or gpus == 1
    assert f"--trainer.num_nodes={nodes}" in arguments or nodes == 1
    if "--config=parallel/hsdp" in arguments:
        assert f"--trainer.strategy.shards={gpus}" in arguments, "weights are gathered within a node"
        assert nodes == 2, "replicas of the recipe"


def test_all_parts_of_a_data_set_are_made_and_merged_where_training_reads_them() -> None:
    jobs = [of_kind(folder, "Job")["spec"] for folder in PREPARING]
    parts, merging = [command_line(folder, JOB_COMPLETION_INDEX="0") for folder in PREPARING]
    for arguments in (parts, merging):
        check_accepted(arguments)
    assert jobs[0]["completions"] == jobs[0]["parallelism"]
    assert f"--of={jobs[0]['completions']}" in parts
    recipe = yaml.safe_load((FOLDER.parents[1] / "configs" / "spectron_M.yaml").read_text())["data"]
    assert f"--out={recipe['path']}" in parts
    assert f"--out={recipe['path']}" in merging
    assert f"--source={recipe['prepare']['source'][0]}" in parts
    assert f"--train-vocab-size={recipe['prepare']['train_vocab_size']}" in parts
    assert f"--val-fraction={recipe['prepare']['val_fraction']}" in parts
    claims = [of_kind(folder, "PersistentVolumeClaim") for folder in (*PREPARING, "overlays/one-node")]
    assert claims[0] == claims[1] == claims[2]


@pytest.mark.parametrize("folder", [*TRAINING, *PREPARING])
def test_a_mistake_is_not_restarted_and_all_else_is(folder: str) -> None:
    assert after_exit(folder, UserError.exit_code) == "fail"
    assert after_exit(folder, UserError.exit_code, disrupted=True) == "fail"
    for code in (1, TemporaryError.exit_code, 130, 134, 137, 138, 143):
        assert after_exit(folder, code) == "restart"
    preempted = after_exit(folder, 143, disrupted=True)
    assert preempted == ("restart" if folder in SEVERAL_NODES else "restart without counting")


@pytest.mark.slow
def test_mlflow_answers_under_the_name_of_its_service_and_to_its_probes(tmp_path: Path) -> None:
    (container,) = of_kind("mlflow", "Deployment")["spec"]["template"]["spec"]["containers"]
    port = str(free_port())
    line = [*container["command"], *container["args"]]
    variables = {
        "$(DATABASE)": f"sqlite:///{tmp_path}/mlflow.db",
        "/workspace/": f"{tmp_path}/",
        "--port=5000": f"--port={port}",
    }
    for name, value in variables.items():
        line = [word.replace(name, value) for word in line]
    line[0] = str(Path(sys.executable).with_name(line[0]))
    plain = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with subprocess.Popen(
        line, cwd=tmp_path, env={**os.environ, **plain, "PATH": path}, start_new_session=True
    ) as server:
        try:
            probe = container["startupProbe"]["httpGet"]
            (header,) = probe["httpHeaders"]
            end = time.monotonic() + 200
            while answer(port, probe["path"], header["value"]) != 200:
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(1)
            search = "/api/2.0/mlflow/experiments/search?max_results=1"
            assert answer(port, search, "mlflow:5000") == 200
            assert answer(port, search, "elsewhere:5000") == 403
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def answer(port: str, path: str, host: str) -> int:
    """The status of a request to this machine under a name; 0 where nobody answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.parametrize("folder", TRAINING)
def test_probes_look_at_the_heartbeat_that_the_run_writes(folder: str, tmp_path: Path) -> None:
    pod = training_pod(folder)
    (container,) = pod["containers"]
    (file,) = [a.partition("=")[2] for a in container["args"] if a.startswith("--heartbeat.file=")]
    mount = next(m["name"] for m in container["volumeMounts"] if m["mountPath"] == os.path.dirname(file))
    assert {"name": mount, "emptyDir": {}} in pod["volumes"], "a heartbeat belongs to one pod"

    def healthy(probe: str) -> bool:
        command = [word.replace(file, str(tmp_path / "heartbeat")) for word in container[probe]["exec"]["command"]]
        assert command != container[probe]["exec"]["command"]
        return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=30).returncode == 0

    assert not healthy("startupProbe")
    assert not healthy("livenessProbe")
    (tmp_path / "heartbeat").touch()
    assert healthy("startupProbe")
    for minutes, alive in ((0, True), (18, True), (22, False)):
        os.utime(tmp_path / "heartbeat", (time.time() - 60 * minutes,) * 2)
        assert healthy("livenessProbe") is alive


@pytest.mark.parametrize("folder", TRAINING)
def test_a_signal_leaves_time_for_a_checkpoint_and_a_dead_run_does_not(folder: str) -> None:
    pod = training_pod(folder)
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert pod["containers"][0]["livenessProbe"]["terminationGracePeriodSeconds"] <= 60
    assert pod["restartPolicy"] == "Never", "exit codes are read of pods, not of containers that start again"


@pytest.mark.parametrize(("folder", "kind"), [("overlays/one-node", "Job"), *SEVERAL_NODES.items()])
def test_kueue_finds_its_queue_on_the_kind_that_it_admits(folder: str, kind: str) -> None:
    named = [m["kind"] for m in rendered(folder) if "kueue.x-k8s.io/queue-name" in m["metadata"].get("labels", {})]
    assert named == [kind]
