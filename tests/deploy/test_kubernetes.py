"""The manifests under `k8s/`: a Deployment with one GPU per pod, scaled by metrics that the function really has."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from function.config import read_settings
from function.errors import ComfyfnError
from tests.support.manifests import (
    ROOT,
    Manifests,
    build,
    container,
    environment,
    errors_of,
    read_objects,
    unknown_settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.function_process import FunctionFactory

K8S = ROOT / "k8s"
ANSWER_SECONDS = 15  # gunicorn's, after the drain


@pytest.fixture(name="manifests")
def _manifests() -> Manifests:
    return build(K8S)


@pytest.fixture(name="pod")
def _pod(manifests: Manifests) -> dict[str, Any]:
    deployment = manifests.one("Deployment", "comfyui-api")
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def test_every_object_is_what_kubernetes_takes(manifests: Manifests) -> None:
    """Strictly by the schemas of the built-in kinds, the volume on NFS too."""
    objects = [*manifests.objects, *read_objects(K8S / "models-nfs.yaml")]
    assert len(objects) == 8
    assert [errors_of(found) for found in objects] == [[]] * 8


def test_a_misspelt_field_is_found(manifests: Manifests) -> None:
    """The check of schemas can fail."""
    deployment = manifests.one("Deployment", "comfyui-api")
    container(deployment)["livenesProbe"] = {}
    assert errors_of(deployment)


def test_kustomize_builds_the_same(manifests: Manifests) -> None:
    """What the tests check is what `kubectl apply -k` sends."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if not shutil.which(command[0]):
        pytest.skip("neither kustomize nor kubectl is here")
    done = subprocess.run([*command, str(K8S)], capture_output=True, text=True, check=True)
    built = {(found["kind"], found["metadata"]["name"]): found for found in yaml.safe_load_all(done.stdout)}
    assert built == {(found["kind"], found["metadata"]["name"]): found for found in manifests.objects}


def test_every_variable_is_a_setting_and_every_value_is_taken(manifests: Manifests) -> None:
    """A name that nobody reads is a mistake; the pod starts with what it is given."""
    variables = environment(manifests, manifests.one("Deployment", "comfyui-api"))
    assert unknown_settings(set(variables)) == set()
    settings = read_settings(variables)
    assert (settings.engine, settings.port, str(settings.comfy_home)) == ("comfyui", 3000, "/opt/ComfyUI")


def test_every_pod_has_one_gpu_that_the_gpu_operator_offers(manifests: Manifests, pod: dict[str, Any]) -> None:
    """Requests and limits name one GPU; label, taint and runtime class are the operator's."""
    resources = container(manifests.one("Deployment", "comfyui-api"))["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == 1
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["runtimeClassName"] == "nvidia"


def test_probes_and_service_meet_the_port(manifests: Manifests) -> None:
    """Liveness asks for /health, readiness for /ready, at the port that PORT says and the service sends to."""
    deployment = manifests.one("Deployment", "comfyui-api")
    own = container(deployment)
    (port,) = own["ports"]
    assert str(port["containerPort"]) == environment(manifests, deployment)["PORT"]
    assert own["livenessProbe"]["httpGet"] == {"path": "/health", "port": port["name"]}
    assert own["readinessProbe"]["httpGet"] == {"path": "/ready", "port": port["name"]}
    service = manifests.one("Service", "comfyui-api")["spec"]
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": port["name"]}]
    assert service["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    notes = deployment["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == str(port["containerPort"])


def test_a_pod_that_ends_finishes_its_job(manifests: Manifests, pod: dict[str, Any]) -> None:
    """The grace period covers the wait for the endpoints, the drain, which covers the longest job, and its answer."""
    deployment = manifests.one("Deployment", "comfyui-api")
    settings = read_settings(environment(manifests, deployment))
    command, wait_seconds = container(deployment)["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert settings.drain_seconds >= settings.deadline_seconds
    assert int(wait_seconds) + settings.drain_seconds + ANSWER_SECONDS < pod["terminationGracePeriodSeconds"]
    budget = manifests.one("PodDisruptionBudget", "comfyui-api")["spec"]
    assert (budget["maxUnavailable"], budget["selector"]) == (1, deployment["spec"]["selector"])
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_models_are_read_only_wherever_they_come_from(manifests: Manifests, pod: dict[str, Any]) -> None:
    """Claim, volume and mount at MODEL_DIR are for reading, and the claim on NFS has the same name."""
    (claim,) = manifests.all("PersistentVolumeClaim")
    volume, nfs_claim = read_objects(K8S / "models-nfs.yaml")
    assert claim["metadata"]["name"] == nfs_claim["metadata"]["name"] == "comfyui-models"
    for found in (claim, volume, nfs_claim):
        assert found["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert volume["spec"]["nfs"]["readOnly"]
    assert nfs_claim["spec"]["volumeName"] == volume["metadata"]["name"]
    deployment = manifests.one("Deployment", "comfyui-api")
    mounts = {mount["name"]: mount for mount in container(deployment)["volumeMounts"]}
    assert mounts["models"]["mountPath"] == environment(manifests, deployment)["MODEL_DIR"]
    assert mounts["models"]["readOnly"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "comfyui-models", "readOnly": True}


def test_nothing_is_written_outside_of_volumes(manifests: Manifests, pod: dict[str, Any]) -> None:
    """The root is read-only, the user is nobody special; data, input and output lie on volumes that can be written."""
    deployment = manifests.one("Deployment", "comfyui-api")
    own = container(deployment)
    assert own["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsUser"] == 10001
    written = {mount["mountPath"] for mount in own["volumeMounts"] if not mount.get("readOnly")}
    settings = read_settings(environment(manifests, deployment))
    for directory in (settings.data_dir, settings.input_dir, settings.output_dir):
        assert {str(place) for place in (directory, *directory.parents)} & written, directory


@pytest.fixture(scope="module", name="scraped")
def _scraped(tmp_path_factory: pytest.TempPathFactory, fake_nvml: Path) -> Iterator[set[str]]:
    """The series of a function that has run a job, on a machine with NVML."""
    from tests.support.function_process import functions  # noqa: PLC0415  (other tests here start nothing)

    factory: FunctionFactory
    with functions(tmp_path_factory.mktemp("scrape")) as factory:
        function = factory(LD_LIBRARY_PATH=str(fake_nvml))
        answer = function.post("/prompt", {"prompt": {"1": {"class_type": "EmptyImage", "inputs": _IMAGE}, "2": _SAVE}})
        assert answer.status == 200, answer.body
        families = text_string_to_metric_families(function.get("/metrics").body.decode())
        yield {series.name for family in families for series in family.samples}


_IMAGE = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
_SAVE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "scraped"}}


def test_every_metric_that_is_scaled_on_comes_from_a_real_scrape(manifests: Manifests, scraped: set[str]) -> None:
    """Each of the autoscaler's metrics is made by one rule of the adapter, of series that the function serves."""
    (scaler,) = manifests.all("HorizontalPodAutoscaler")
    wanted = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    (values,) = read_objects(K8S / "metrics-adapter.yaml")
    rules = {rule["name"]["as"]: rule for rule in values["rules"]["custom"]}
    assert wanted == set(rules)
    assert len(wanted) == 4
    for rule in rules.values():
        used = set(re.findall(r"comfyfn_\w+", rule["seriesQuery"] + rule["metricsQuery"]))
        assert used, rule
        assert used <= scraped


def test_the_outcomes_that_count_as_overload_are_codes_of_errors() -> None:
    """An outcome that no error has would never be counted."""
    (outcomes,) = re.findall(r'outcome=~"([a-z_|]+)"', (K8S / "metrics-adapter.yaml").read_text())
    assert set(outcomes.split("|")) <= {kind.code for kind in _descendants(ComfyfnError)}


def _descendants(kind: type[ComfyfnError]) -> Iterator[type[ComfyfnError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)
