"""The manifests under `knative/`: base and variants are what Knative takes and what the function relies on."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import yaml

from function.config import read_settings
from tests.support.manifests import (
    CRDS_DIR,
    ROOT,
    Manifests,
    build,
    container,
    crd_schemas,
    environment,
    errors_of,
    unknown_settings,
)
from tests.support.samples import INDEX, sample

KNATIVE = ROOT / "knative"
VARIANTS = ("base", "aws", "s3-compatible", "gpu-nodes", "throughput", "node-cache")
SERVICE = "serving.knative.dev/Service"
# Of Knative's own: the wait before SIGTERM, and the time gunicorn gives answers after the drain.
BEFORE_SIGTERM_SECONDS = 30
ANSWER_SECONDS = 15
# Fields of a pod that Knative refuses unless the operator has set the flag (config-features, all off by default).
FLAGS = {
    "nodeSelector": "kubernetes.podspec-nodeselector",
    "tolerations": "kubernetes.podspec-tolerations",
    "runtimeClassName": "kubernetes.podspec-runtimeclassname",
    "affinity": "kubernetes.podspec-affinity",
    "securityContext": "kubernetes.podspec-securitycontext",
    "initContainers": "kubernetes.podspec-init-containers",
    "persistentVolumeClaim": "kubernetes.podspec-persistent-volume-claim",
    "hostPath": "kubernetes.podspec-volumes-hostpath",
}


@pytest.fixture(params=VARIANTS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """The base, and each variant of it."""
    return build(KNATIVE / request.param)


@dataclass(frozen=True)
class Chain:
    """Every time of the way of a job's event, in seconds."""

    deadline: float
    lease: float
    service_timeout: float
    response_start: float
    delivery_timeout: float
    backoffs: tuple[float, ...]

    @property
    def problems(self) -> list[str]:
        """Which of the rules of docs/architecture.md, "Deployed", it breaks."""
        rules = {
            "backoffs outlast deadline and lease": sum(self.backoffs) > self.deadline + self.lease,
            "the lease is over before the first redelivery": self.lease < self.backoffs[0],
            "the answer leaves before the timeout": self.deadline + 30 < self.service_timeout,
            "both timeouts of the service are equal": self.service_timeout == self.response_start,
            "the broker waits as long as the service": self.service_timeout <= self.delivery_timeout,
        }
        return [rule for rule, holds in rules.items() if not holds]


def seconds(duration: str) -> float:
    """Seconds of an ISO 8601 duration of hours, minutes and seconds."""
    match = re.fullmatch(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?", duration)
    assert match, duration
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=rest).total_seconds()


def backoffs(delivery: dict[str, Any]) -> tuple[float, ...]:
    """The pauses before each further try, the shorter reading of the specification: delay x 2^n from n = 0."""
    assert delivery["backoffPolicy"] == "exponential"
    return tuple(seconds(delivery["backoffDelay"]) * 2**n for n in range(delivery["retry"]))


def chain_of(manifests: Manifests) -> Chain:
    """The times of a variant, from where each is written."""
    service = manifests.one(SERVICE, "comfyfn")
    spec = service["spec"]["template"]["spec"]
    variables = environment(manifests, service)
    delivery = manifests.one("Trigger", "comfyfn-jobs")["spec"]["delivery"]
    return Chain(
        deadline=float(variables["DEADLINE_SECONDS"]),
        lease=float(variables["LEASE_SECONDS"]),
        service_timeout=spec["timeoutSeconds"],
        response_start=spec["responseStartTimeoutSeconds"],
        delivery_timeout=seconds(delivery["timeout"]),
        backoffs=backoffs(delivery),
    )


def matches(rule: dict[str, Any], event_type: str) -> bool:
    """Whether a Trigger's filter lets an event of that type pass."""
    ((name, value),) = rule.items()
    if name == "any":
        return any(matches(part, event_type) for part in value)
    return event_type == value["type"] if name == "exact" else event_type.startswith(value["type"])


def receivers(manifests: Manifests, event_type: str) -> list[str]:
    """The services that get an event of that type from the broker."""
    return [
        trigger["spec"]["subscriber"]["ref"]["name"]
        for trigger in manifests.all("Trigger")
        if all(matches(rule, event_type) for rule in trigger["spec"]["filters"])
    ]


def test_every_object_of_a_built_in_kind_is_what_kubernetes_takes(manifests: Manifests) -> None:
    """By Kubernetes' schemas; unknown fields are refused."""
    objects = [found for found in manifests.objects if not is_custom(found)]
    assert len(objects) >= 4
    assert {found["metadata"]["name"]: errors for found in objects if (errors := errors_of(found))} == {}


def test_every_object_of_knative_is_what_its_definition_says(manifests: Manifests) -> None:
    """By the CustomResourceDefinitions; unknown fields are refused."""
    if not crd_schemas():
        pytest.skip(f"no CustomResourceDefinitions in {CRDS_DIR}: set CRDS_DIR")
    objects = [found for found in manifests.objects if is_custom(found)]
    assert len(objects) >= 8
    assert {found["metadata"]["name"]: errors for found in objects if (errors := errors_of(found))} == {}


def is_custom(found: dict[str, Any]) -> bool:
    """Whether the kind is Knative's."""
    return "knative.dev/" in found["apiVersion"]


def test_a_misspelt_field_is_found() -> None:
    """The check of schemas can fail: at any depth, for a custom kind and a built-in one."""
    if not crd_schemas():
        pytest.skip(f"no CustomResourceDefinitions in {CRDS_DIR}: set CRDS_DIR")
    manifests = build(KNATIVE / "base")
    service = manifests.one(SERVICE, "comfyfn")
    service["spec"]["template"]["spec"]["containerConcurency"] = 1
    container(service)["resources"]["limit"] = {}
    assert len(errors_of(service)) == 2
    policy = manifests.one("NetworkPolicy", "comfyfn")
    policy["spec"]["ingres"] = []
    (error,) = errors_of(policy)
    assert "ingres" in error


@pytest.mark.parametrize("variant", VARIANTS)
def test_kustomize_builds_the_same(variant: str) -> None:
    """What the tests check is what `kubectl apply -k` sends."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if not shutil.which(command[0]):
        pytest.skip("neither kustomize nor kubectl is here")
    done = subprocess.run([*command, str(KNATIVE / variant)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    built = list(yaml.safe_load_all(done.stdout))

    def place(found: dict[str, Any]) -> tuple[str, str, str]:
        return found["apiVersion"], found["kind"], found["metadata"]["name"]

    assert sorted(built, key=place) == sorted(build(KNATIVE / variant).objects, key=place)


def test_the_times_fit_each_other(manifests: Manifests) -> None:
    """A job is redelivered until it is done, and nobody cuts its answer off."""
    assert chain_of(manifests).problems == []


def test_times_that_do_not_fit_are_found() -> None:
    """Each rule of the inequality can fail by itself."""
    good = {
        "deadline": 540.0,
        "lease": 20.0,
        "service_timeout": 600.0,
        "response_start": 600.0,
        "delivery_timeout": 600.0,
        "backoffs": (30.0, 60.0, 120.0, 240.0, 480.0),
    }
    for change in (
        {"backoffs": (30.0, 60.0, 120.0, 240.0)},
        {"lease": 30.0},
        {"deadline": 570.0},
        {"response_start": 300.0},
        {"delivery_timeout": 599.0},
    ):
        assert len(Chain(**{**good, **change}).problems) == 1, change  # type: ignore[arg-type]


def test_every_variable_is_a_setting_and_every_value_is_taken(manifests: Manifests) -> None:
    """A name that nobody reads is a mistake; both services start with what they are given."""
    for service in manifests.all(SERVICE):
        variables = environment(manifests, service)
        assert unknown_settings(set(variables)) == set()
        read_settings({**variables, "PORT": "8080", "K_SERVICE": service["metadata"]["name"]})


def test_the_gpu_service_scales_by_requests_one_gpu_each(manifests: Manifests) -> None:
    """The autoscaling of facts: full utilization, the activator in the path, from zero, one GPU per pod."""
    template = manifests.one(SERVICE, "comfyfn")["spec"]["template"]
    notes = template["metadata"]["annotations"]
    assert notes["autoscaling.knative.dev/metric"] == "concurrency"
    assert notes["autoscaling.knative.dev/target-utilization-percentage"] == "100"
    assert notes["autoscaling.knative.dev/target-burst-capacity"] == "-1"
    assert notes["autoscaling.knative.dev/min-scale"] == "0"
    assert int(notes["autoscaling.knative.dev/max-scale"]) > 0
    assert notes["serving.knative.dev/progress-deadline"] == "30m"
    assert container(manifests.one(SERVICE, "comfyfn"))["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_only_the_throughput_variant_lets_two_requests_into_a_pod() -> None:
    """One request per pod, but for the variant where the next one loads while the first one runs."""
    concurrency = {
        variant: build(KNATIVE / variant).one(SERVICE, "comfyfn")["spec"]["template"]["spec"]["containerConcurrency"]
        for variant in VARIANTS
    }
    assert concurrency == {**dict.fromkeys(VARIANTS, 1), "throughput": 2}


def test_every_request_that_comes_in_is_admitted(manifests: Manifests) -> None:
    """A service admits at least as many jobs as Knative sends requests to a pod."""
    for service in manifests.all(SERVICE):
        settings = read_settings({**environment(manifests, service), "K_SERVICE": "comfyfn"})
        assert settings.admit_limit >= service["spec"]["template"]["spec"]["containerConcurrency"] > 0


def test_a_pod_that_ends_finishes_its_job(manifests: Manifests) -> None:
    """The drain covers the longest job, and Knative's grace period (timeoutSeconds) covers the drain."""
    for service in manifests.all(SERVICE):
        settings = read_settings({**environment(manifests, service), "K_SERVICE": "comfyfn"})
        grace = service["spec"]["template"]["spec"]["timeoutSeconds"]
        assert BEFORE_SIGTERM_SECONDS + settings.drain_seconds + ANSWER_SECONDS <= grace
        assert settings.engine == "none" or settings.drain_seconds >= settings.deadline_seconds


def test_probes_ask_for_health_so_that_a_request_meets_a_booting_engine(manifests: Manifests) -> None:
    """Readiness is /health on the container's port, and nothing in Knative asks for /ready."""
    for service in manifests.all(SERVICE):
        own = container(service)
        (port,) = own["ports"]
        for probe in ("readinessProbe", "livenessProbe"):
            assert own[probe]["httpGet"] == {"path": "/health", "port": port["containerPort"]}


def test_nothing_is_written_outside_of_volumes(manifests: Manifests) -> None:
    """The root is read-only and the user is nobody special; every directory the function writes to is a volume."""
    for service in manifests.all(SERVICE):
        own = container(service)
        security = own["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["runAsNonRoot"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        mounts = {mount["mountPath"] for mount in own["volumeMounts"]}
        settings = read_settings({**environment(manifests, service), "K_SERVICE": "comfyfn"})
        written = [settings.data_dir, settings.input_dir, settings.output_dir, settings.model_dir]
        for directory in written:
            assert {str(place) for place in (directory, *directory.parents)} & mounts, directory
        assert "/tmp" in mounts  # noqa: S108  (a mount, not a file)


def test_the_cache_is_smaller_than_its_volume(manifests: Manifests) -> None:
    """A pod whose volume outgrows its limit is evicted; the cache stays below."""
    service = manifests.one(SERVICE, "comfyfn")
    volumes = {volume["name"]: volume for volume in service["spec"]["template"]["spec"]["volumes"]}
    if claim := volumes["models"].get("persistentVolumeClaim"):
        spec = manifests.one("PersistentVolumeClaim", claim["claimName"])["spec"]
        size = spec["resources"]["requests"]["storage"]
    else:
        size = volumes["models"]["emptyDir"]["sizeLimit"]
    assert 0 < float(environment(manifests, service)["LRU_CACHE_SIZE_GB"]) < float(size.removesuffix("Gi"))


def test_the_broker_that_jobs_are_sent_to_is_the_one_that_is_made(manifests: Manifests) -> None:
    """DISPATCH_URL is the address of the namespace's broker, and every trigger listens to it."""
    (broker,) = manifests.all("Broker")
    name, namespace = broker["metadata"]["name"], broker["metadata"]["namespace"]
    dispatch_url = manifests.one("ConfigMap", "comfyfn-settings")["data"]["DISPATCH_URL"]
    assert dispatch_url == f"http://broker-ingress.knative-eventing.svc.cluster.local/{namespace}/{name}"
    assert {trigger["spec"]["broker"] for trigger in manifests.all("Trigger")} == {name}


def test_every_reference_names_something_that_is_there(manifests: Manifests) -> None:
    """Subscribers, sinks, dead-letter sinks and service accounts exist under the name and kind they are called by."""
    present = {(found["apiVersion"], found["kind"], found["metadata"]["name"]) for found in manifests.objects}
    references = [tuple(ref[part] for part in ("apiVersion", "kind", "name")) for ref in _references(manifests.objects)]
    assert len(references) >= 7
    assert set(references) <= present
    accounts = {service["spec"]["template"]["spec"]["serviceAccountName"] for service in manifests.all(SERVICE)}
    ends = [*manifests.all("IntegrationSource"), *manifests.all("IntegrationSink")]
    of_ends = {found["spec"]["aws"]["auth"]["serviceAccountName"] for found in ends if "aws" in found["spec"]}
    assert accounts == {"comfyfn"}
    assert of_ends.isdisjoint(accounts)
    assert accounts | of_ends == {found["metadata"]["name"] for found in manifests.all("ServiceAccount")}


def _references(value: Any) -> list[dict[str, str]]:
    if isinstance(value, dict):
        found = [value["ref"]] if "ref" in value else []
        return found + [ref for part in value.values() for ref in _references(part)]
    return [ref for part in value for ref in _references(part)] if isinstance(value, list | tuple) else []


def test_every_delivery_is_retried_and_then_kept(manifests: Manifests) -> None:
    """No trigger falls back to the cluster's defaults, ten tries within minutes, and none drops an event."""
    for trigger in manifests.all("Trigger"):
        delivery = trigger["spec"]["delivery"]
        assert delivery["retry"] > 0
        assert delivery["deadLetterSink"]["ref"]["name"] == "comfyfn-dead-letters"


def test_an_event_reaches_the_service_that_is_meant_to_have_it(manifests: Manifests) -> None:
    """Jobs go to the GPU; ends of jobs and notices of uploads never start one."""
    assert receivers(manifests, "dev.comfyfn.job.requested") == ["comfyfn"]
    assert receivers(manifests, "dev.comfyfn.job.completed") == ["comfyfn-api"]
    assert receivers(manifests, "dev.comfyfn.job.failed") == ["comfyfn-api"]
    assert receivers(manifests, "com.example.other") == []


def test_every_notice_that_is_an_event_passes_the_filter() -> None:
    """Whatever CloudEvent of `events/samples` asks for an upload's job reaches the API service, and only it.

    But for one whose sender chose a type of its own: its trigger is the operator's.
    """
    base = build(KNATIVE / "base")
    types = {name: kind for name, entry in INDEX.items() if (kind := _notice_type(name, entry))}
    assert types.pop("s3-eventbridge.cloudevent.http") == "com.example.upload"
    assert len(types) >= 5
    assert {name: receivers(base, kind) for name, kind in types.items()} == {name: ["comfyfn-api"] for name in types}


def _notice_type(name: str, entry: dict[str, Any]) -> str:
    request = sample(name)
    headers = {header.lower(): value for header, value in request.headers.items()}
    if not any(trigger["trigger"] == "ObjectCreated" for trigger in entry["triggers"]):
        return ""
    if headers.get("content-type", "").startswith("application/cloudevents+json"):
        return str(yaml.safe_load(request.body)["type"])
    return headers.get("ce-type", "")


def test_the_operator_is_told_of_every_flag_that_a_variant_needs() -> None:
    """The base needs none of Knative's feature flags; what a variant needs stands in the README beside its name."""
    assert flags_of(build(KNATIVE / "base")) == set()
    text = (KNATIVE / "README.md").read_text()
    rows = {variant: row for variant in VARIANTS for row in re.findall(rf"^\| `{variant}` \|.*$", text, re.MULTILINE)}
    for variant in VARIANTS[1:]:
        assert set(re.findall(r"`(kubernetes\.[a-z-]+)`", rows[variant])) == flags_of(build(KNATIVE / variant)), variant


def flags_of(manifests: Manifests) -> set[str]:
    """The flags that the pods of these services need."""
    needed = set()
    for service in manifests.all(SERVICE):
        spec = service["spec"]["template"]["spec"]
        needed |= {
            FLAGS[name] for name in {*spec} | {part for volume in spec["volumes"] for part in volume} if name in FLAGS
        }
        claims = [volume["persistentVolumeClaim"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
        if any(not claim.get("readOnly") for claim in claims):
            needed.add("kubernetes.podspec-persistent-volume-write")
    return needed


def test_the_function_cannot_be_reached_past_the_proxy(manifests: Manifests) -> None:
    """Serving and gateways reach queue-proxy's ports; the function's own port is for monitoring alone."""
    (policy,) = manifests.all("NetworkPolicy")
    for service in manifests.all(SERVICE):
        labels = service["spec"]["template"]["metadata"]["labels"]
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    serving, monitoring = policy["spec"]["ingress"]
    assert 8080 not in [port["port"] for port in serving["ports"]]
    assert monitoring["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_the_manual_does_not_take_the_policy_for_access_control(manifests: Manifests) -> None:
    """The gateways are let in, and through them every pod of the cluster; the manual says what limits callers."""
    (policy,) = manifests.all("NetworkPolicy")
    (namespaces,) = [peer["namespaceSelector"]["matchExpressions"][0] for peer in policy["spec"]["ingress"][0]["from"]]
    assert {"knative-serving", "kourier-system", "istio-system"} <= set(namespaces["values"])
    manual = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    assert "The network policy in `knative/` limits no caller." in manual
    assert "AuthorizationPolicy" in manual


def test_each_variant_changes_what_it_is_named_after() -> None:
    """A variant that became the base again would be no variant."""
    built = {variant: build(KNATIVE / variant) for variant in VARIANTS}
    source = built["aws"].one("IntegrationSource", "comfyfn-uploads")["spec"]
    assert source["sink"]["ref"]["kind"] == "Broker"
    assert built["aws"].one("IntegrationSink", "comfyfn-dead-letters")["spec"]["aws"]["sqs"]["arn"]
    endpoint = built["s3-compatible"].one("ConfigMap", "comfyfn-settings")["data"]["AWS_ENDPOINT_URL"]
    assert endpoint.startswith("http://minio.")
    nodes = built["gpu-nodes"].one(SERVICE, "comfyfn")["spec"]["template"]["spec"]
    assert {"nodeSelector", "tolerations", "runtimeClassName"} <= set(nodes)
    assert built["node-cache"].all("PersistentVolumeClaim")
