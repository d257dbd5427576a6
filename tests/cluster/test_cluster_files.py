"""Every file of cluster/, checked without a network: its form, and that it is safe as it stands."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.kuberay_fields import problems

from fibec_ray.cli.prometheus import COUNTERS, GAUGES
from fibec_ray.config.load import load_experiment

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ("onprem", "aws", "gcp")
KUBERNETES = sorted((CLUSTER / "kuberay").glob("*.yaml"))
TEXTS = [path for path in CLUSTER.rglob("*") if path.is_file()]
BIN = Path(sys.executable).parent


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def version_of(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def tool(name: str) -> str:
    """Of this environment, or of the machine; the test is skipped where neither has it."""
    found = shutil.which(str(BIN / name)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


# --- ray up


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_up_takes_it(name: str) -> None:
    """By Ray's own schema, after what `ray up` fills in. (The private module is of the Ray of constraints.txt.)"""
    from ray.autoscaler._private.util import prepare_config, validate_config

    settings = read(CLUSTER / name / "ray.yaml")
    prepared = prepare_config(copy.deepcopy(settings))
    validate_config(prepared)
    assert prepared["cluster_name"] == "fibec-ray"
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate_config(prepare_config({**settings, "idle_timeout_minute": 5}))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_what_ray_up_starts_is_safe(name: str) -> None:
    settings = read(CLUSTER / name / "ray.yaml")
    (head,) = [line for line in settings["head_start_ray_commands"] if "ray start" in line]
    (worker,) = [line for line in settings["worker_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head
    for line in (head, worker):
        assert "RAY_AUTH_MODE=token" in line and "--disable-usage-stats" in line and "ulimit -n 65536" in line
        assert "--ray-client-server-port" not in line
    assert settings["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token" in settings["setup_commands"]
    assert settings["auth"]["ssh_user"] != "root"


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_clouds_have_device_nodes_from_zero_and_a_head_without_devices(name: str) -> None:
    settings = read(CLUSTER / name / "ray.yaml")
    types = settings["available_node_types"]
    assert types[settings["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["cpu"]["min_workers"] == types["gpu"]["min_workers"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1 and types["cpu"]["max_workers"] > 0
    assert "--num-cpus=0" in str(read(CLUSTER / "onprem" / "ray.yaml")["head_start_ray_commands"])


def test_ssh_alone_comes_in_from_outside() -> None:
    (rule,) = read(CLUSTER / "aws" / "ray.yaml")["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert all(source["CidrIp"] != "0.0.0.0/0" for source in rule["IpRanges"])


# --- Kubernetes


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_kubernetes_knows_every_field(path: Path) -> None:
    found = read(path)
    assert problems(found, found["kind"]) == []
    if found["kind"].startswith("Ray"):
        assert found["apiVersion"] == "ray.io/v1"


def test_the_list_of_fields_finds_what_is_wrong() -> None:
    found = read(CLUSTER / "kuberay" / "raycluster.yaml")
    del found["spec"]["workerGroupSpecs"][1]["maxReplicas"]
    found["spec"]["headGroupSpec"]["templat"] = {}
    assert problems(found, "RayCluster") == [
        ".spec.headGroupSpec: no such field templat",
        ".spec.workerGroupSpecs[1]: maxReplicas is missing",
    ]


def clusters() -> list[Any]:
    kept, brief = (read(CLUSTER / "kuberay" / f"{name}.yaml")["spec"] for name in ("raycluster", "rayjob"))
    return [kept, brief["rayClusterSpec"]]


@pytest.mark.parametrize("spec", clusters(), ids=["raycluster", "rayjob"])
def test_pods_are_unprivileged_and_want_a_token(spec: Any) -> None:
    assert spec["authOptions"] == {"mode": "token", "secretName": "fibec-ray-token"}
    assert spec["rayVersion"] == version_of("ray")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
            assert {volume["name"] for volume in pod["volumes"]} >= {m["name"] for m in container["volumeMounts"]}


@pytest.mark.parametrize("spec", clusters(), ids=["raycluster", "rayjob"])
def test_groups_scale_from_zero_and_the_head_has_no_devices(spec: Any) -> None:
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"} and all(group["minReplicas"] == 0 for group in groups.values())
    (container,) = groups["gpu"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_submitters_pod_is_unprivileged_too() -> None:
    """Without a template KubeRay makes one that has no security context."""
    pod = read(CLUSTER / "kuberay" / "rayjob.yaml")["spec"]["submitterPodTemplate"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod["restartPolicy"] in ("Never", "OnFailure"), "all that Kubernetes takes in a job's pod"


def test_images_are_named_by_digest() -> None:
    """A tag may come to mean another image. The digest is that of whoever builds it."""
    found = [
        image for path in TEXTS if path.suffix == ".yaml" for image in re.findall(r"image: (\S+)", path.read_text())
    ]
    assert len(found) == 9 and all(image == "registry.example.com/fibec-ray@sha256:DIGEST" for image in found)


def test_the_dashboard_is_on_loopback_where_it_can_be() -> None:
    kept, brief = clusters()
    assert kept["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    assert brief["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0"  # its submitter is another pod


def test_a_ray_job_runs_a_command_that_there_is() -> None:
    from fibec_ray.cli.main import _parse

    spec = read(CLUSTER / "kuberay" / "rayjob.yaml")["spec"]
    program, *arguments = spec["entrypoint"].split()
    parsed = _parse(arguments)
    assert program == "fibec-ray" and parsed.resume and parsed.out.startswith("/runs/")
    experiment = load_experiment(ROOT / parsed.config, parsed.overrides)
    assert experiment.fleet.address == "auto" and experiment.fleet.num_actors, "nodes come for that many"
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"] is True


# --- Slurm, Docker, Grafana, and all of them


def test_the_slurm_script_is_sound() -> None:
    script = CLUSTER / "slurm" / "fibec.sbatch"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    for words in (
        "RAY_AUTH_MODE=token",
        "umask 077",
        "chmod 600",
        "--dashboard-host=127.0.0.1",
        "--disable-usage-stats",
    ):
        assert words in text
    assert "fibec-ray run" in text and "--resume" in text and "ray stop" not in text, "other jobs share the node"


def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run([tool("shellcheck"), str(CLUSTER / "slurm" / "fibec.sbatch")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_is_pinned_and_not_root() -> None:
    lines = (CLUSTER / "docker" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert ["ARG", f"RAY_VERSION={version_of('ray')}"] in steps
    assert ["ARG", "BASE=rayproject/ray:${RAY_VERSION}-py311${FLAVOUR}"] in steps
    assert [rest for step, rest in steps if step == "FROM"] == ["${BASE}"]
    (user,) = [rest for step, rest in steps if step == "USER"]
    assert user.split(":")[0] not in ("0", "root")
    (environment,) = [rest for step, rest in steps if step == "ENV"]
    assert "RAY_AUTH_MODE=token" in environment and "RAY_USAGE_STATS_ENABLED=0" in environment
    assert all("-c src/constraints.txt" in rest for step, rest in steps if step == "RUN" and "pip install" in rest)
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    kept = (CLUSTER / "docker" / "Dockerfile.dockerignore").read_text().split()
    assert all(f"!{name}" in kept for name in copied)


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([tool("hadolint"), str(CLUSTER / "docker" / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_dashboard_draws_metrics_that_there_are() -> None:
    board = json.loads((CLUSTER / "grafana" / "fibec-ray.json").read_text())
    asked = set(re.findall(r"ray_fibec_(\w+)", json.dumps(board["panels"])))
    assert asked <= GAUGES.keys() | {f"{name}_total" for name in COUNTERS}
    assert {
        "round",
        "device_rounds_per_s",
        "lost_devices_total",
        "bytes_up_total",
        "lanes",
        "driver_memory_bytes",
    } <= asked
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 9


@pytest.mark.parametrize("folder", [path for path in sorted(CLUSTER.iterdir()) if path.is_dir()], ids=lambda p: p.name)
def test_every_way_has_a_page_whose_links_lead_somewhere(folder: Path) -> None:
    page = folder / "README.md"
    text = page.read_text()
    assert len(text.splitlines()) <= 60
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (folder / target).exists(), target
    for name in re.findall(r"cluster/[\w./-]+\.\w+", text):
        assert (ROOT / name).exists(), name


def test_commands_in_the_pages_parse() -> None:
    """Every `fibec-ray ...` of the pages, as the command's own parser sees it."""
    from fibec_ray.cli.main import _parse

    found = 0
    for path in [*CLUSTER.rglob("README.md")]:
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for command in re.findall(r"(?:^|&& )\s*fibec-ray ([^&#]+)", line):
                    _parse(command.split())
                    found += 1
    assert found > 8


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_no_token_and_no_open_client_port_is_in_any_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"auth_token:\s*[0-9a-f]{16,}|RAY_AUTH_TOKEN=\S{8,}", text)
    assert "ray://" not in text and "0.0.0.0/0" not in text
