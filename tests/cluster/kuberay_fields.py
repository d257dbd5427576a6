"""The fields of ray.io/v1 and of pods that our files may use, by hand, from KubeRay 1.7's reference; for the tests.

`None`: any value. A string: that kind of value, defined here by its name. A list: items of its one entry. A trailing
'!' on a key: it must be there.
"""

from __future__ import annotations

from typing import Any

META = {"name!": None, "labels": None, "annotations": None}
TEMPLATE = {"metadata": META, "spec!": "pod"}
KINDS: dict[str, Any] = {
    "RayCluster": {"apiVersion!": None, "kind!": None, "metadata!": META, "spec!": "cluster"},
    "RayJob": {"apiVersion!": None, "kind!": None, "metadata!": META, "spec!": "job"},
    "NetworkPolicy": {"apiVersion!": None, "kind!": None, "metadata!": META, "spec!": "policy"},
    "PersistentVolumeClaim": {"apiVersion!": None, "kind!": None, "metadata!": META, "spec!": "claim"},
    "job": {
        "entrypoint!": None,
        "runtimeEnvYAML": None,
        "rayClusterSpec": "cluster",
        "clusterSelector": None,
        "submissionMode": None,
        "shutdownAfterJobFinishes": None,
        "ttlSecondsAfterFinished": None,
        "backoffLimit": None,
        "activeDeadlineSeconds": None,
        "preRunningDeadlineSeconds": None,
        "deletionStrategy": None,
        "submitterPodTemplate": TEMPLATE,
        "submitterConfig": {"backoffLimit": None},
        "entrypointNumCpus": None,
        "entrypointNumGpus": None,
        "entrypointResources": None,
        "suspend": None,
        "metadata": None,
        "jobId": None,
    },
    "cluster": {
        "rayVersion!": None,
        "authOptions!": {"mode!": None, "secretName": None, "enableK8sTokenAuth": None},
        "tlsOptions": None,
        "networkPolicy": None,
        "gcsFaultToleranceOptions": None,
        "enableInTreeAutoscaling": None,
        "autoscalerOptions": {
            "idleTimeoutSeconds": None, "upscalingMode": None, "resources": None, "image": None,
            "imagePullPolicy": None, "env": None, "envFrom": None, "securityContext": None, "volumeMounts": None,
            "version": None,
        },
        "headServiceAnnotations": None,
        "suspend": None,
        "headGroupSpec!": {
            "rayStartParams": None, "template!": TEMPLATE, "serviceType": None, "headService": None,
            "enableIngress": None, "resources": None, "labels": None,
        },
        "workerGroupSpecs": [
            {
                "groupName!": None, "replicas": None, "minReplicas!": None, "maxReplicas!": None, "numOfHosts": None,
                "idleTimeoutSeconds": None, "rayStartParams": None, "template!": TEMPLATE, "scaleStrategy": None,
                "suspend": None, "resources": None, "labels": None,
            }
        ],
    },
    "pod": {
        "containers!": ["container"],
        "volumes": [{"name!": None, "emptyDir": None, "persistentVolumeClaim": {"claimName!": None}}],
        "securityContext!": {
            "runAsNonRoot!": None, "runAsUser": None, "runAsGroup": None, "fsGroup": None, "seccompProfile": None,
        },
        "automountServiceAccountToken": None,
        "serviceAccountName": None,
        "nodeSelector": None,
        "tolerations": None,
        "restartPolicy": None,
    },
    "container": {
        "name!": None,
        "image!": None,
        "env": [{"name!": None, "value": None, "valueFrom": None}],
        "resources!": {"requests": None, "limits!": None},
        "volumeMounts": [{"name!": None, "mountPath!": None, "readOnly": None}],
        "securityContext!": {"allowPrivilegeEscalation!": None, "capabilities!": None, "readOnlyRootFilesystem": None},
        "ports": None,
        "command": None,
        "args": None,
    },
    "policy": {"podSelector!": None, "policyTypes!": None, "ingress": [{"from!": None, "ports": None}], "egress": None},
    "claim": {"accessModes!": None, "storageClassName": None, "resources!": None},
}  # fmt: skip


def problems(value: Any, allowed: Any, at: str = "") -> list[str]:
    """'.spec.rayClusterSpec.headGroupSpec: no such field templat', and so on; empty if all is well."""
    if isinstance(allowed, str):
        allowed = KINDS[allowed]
    if allowed is None:
        return []
    if isinstance(allowed, list):
        return [found for i, item in enumerate(value) for found in problems(item, allowed[0], f"{at}[{i}]")]
    if not isinstance(value, dict):
        return [f"{at}: expected fields, found {value!r}"]
    fields = {key.rstrip("!"): inner for key, inner in allowed.items()}
    missing = [f"{at}: {key[:-1]} is missing" for key in allowed if key.endswith("!") and key[:-1] not in value]
    unknown = [f"{at}: no such field {key}" for key in value if key not in fields]
    below = [text for key in value if key in fields for text in problems(value[key], fields[key], f"{at}.{key}")]
    return missing + unknown + below
