"""The commands of `knative/README.md` make what the manifests say, or differ as the README says."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml

from tests.support.manifests import ROOT, Manifests, build

KNATIVE = ROOT / "knative"
README = (KNATIVE / "README.md").read_text()
AUTOSCALING = "autoscaling.knative.dev"
# What `kn service apply` makes of a flag: the annotation of the revision.
SCALING = {
    "--scale-min": "min-scale",
    "--scale-max": "max-scale",
    "--scale-metric": "metric",
    "--scale-utilization": "target-utilization-percentage",
    "--scale-window": "window",
}
STRICT = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def commands(*beginning: str) -> list[list[str]]:
    """The commands in the README's shell blocks that begin with these words."""
    blocks = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    split = [shlex.split(line) for line in blocks.splitlines()]
    return [words for words in split if words[: len(beginning)] == list(beginning)]


def flags(words: list[str]) -> list[tuple[str, str]]:
    """Flags in their order, each with its value; "" for a switch."""
    found: list[tuple[str, str]] = []
    for word in words:
        if word.startswith("--"):
            found.append((word, ""))
        elif found and not found[-1][1]:
            found[-1] = (found[-1][0], word)
    return found


def pairs(text: str) -> dict[str, str]:
    """`a=1,b=2` as a dictionary."""
    return dict(part.split("=", 1) for part in text.split(","))


def probe(text: str) -> dict[str, Any]:
    """`http:HOST:PORT:PATH`."""
    _, _, port, path = text.split(":")
    return {"httpGet": {"port": int(port), "path": path}}


def volume(text: str) -> dict[str, Any]:
    """`NAME=ed:NAME:size=...,type=Memory`."""
    name, source = text.split("=", 1)
    _, _, options = source.split(":")
    given = pairs(options)
    medium = {"medium": given["type"]} if "type" in given else {}
    return {"name": name, "emptyDir": {**medium, "sizeLimit": given["size"]}}


class KnService:
    """The service that `kn service apply` makes of its flags; an unknown flag is an error."""

    def __init__(self, words: list[str]) -> None:
        self.labels: dict[str, str] = {}
        self.revision_labels: dict[str, str] = {}
        self.annotations: dict[str, str] = {}
        self.spec: dict[str, Any] = {"volumes": []}
        self.container: dict[str, Any] = {"resources": {}, "env": [], "envFrom": [], "volumeMounts": []}
        for flag, value in flags(words):
            self._add(flag, value)

    def _add(self, flag: str, value: str) -> None:
        if flag in SCALING:
            self.annotations[f"{AUTOSCALING}/{SCALING[flag]}"] = value
        elif flag in {"--request", "--limit"}:
            self.container["resources"][f"{flag[2:]}s"] = pairs(value)
        elif flag.startswith("--probe-"):
            self.container[f"{flag.removeprefix('--probe-')}Probe"] = probe(value)
        else:
            getattr(self, flag[2:].replace("-", "_"))(value)

    def namespace(self, value: str) -> None:
        """`--namespace`."""
        assert value == "comfyfn"

    def image(self, value: str) -> None:
        """`--image`."""
        self.container["image"] = value

    def port(self, value: str) -> None:
        """`--port NAME:PORT`."""
        name, port = value.split(":")
        self.container["ports"] = [{"name": name, "containerPort": int(port)}]

    def concurrency_limit(self, value: str) -> None:
        """`--concurrency-limit`."""
        self.spec["containerConcurrency"] = int(value)

    def timeout(self, value: str) -> None:
        """`--timeout`."""
        self.spec["timeoutSeconds"] = int(value)

    def service_account(self, value: str) -> None:
        """`--service-account`."""
        self.spec["serviceAccountName"] = value

    def cluster_local(self, _value: str) -> None:
        """`--cluster-local`."""
        self.labels["networking.knative.dev/visibility"] = "cluster-local"

    def label(self, value: str) -> None:
        """`--label`: of the service and its revisions."""
        self.labels |= pairs(value)
        self.revision_labels |= pairs(value)

    def env_from(self, value: str) -> None:
        """`--env-from config-map:NAME`."""
        self.container["envFrom"].append({"configMapRef": {"name": value.removeprefix("config-map:")}})

    def env(self, value: str) -> None:
        """`--env NAME=VALUE`."""
        name, text = value.split("=", 1)
        self.container["env"].append({"name": name, "value": text})

    def volume(self, value: str) -> None:
        """`--volume`."""
        self.spec["volumes"].append(volume(value))

    def mount(self, value: str) -> None:
        """`--mount PATH=NAME`."""
        path, name = value.split("=")
        self.container["volumeMounts"].append({"name": name, "mountPath": path})

    def security_context(self, value: str) -> None:
        """`--security-context strict`."""
        assert value == "strict"
        self.container.setdefault("securityContext", {}).update(STRICT)

    def user(self, value: str) -> None:
        """`--user`."""
        self.container.setdefault("securityContext", {})["runAsUser"] = int(value)

    def annotation_revision(self, value: str) -> None:
        """`--annotation-revision`."""
        self.annotations |= pairs(value)

    @property
    def manifest(self) -> dict[str, Any]:
        """Labels, annotations and specification."""
        metadata = {"annotations": self.annotations, "labels": self.revision_labels}
        spec = {**self.spec, "containers": [self.container]}
        return {"metadata": {"labels": self.labels}, "spec": {"template": {"metadata": metadata, "spec": spec}}}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf by its path; members of a list by their name where they have one."""
    if isinstance(value, dict):
        return {key: leaf for name, part in value.items() for key, leaf in flat(part, f"{path}.{name}").items()}
    if isinstance(value, list):
        named = {(part.get("name", n) if isinstance(part, dict) else n): part for n, part in enumerate(value)}
        return {key: leaf for name, part in named.items() for key, leaf in flat(part, f"{path}[{name}]").items()}
    return {path: value}


@pytest.fixture(name="base")
def _base() -> Manifests:
    return build(KNATIVE / "base")


def test_the_service_made_of_flags_differs_as_the_readme_says(base: Manifests) -> None:
    """The flags-only variant is `service-gpu.yaml` but for what its list of differences names."""
    (words,) = [words for words in commands("kn", "service", "apply") if "--image" in words]
    made = flat(KnService(words).manifest)
    service = base.one("serving.knative.dev/Service", words[3])
    meant = flat({"metadata": {"labels": service["metadata"]["labels"]}, "spec": service["spec"]})
    pod = ".spec.template.spec"
    one = f"{pod}.containers[0]"
    own = f"{pod}.containers[function]"
    made = {key.replace(one, own): value for key, value in made.items()}
    assert {key for key in {*made, *meant} if made.get(key) != meant.get(key)} == {
        f"{pod}.timeoutSeconds",
        f"{pod}.responseStartTimeoutSeconds",
        f"{pod}.enableServiceLinks",
        f"{own}.name",
        f"{own}.env[DEADLINE_SECONDS].name",  # in the ConfigMap, with another value
        f"{own}.env[DEADLINE_SECONDS].value",
        f"{own}.env[DRAIN_SECONDS].value",
        f"{own}.envFrom[1].secretRef.name",
        f"{own}.envFrom[1].secretRef.optional",
        f"{own}.securityContext.readOnlyRootFilesystem",
        f"{own}.securityContext.runAsGroup",
        f"{own}.livenessProbe.periodSeconds",
        f"{own}.livenessProbe.timeoutSeconds",
        f"{own}.livenessProbe.failureThreshold",
        ".metadata.labels.app.kubernetes.io/name",
        ".spec.template.metadata.labels.app.kubernetes.io/name",
    }


def test_the_service_made_of_flags_has_times_that_fit(base: Manifests) -> None:
    """300 s is all that an answer may take to begin where responseStartTimeoutSeconds can't be set."""
    (words,) = [words for words in commands("kn", "service", "apply") if "--image" in words]
    given = dict(word.split("=", 1) for flag, word in flags(words) if flag == "--env")
    timeout = int(dict(flags(words))["--timeout"])
    assert timeout == 300
    assert int(given["DEADLINE_SECONDS"]) + 30 < timeout
    assert int(given["DEADLINE_SECONDS"]) <= int(given["DRAIN_SECONDS"])
    assert 30 + int(given["DRAIN_SECONDS"]) + 15 <= timeout
    assert int(base.one("ConfigMap", "comfyfn-settings")["data"]["LEASE_SECONDS"]) < 30


def test_manifests_are_applied_first() -> None:
    """The first commands with kn apply files that are there."""
    applied = [words[words.index("-f") + 1] for words in commands("kn", "service", "apply") if "-f" in words]
    assert [(ROOT / path).is_file() for path in applied] == [True, True]
    assert "-f" in commands("kn", "service", "apply")[0]


def test_broker_triggers_and_sweep_made_with_kn_are_those_of_the_base(base: Manifests) -> None:
    """The same name, filters and sinks; the broker's delivery is that of the trigger for jobs."""
    (words,) = commands("kn", "broker", "create")
    given = dict(flags(words))
    delivery = base.one("Trigger", "comfyfn-jobs")["spec"]["delivery"]
    assert (words[3], given["--namespace"]) == (base.all("Broker")[0]["metadata"]["name"], "comfyfn")
    assert int(given["--retry"]) == delivery["retry"]
    for flag, member in (
        ("backoff-policy", "backoffPolicy"),
        ("backoff-delay", "backoffDelay"),
        ("timeout", "timeout"),
    ):
        assert given[f"--{flag}"] == delivery[member]
    made = {
        given["--filter"]: given["--sink"]
        for words in commands("kn", "trigger", "create")
        for given in [dict(flags(words))]
    }
    assert made == {
        f"type=dev.comfyfn.job.{word}": f"ksvc:{service}"
        for word, service in (("requested", "comfyfn"), ("completed", "comfyfn-api"), ("failed", "comfyfn-api"))
    }
    (sweep,) = commands("kn", "source", "ping", "create")
    spec = base.one("PingSource", sweep[4])["spec"]
    assert dict(flags(sweep))["--schedule"] == spec["schedule"]
    assert dict(flags(sweep))["--sink"] == f"ksvc:{spec['sink']['ref']['name']}"


def test_the_first_event_is_a_job(base: Manifests) -> None:
    """What the README sends has the type that the trigger for jobs lets pass."""
    (sent,) = commands("kn", "event", "send")
    jobs = base.one("Trigger", "comfyfn-jobs")["spec"]["filters"][0]["exact"]["type"]
    assert dict(flags(sent))["--type"] == jobs
    assert f"ce-type: {jobs}" in README


def test_the_flags_that_the_readme_enables_are_those_of_the_gpu_nodes() -> None:
    """The command for the operator sets every flag of the variant's row to enabled."""
    (words,) = commands("kubectl", "-n", "knative-serving", "patch")
    (row,) = re.findall(r"^\| `gpu-nodes` \|.*$", README, re.MULTILINE)
    enabled = yaml.safe_load(words[words.index("-p") + 1])["data"]
    assert enabled == dict.fromkeys(re.findall(r"`(kubernetes\.[a-z-]+)`", row), "enabled")
