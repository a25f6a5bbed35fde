"""Facts about KubeRay's API, to hold `configs/rayjob.yaml` to: which fields there are, and what each takes.

The fields of ray.io/v1 are all of those of KubeRay 1.7.0, by its generated API reference (docs/reference/api.md at the
release tag v1.7.0; KubeRay's CI holds it to the Go types that the CRD is made from). Marked `since` is what was not in
the reference shortly before 1.5.1, but for authOptions.mode, which is what 1.5.1 is known for. Of Kubernetes' own types
(API 1.28) only the fields are here that the file uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

KUBERAY = "1.7.0"
OLDEST_KUBERAY = "1.5.1"
LONGEST_NAME = 47  # of a RayJob; it must be a DNS label
GENERATED_SUFFIX = 5  # what the API server puts behind generateName
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kKMGTP]i?)?")


@dataclass(frozen=True)
class Field:
    """One field: its type, the values that it may have, whether it must be there, and whether 1.5.1 may lack it."""

    type: str
    values: tuple[str, ...] = ()
    required: bool = False
    since: str = ""


def _newer(type_: str, *values: str) -> Field:
    return Field(type_, values, since=f"after {OLDEST_KUBERAY}")


STRING, INTEGER, BOOLEAN, STRINGS = Field("string"), Field("integer"), Field("boolean"), Field("map string")
POD = Field("PodTemplateSpec", required=True)

# A type's name with "list" before it is a list of it, with "map" before it values of it under any name.
TYPES: dict[str, dict[str, Field]] = {
    "RayJob": {
        "apiVersion": Field("string", ("ray.io/v1",), required=True),
        "kind": Field("string", ("RayJob",), required=True),
        "metadata": Field("ObjectMeta", required=True),
        "spec": Field("RayJobSpec", required=True),
    },
    "RayJobSpec": {
        "activeDeadlineSeconds": INTEGER,
        "backoffLimit": INTEGER,
        "rayClusterSpec": Field("RayClusterSpec"),
        "submitterPodTemplate": Field("PodTemplateSpec"),
        "metadata": STRINGS,
        "clusterSelector": STRINGS,
        "submitterConfig": Field("SubmitterConfig"),
        "managedBy": Field("string", ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")),
        "deletionStrategy": Field("DeletionStrategy"),
        "entrypoint": STRING,
        "runtimeEnvYAML": STRING,
        "jobId": STRING,
        "submissionMode": Field("string", ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")),
        "entrypointResources": STRING,
        "entrypointNumCpus": Field("number"),
        "entrypointNumGpus": Field("number"),
        "ttlSecondsAfterFinished": INTEGER,
        "preRunningDeadlineSeconds": _newer("integer"),
        "shutdownAfterJobFinishes": BOOLEAN,
        "suspend": BOOLEAN,
    },
    "SubmitterConfig": {"backoffLimit": INTEGER},
    "RayClusterSpec": {
        "upgradeStrategy": _newer("RayClusterUpgradeStrategy"),
        "authOptions": Field("AuthOptions"),
        "suspend": BOOLEAN,
        "managedBy": Field("string", ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")),
        "autoscalerOptions": Field("AutoscalerOptions"),
        "headServiceAnnotations": STRINGS,
        "enableInTreeAutoscaling": BOOLEAN,
        "gcsFaultToleranceOptions": Field("GcsFaultToleranceOptions"),
        "historyServerOptions": _newer("HistoryServerOptions"),
        "networkPolicy": _newer("NetworkPolicyConfig"),
        "tlsOptions": _newer("TLSOptions"),
        "headGroupSpec": Field("HeadGroupSpec", required=True),
        "rayVersion": STRING,
        "workerGroupSpecs": Field("list WorkerGroupSpec"),
    },
    "AuthOptions": {
        "mode": Field("string", ("disabled", "token")),
        "secretName": _newer("string"),
        "enableK8sTokenAuth": _newer("boolean"),
    },
    "AutoscalerOptions": {
        "resources": Field("ResourceRequirements"),
        "image": STRING,
        "imagePullPolicy": Field("string", ("Always", "Never", "IfNotPresent")),
        "securityContext": Field("SecurityContext"),
        "idleTimeoutSeconds": INTEGER,
        "upscalingMode": Field("string", ("Default", "Aggressive", "Conservative")),
        "version": Field("string", ("v1", "v2")),
        "env": Field("list EnvVar"),
        "envFrom": Field("list EnvFromSource"),
        "volumeMounts": Field("list VolumeMount"),
        "command": _newer("list string"),
        "args": _newer("list string"),
    },
    "HeadGroupSpec": {
        "template": POD,
        "headService": Field("Service"),
        "enableIngress": BOOLEAN,
        "ingressOptions": _newer("IngressOptions"),
        "resources": _newer("map string"),
        "labels": _newer("map string"),
        "rayStartParams": STRINGS,
        "serviceType": STRING,
    },
    "WorkerGroupSpec": {
        "suspend": BOOLEAN,
        "groupName": Field("string", required=True),
        "replicas": INTEGER,
        "minReplicas": INTEGER,
        "maxReplicas": INTEGER,
        "idleTimeoutSeconds": INTEGER,
        "priority": _newer("integer"),
        "resources": _newer("map string"),
        "labels": _newer("map string"),
        "rayStartParams": STRINGS,
        "template": POD,
        "scaleStrategy": Field("ScaleStrategy"),
        "numOfHosts": INTEGER,
    },
    "ObjectMeta": {
        "name": STRING,
        "generateName": STRING,
        "namespace": STRING,
        "labels": STRINGS,
        "annotations": STRINGS,
    },
    "PodTemplateSpec": {"metadata": Field("ObjectMeta"), "spec": Field("PodSpec", required=True)},
    "PodSpec": {
        "serviceAccountName": STRING,
        "affinity": Field("Affinity"),
        "nodeSelector": STRINGS,
        "tolerations": Field("list Toleration"),
        "containers": Field("list Container", required=True),
        "volumes": Field("list Volume"),
    },
    "Affinity": {"nodeAffinity": Field("NodeAffinity")},
    "NodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": Field("NodeSelector")},
    "NodeSelector": {"nodeSelectorTerms": Field("list NodeSelectorTerm", required=True)},
    "NodeSelectorTerm": {"matchExpressions": Field("list NodeSelectorRequirement")},
    "NodeSelectorRequirement": {
        "key": Field("string", required=True),
        "operator": Field("string", ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"), required=True),
        "values": Field("list string"),
    },
    "Toleration": {
        "key": STRING,
        "operator": Field("string", ("Exists", "Equal")),
        "value": STRING,
        "effect": Field("string", ("NoSchedule", "PreferNoSchedule", "NoExecute")),
    },
    "Container": {
        "name": Field("string", required=True),
        "image": STRING,
        "env": Field("list EnvVar"),
        "resources": Field("ResourceRequirements"),
        "volumeMounts": Field("list VolumeMount"),
    },
    "EnvVar": {"name": Field("string", required=True), "value": STRING},
    "ResourceRequirements": {"requests": Field("map quantity"), "limits": Field("map quantity")},
    "VolumeMount": {"name": Field("string", required=True), "mountPath": Field("string", required=True)},
    "Volume": {"name": Field("string", required=True), "emptyDir": Field("EmptyDirVolumeSource")},
    "EmptyDirVolumeSource": {"medium": Field("string", ("", "Memory")), "sizeLimit": Field("quantity")},
}


def problems_of(value: object, type_: str = "RayJob", place: str = "") -> Iterator[str]:
    """Yields what is wrong with a value of a type, field by field: the place, and what should stand there."""
    kind, _, inner = type_.partition(" ")
    if kind == "list":
        yield from _problems_of_list(value, inner, place)
    elif kind == "map":
        yield from _problems_of_map(value, inner, place)
    elif type_ in TYPES:
        yield from _problems_of_fields(value, type_, place)
    elif not _is(value, type_):
        yield f"{place}: {value!r} is no {type_}"


def _is(value: object, type_: str) -> bool:
    match type_:
        case "string":
            return isinstance(value, str)
        case "integer":
            return type(value) is int
        case "number":
            return type(value) in (int, float)
        case "boolean":
            return isinstance(value, bool)
        case "quantity":
            return type(value) is int or (isinstance(value, str) and QUANTITY.fullmatch(value) is not None)
    return False  # a type that the file has not used so far: it belongs into TYPES then


def _problems_of_list(value: object, inner: str, place: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{place}: {value!r} is no list"
        return
    for number, one in enumerate(value):
        yield from problems_of(one, inner, f"{place}[{number}]")


def _problems_of_map(value: object, inner: str, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place}: {value!r} is no map"
        return
    for name, one in value.items():
        yield from problems_of(one, inner, f"{place}.{name}")


def _problems_of_fields(value: object, type_: str, place: str) -> Iterator[str]:
    known = TYPES[type_]
    if not isinstance(value, dict):
        yield f"{place}: {value!r} is no {type_}"
        return
    for name in known:
        if known[name].required and name not in value:
            yield f"{place}: {type_} needs {name}"
    for name, one in value.items():
        where = f"{place}.{name}".lstrip(".")
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            yield f"{where}: {type_} has no such field" + (f"; {near[0]}?" if near else "")
            continue
        if known[name].since:
            yield f"{where}: not in KubeRay {OLDEST_KUBERAY}"
        if known[name].values and one not in known[name].values:
            yield f"{where}: {one!r} is none of {', '.join(known[name].values)}"
        yield from problems_of(one, known[name].type, where)
