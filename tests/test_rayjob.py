"""The RayJob that is shipped. Catches: a field that KubeRay does not know, and settings that do not fit together."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay import GENERATED_SUFFIX, KUBERAY, LONGEST_NAME, OLDEST_KUBERAY, TYPES, problems_of

from pipeline.config import load_config
from pipeline.run.sizing import PREPARERS

CONFIGS = Path(__file__).parent.parent / "configs"
TEXT = (CONFIGS / "rayjob.yaml").read_text(encoding="utf-8")
SPOT_LABELS = {
    "cloud.google.com/gke-spot",
    "karpenter.sh/capacity-type",
    "eks.amazonaws.com/capacityType",
    "kubernetes.azure.com/scalesetpriority",
}


@pytest.fixture
def job() -> Any:
    return yaml.safe_load(TEXT)


def test_every_field_is_one_of_kuberays(job: Any) -> None:
    assert list(problems_of(job)) == []


def test_it_says_which_versions_it_is_right_for() -> None:
    assert f"KubeRay {OLDEST_KUBERAY} to {KUBERAY}" in TEXT


MISTAKES: list[tuple[Callable[[Any], object], str]] = [
    (lambda job: job["spec"].update(backofLimit=0), r"spec\.backofLimit: RayJobSpec has no such field; backoffLimit\?"),
    (lambda job: job["spec"].update(enableInTreeAutoscaling=True), "spec.enableInTreeAutoscaling: RayJobSpec has no"),
    (lambda job: job["spec"].update(backoffLimit="0"), r"spec\.backoffLimit: '0' is no integer"),
    (lambda job: job["spec"].update(submissionMode="JobMode"), "none of K8sJobMode"),
    (lambda job: cluster(job)["authOptions"].update(mode="Token"), "none of disabled, token"),
    (lambda job: cluster(job)["authOptions"].update(secretName="mine"), r"secretName: not in KubeRay 1\.5\.1"),
    (lambda job: cluster(job).pop("headGroupSpec"), "RayClusterSpec needs headGroupSpec"),
    (lambda job: cluster(job)["autoscalerOptions"].update(idleTimeout=60), r"idleTimeoutSeconds\?"),
    (lambda job: head(job)["rayStartParams"].update({"num-cpus": 0}), r"rayStartParams\.num-cpus: 0 is no string"),
    (lambda job: workers(job)["template"]["spec"].update(nodeselector={}), r"nodeSelector\?"),
    (lambda job: workers(job).update(maxReplicas=None), r"workerGroupSpecs\[0\]\.maxReplicas: None is no integer"),
    (lambda job: container(workers(job))["resources"]["limits"].update(memory="64 GB"), "'64 GB' is no quantity"),
]


@pytest.mark.parametrize(("make", "says"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_planted_mistake_is_found(make: Callable[[Any], object], says: str, job: Any) -> None:
    make(job)
    found = list(problems_of(job))
    assert len(found) == 1
    assert re.search(says, found[0])


def test_every_field_that_is_used_is_checked_down_to_its_values(job: Any) -> None:
    """A field whose type is not in the table is a problem: nothing passes for want of facts."""
    unknown = copy.deepcopy(job)
    cluster(unknown)["gcsFaultToleranceOptions"] = {"anything": 1}
    assert len(list(problems_of(unknown))) == 1
    assert "GcsFaultToleranceOptions" not in TYPES


def cluster(job: Any) -> Any:
    return job["spec"]["rayClusterSpec"]


def head(job: Any) -> Any:
    return cluster(job)["headGroupSpec"]


def workers(job: Any) -> Any:
    (group,) = cluster(job)["workerGroupSpecs"]
    return group


def container(group: Any) -> Any:
    (container,) = group["template"]["spec"]["containers"]
    return container


def settings(job: Any) -> list[str]:
    command, run, path, *words = job["spec"]["entrypoint"].split()
    assert (command, run) == ("visionbake", "run")
    assert path == "/visionbake/configs/qwen2_5_vl_7b.yaml"
    assert words[::2] == ["--set"] * len(words[::2])
    return words[1::2]


def test_it_runs_a_configuration_that_is_there(job: Any) -> None:
    given = settings(job)
    config = load_config(str(CONFIGS / "qwen2_5_vl_7b.yaml"), given)
    assert config.source.uri.startswith("s3://")
    assert config.output.uri.startswith("s3://")
    assert "runtimeEnvYAML" not in job["spec"]  # the image has all of it


def test_its_image_is_built_with_the_ray_that_it_names_and_has_its_configuration(job: Any) -> None:
    """And no root at run time."""
    lines = (CONFIGS.parent / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert f"ARG RAY={cluster(job)['rayVersion']}-py311-gpu" in lines
    assert "COPY configs /visionbake/configs" in lines
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 1000:100"
    image = container(head(job))["image"]
    assert image == container(workers(job))["image"]
    assert f"`docker build -t {image} .`" in lines[0]
    # What the wheel is built of, as in tests/test_wheel.py.
    left_out = (CONFIGS.parent / ".dockerignore").read_text(encoding="utf-8").splitlines()
    packed = {"pyproject.toml", "README.md", "LICENSE", "pipeline", "configs"}
    assert left_out[0] == "*" and packed == {line[1:] for line in left_out if line.startswith("!")}


def test_what_another_start_cannot_help_starts_no_other_cluster(job: Any) -> None:
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["shutdownAfterJobFinishes"] is True


def test_the_cluster_grows_to_as_many_gpus_as_the_run_asks_for(job: Any) -> None:
    group = workers(job)
    assert cluster(job)["enableInTreeAutoscaling"] is True
    assert group["minReplicas"] == group["replicas"] == 0
    assert f"cluster.encoders={group['maxReplicas']}" in settings(job)
    limits = container(group)["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert int(limits["cpu"]) >= PREPARERS["cuda"] + 1


def test_everyone_has_the_token_from_kuberay(job: Any) -> None:
    """Whoever reaches Ray's ports without one runs code there. One set by hand is not the submitter's."""
    assert cluster(job)["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH" not in str(job)


def test_workers_are_on_spot_nodes_and_the_head_is_on_none(job: Any) -> None:
    (label,) = workers(job)["template"]["spec"]["nodeSelector"]
    assert label in SPOT_LABELS
    assert all(label in TEXT.partition("workerGroupSpecs")[2] for label in SPOT_LABELS)
    affinity = head(job)["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {one["key"] for one in term["matchExpressions"]} == SPOT_LABELS
    assert {one["operator"] for one in term["matchExpressions"]} == {"NotIn"}
    assert "tolerations" not in head(job)["template"]["spec"]


def test_the_object_store_fits_the_memory_and_the_name_fits_kuberay(job: Any) -> None:
    spec = workers(job)["template"]["spec"]
    (shm,) = spec["volumes"]
    (mount,) = container(workers(job))["volumeMounts"]
    assert (mount["name"], mount["mountPath"]) == (shm["name"], "/dev/shm")
    memory = container(workers(job))["resources"]["limits"]["memory"]
    share = int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi")) / int(memory.removesuffix("Gi"))
    assert 0.3 <= share < 0.5  # Ray takes 0.3 of a node's memory for it, and warns where /dev/shm is smaller
    assert len(job["metadata"]["generateName"]) + GENERATED_SUFFIX <= LONGEST_NAME
