"""Manifests of `deploy/kubernetes`, rendered by kubectl and compared with the schemas of what they are."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from kubeflow_trainer_api import models

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.31"
"""The oldest Kubernetes that all fields must exist in."""

CUSTOM = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): models.JobsetV1alpha2JobSet,
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): models.TrainerV1alpha1TrainJob,
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): models.TrainerV1alpha1TrainingRuntime,
}

Manifest = dict[str, Any]


def kustomizations() -> list[str]:
    """The folders that `kubectl apply -k` takes, relative to `deploy/kubernetes`."""
    files = sorted(FOLDER.rglob("kustomization.yaml"))
    found = [file.parent for file in files if yaml.safe_load(file.read_text())["kind"] == "Kustomization"]
    return [str(folder.relative_to(FOLDER)) for folder in found if folder.name != "base"]


@cache
def _output(folder: str) -> str:
    kubectl = Path(sys.executable).with_name("kubectl")
    ran = subprocess.run([kubectl, "kustomize", FOLDER / folder], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr, ran.stderr  # deprecated fields
    return ran.stdout


def rendered(folder: str) -> list[Manifest]:
    return list(yaml.safe_load_all(_output(folder)))


def of_kind(folder: str, kind: str) -> Manifest:
    (found,) = [manifest for manifest in rendered(folder) if manifest["kind"] == kind]
    return found


def check(manifest: Manifest) -> None:
    """Fails where a manifest, or a pod or Job inside it, has a field, type or kind that the API does not have."""
    custom = CUSTOM.get((manifest["apiVersion"], manifest["kind"]))
    if custom is None:
        kubernetes_validate.validate(manifest, VERSION, strict=True)  # raises for kinds that it does not know
    else:
        known = custom.from_dict(copy.deepcopy(manifest))
        assert known is not None
        assert known.to_dict() == manifest, f"{manifest['kind']} has fields that its API does not know or requires"
    for spec in jobs_in(manifest):
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": spec}
        kubernetes_validate.validate(job, VERSION, strict=True)


def jobs_in(node: Any) -> Iterator[Manifest]:
    """The specs of all Jobs anywhere in a manifest."""
    yield from (spec for spec in _mappings(node) if "podFailurePolicy" in spec)


def pods_in(node: Any) -> Iterator[Manifest]:
    """The specs of all pods anywhere in a manifest."""
    yield from (spec for spec in _mappings(node) if "containers" in spec)


def _mappings(node: Any) -> Iterator[Manifest]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _mappings(child)


def training_pod(folder: str) -> Manifest:
    """The spec of the pod that trains; of a TrainJob with what it lays over its runtime."""
    (pod,) = [pod for manifest in rendered(folder) for pod in pods_in(manifest)]
    for manifest in rendered(folder):
        if manifest["kind"] == "TrainJob":
            trainer = manifest["spec"]["trainer"]
            pod["containers"][0] |= {"args": trainer["args"], "resources": trainer["resourcesPerNode"]}
    return pod


def command_line(folder: str, **variables: str) -> list[str]:
    """The arguments of the training container, with `$(NAME)` replaced as the kubelet does."""
    arguments = training_pod(folder)["containers"][0]["args"]
    for name, value in variables.items():
        arguments = [argument.replace(f"$({name})", value) for argument in arguments]
    return list(arguments)


def after_exit(folder: str, code: int, disrupted: bool = False) -> str:
    """What the rules of a job make of a pod that ended so: fail, restart, or restart without counting."""
    (job,) = [job for manifest in rendered(folder) for job in jobs_in(manifest)]
    action = next((r["action"] for r in job["podFailurePolicy"]["rules"] if _matches(r, code, disrupted)), "Count")
    sets = [s for manifest in rendered(folder) for s in _mappings(manifest) if "failurePolicy" in s]
    if not sets:
        return {"FailJob": "fail", "Count": "restart", "Ignore": "restart without counting"}[str(action)]
    assert job["backoffLimit"] == 0, "a pod alone is started again, and waits for the others"
    reason = "PodFailurePolicy" if action == "FailJob" else "BackoffLimitExceeded"
    policy = sets[0]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    actions = [rule["action"] for rule in policy["rules"] if reason in rule["onJobFailureReasons"]]
    return {"FailJobSet": "fail", "RestartJobSet": "restart"}[[*actions, "RestartJobSet"][0]]


def _matches(rule: Manifest, code: int, disrupted: bool) -> bool:
    if "onPodConditions" in rule:
        return disrupted and {"type": "DisruptionTarget", "status": "True"} in rule["onPodConditions"]
    exits = rule["onExitCodes"]
    assert exits["operator"] == "In"
    return code in exits["values"]
