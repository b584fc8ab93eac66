"""Dashboard, rules and monitors: metrics that exist, expressions that Prometheus reads, alerts that fire."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from function.telemetry import Metrics
from tests.support.manifests import build
from tests.support.nginx import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory

MONITORING = ROOT / "monitoring"
CRDS = ROOT / "tests" / "data" / "prometheus-operator"
# Of the kubelet and of kube-state-metrics, with the names that those have had since Kubernetes 1.16.
FOREIGN = {
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_usage_seconds_total",
    "container_memory_working_set_bytes",
    "kube_pod_container_resource_limits",
}
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


def rule_groups() -> list[dict[str, Any]]:
    """The groups of the PrometheusRule."""
    groups: list[dict[str, Any]] = yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]["groups"]
    return groups


def dashboard_expressions() -> list[str]:
    """Every expression of the dashboard, its variables filled in."""
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return [target["expr"].replace("$__rate_interval", "5m").replace("$", "") for target in targets]


def rule_expressions() -> list[str]:
    """Every expression of the rules."""
    return [rule["expr"] for group in rule_groups() for rule in group["rules"]]


def names(expression: str) -> set[str]:
    """The metrics of an expression; recorded ones have a colon in their name."""
    return set(re.findall(r"(?<![\w:])(?:comfyfn|container|kube)_\w+(?!\w)", expression))


def sample_names() -> set[str]:
    """Every sample that `/metrics` may show."""
    families = list(Metrics().registry.collect())
    return {f"{family.name}{suffix}" for family in families for suffix in SUFFIXES[family.type]}


def test_every_metric_is_one_of_the_functions_own() -> None:
    """What dashboard and rules ask for is in function/telemetry.py, or named above as somebody else's."""
    asked = set().union(*(names(expression) for expression in [*dashboard_expressions(), *rule_expressions()]))
    assert asked - sample_names() - FOREIGN == set()
    assert len(asked & sample_names()) > 15


def test_the_dashboard_shows_every_metric() -> None:
    """A metric that is added to the function is added to the dashboard."""
    asked = set().union(*(names(expression) for expression in dashboard_expressions()))
    missing = {
        family.name
        for family in Metrics().registry.collect()
        if not asked & {f"{family.name}{suffix}" for suffix in SUFFIXES[family.type]}
    }
    assert missing == set()


def knative_services() -> list[dict[str, Any]]:
    """The Services of knative/."""
    return build(ROOT / "knative" / "base").all("serving.knative.dev/Service")


def deployments() -> list[dict[str, Any]]:
    """The Deployments of k8s/."""
    return build(ROOT / "k8s").all("Deployment")


def test_cpu_and_memory_are_asked_of_the_manifests_containers() -> None:
    """Each selector of a container takes the names that Kubernetes, Knative and Compose are given here."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    pods = [workload["spec"]["template"]["spec"] for workload in [*knative_services(), *deployments()]]
    given = {pod["containers"][0]["name"] for pod in pods} | {"comfyui-api"} & compose.keys()
    unnamed = "user-container"  # by Knative
    expressions = " ".join([*dashboard_expressions(), *rule_expressions()])
    selectors = re.findall(r'container=~"([^"]+)"', expressions)
    assert len(selectors) == expressions.count("container=") >= 8
    for selector in selectors:
        assert {name for name in given | {unnamed} if not re.fullmatch(selector, name)} == set()
    assert given == {"function", "comfyui-api"}


def test_recorded_rules_are_those_that_alerts_use() -> None:
    """An alert names no recording that is not there, and there is none for every scaling trigger."""
    recorded = {rule["record"] for group in rule_groups() for rule in group["rules"] if "record" in rule}
    used = set(re.findall(r"comfyfn:[\w:]+", " ".join(rule_expressions())))
    assert used <= recorded
    assert recorded == {
        "comfyfn:cpu_cores:rate5m",
        "comfyfn:error_ratio:rate5m",
        "comfyfn:gpu_utilization:avg5m",
        "comfyfn:memory_ratio:max",
        "comfyfn:queue_depth:avg",
        "comfyfn:response_seconds:avg5m",
    }


def test_the_manual_names_what_there_is() -> None:
    """Every metric, recording and alert in docs/operations.md exists."""
    manual = (ROOT / "docs" / "operations.md").read_text()
    rules = [rule for group in rule_groups() for rule in group["rules"]]
    known = {rule.get("record") or rule["alert"] for rule in rules}
    mentioned = set(re.findall(r"`(comfyfn:[\w:]+|Comfyfn\w+)`", manual))
    assert mentioned - known == set()
    assert {rule["record"] for rule in rules if "record" in rule} <= mentioned
    families = {family.name for family in Metrics().registry.collect()}
    assert set(re.findall(r"`(comfyfn_\w+)`", manual)) - sample_names() - families == set()


@pytest.mark.parametrize(("file", "crd"), [("prometheus-rule", "prometheusrules"), ("pod-monitor", "podmonitors")])
def test_manifests_satisfy_their_definitions(file: str, crd: str) -> None:
    """Each document passes the operator's own schema, with unknown fields refused."""
    definition = yaml.safe_load((CRDS / f"{crd}.yaml").read_text())["spec"]
    schema = closed(definition["versions"][0]["schema"]["openAPIV3Schema"])
    documents = list(yaml.safe_load_all((MONITORING / f"{file}.yaml").read_text()))
    for document in documents:
        assert document["kind"] == definition["names"]["kind"]
        jsonschema.Draft202012Validator(schema).validate(document)
    misspelt = json.loads(json.dumps(documents[0]).replace('"spec": {', '"spec": {"unknown": 1, ', 1))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(misspelt)


def closed(schema: Any) -> Any:
    """A structural schema as JSON Schema that refuses fields which it does not list."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: closed(value) for key, value in schema.items() if key not in {"format", "anyOf", "allOf", "oneOf"}}
    listed = isinstance(schema.get("properties"), dict) and "x-kubernetes-preserve-unknown-fields" not in schema
    if listed and schema.get("type") == "object":
        result.setdefault("additionalProperties", False)
    return result


def test_pods_are_scraped_and_not_the_route() -> None:
    """Every monitor selects pods and one of their container's ports; none of them a Service or a proxy's port."""
    monitors = list(yaml.safe_load_all((MONITORING / "pod-monitor.yaml").read_text()))
    assert [monitor["kind"] for monitor in monitors] == ["PodMonitor", "PodMonitor"]
    endpoints = [endpoint for monitor in monitors for endpoint in monitor["spec"]["podMetricsEndpoints"]]
    assert [(endpoint["port"], endpoint["path"]) for endpoint in endpoints] == [
        ("user-port", "/metrics"),
        ("http", "/metrics"),
    ]


def test_monitors_look_where_the_manifests_put_their_pods() -> None:
    """Wherever the monitors themselves are applied; the container's port has the name that is scraped."""
    monitors = {
        monitor["metadata"]["name"]: monitor["spec"]
        for monitor in yaml.safe_load_all((MONITORING / "pod-monitor.yaml").read_text())
    }
    namespaces = {name: spec["namespaceSelector"]["matchNames"] for name, spec in monitors.items()}
    (deployed,), services = deployments(), knative_services()
    assert namespaces["comfyui-api"] == [deployed["metadata"]["namespace"]]
    assert namespaces["comfyfn"] == sorted({service["metadata"]["namespace"] for service in services})
    (expression,) = monitors["comfyfn"]["selector"]["matchExpressions"]
    assert sorted(expression["values"]) == sorted(service["metadata"]["name"] for service in services)
    pod = deployed["spec"]["template"]
    assert monitors["comfyui-api"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (port,) = pod["spec"]["containers"][0]["ports"]
    assert port["name"] == monitors["comfyui-api"]["podMetricsEndpoints"][0]["port"]


def test_what_is_scaled_on_is_in_a_real_scrape(function_factory: FunctionFactory, fake_nvml: Path) -> None:
    """After one job, a running function with a GPU shows every metric of the recording rules that is its own."""
    function = function_factory(LD_LIBRARY_PATH=str(fake_nvml))
    workflow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "scraped"}},
    }
    assert function.post("/prompt", {"prompt": workflow}).status == 200
    scraped = set(re.findall(r"^(comfyfn_\w+)", function.get("/metrics").body.decode(), re.MULTILINE))
    recordings = [rule["expr"] for rule in rule_groups()[0]["rules"]]
    wanted = {name for expression in recordings for name in names(expression) if name.startswith("comfyfn_")}
    assert wanted - scraped == set()
    assert len(wanted) == 6


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Prometheus' own checker."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: install Debian's package prometheus")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_prometheus_reads_every_expression(tmp_path: Path) -> None:
    """Rules pass `promtool check rules`, and so do the dashboard's expressions as rules."""
    rules = [{"record": f"dashboard:{index}", "expr": text} for index, text in enumerate(dashboard_expressions())]
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [*rule_groups(), {"name": "dashboard", "rules": rules}]}))
    checked = promtool("check", "rules", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


POD = 'namespace="ai", pod="p1"'
ENGINE = f"comfyfn_engine_starts_total{{{POD}}}"


@pytest.mark.parametrize(
    ("alert", "series"),
    [
        ("ComfyfnQueueDepth", {f"comfyfn_jobs_admitted{{{POD}}}": "5x60", ENGINE: "1x60"}),
        (
            "ComfyfnSlowResponses",
            {f"comfyfn_job_seconds_sum{{{POD}}}": "0+600x60", f"comfyfn_job_seconds_count{{{POD}}}": "0+2x60"},
        ),
        ("ComfyfnGpusBusy", {f'comfyfn_gpu_utilization_ratio{{{POD}, gpu="GPU-1"}}': "0.95x60"}),
        (
            "ComfyfnErrors",
            {
                f'comfyfn_jobs_total{{{POD}, outcome="completed"}}': "0+9x60",
                f'comfyfn_jobs_total{{{POD}, outcome="node_failed"}}': "0+1x60",
            },
        ),
        (
            "ComfyfnCpuShort",
            {
                f'container_cpu_cfs_throttled_periods_total{{{POD}, container="function"}}': "0+300x60",
                f'container_cpu_cfs_periods_total{{{POD}, container="function"}}': "0+600x60",
            },
        ),
        (
            "ComfyfnMemoryShort",
            {
                f'container_memory_working_set_bytes{{{POD}, container="comfyui-api"}}': "95x60",
                f'kube_pod_container_resource_limits{{{POD}, resource="memory", container="comfyui-api"}}': "100x60",
            },
        ),
        ("ComfyfnGpuLost", {f"comfyfn_gpu_lost{{{POD}}}": "1x60"}),
        ("ComfyfnEngineDown", {f"comfyfn_engine_ready{{{POD}}}": "0x60", ENGINE: "1x60"}),
        ("ComfyfnEngineRestarts", {ENGINE: "0+1x60"}),
        (
            "ComfyfnCacheThrashes",
            {
                f"comfyfn_cache_evictions_total{{{POD}}}": "0+1x60",
                f"comfyfn_cache_misses_total{{{POD}}}": "0+2x60",
                f"comfyfn_cache_hits_total{{{POD}}}": "0+1x60",
            },
        ),
        ("ComfyfnWebhooksDie", {f'comfyfn_webhooks_total{{{POD}, outcome="dead"}}': "0+1x60"}),
    ],
)
def test_an_alert_fires_for_what_it_is_about_alone(alert: str, series: dict[str, str], tmp_path: Path) -> None:
    """Prometheus itself, on an hour of these samples: this alert fires; no other one does."""
    fired = sorted(firing(series, tmp_path))
    assert fired == [alert]


def test_no_alert_fires_where_all_is_well(tmp_path: Path) -> None:
    """Among it a service without an engine, whose gauge of it is 0."""
    series = {
        f"comfyfn_jobs_admitted{{{POD}}}": "1x60",
        ENGINE: "1x60",
        f"comfyfn_engine_ready{{{POD}}}": "1x60",
        'comfyfn_engine_ready{namespace="ai", pod="api"}': "0x60",
        'comfyfn_engine_starts_total{namespace="ai", pod="api"}': "0x60",
        'comfyfn_jobs_admitted{namespace="ai", pod="api"}': "50x60",
        f'comfyfn_jobs_total{{{POD}, outcome="completed"}}': "0+9x60",
        f"comfyfn_gpu_lost{{{POD}}}": "0x60",
        f'comfyfn_gpu_utilization_ratio{{{POD}, gpu="GPU-1"}}': "0.5x60",
    }
    assert firing(series, tmp_path) == set()


def firing(series: dict[str, str], directory: Path) -> set[str]:
    """Which alerts fire after an hour of samples, one a minute."""
    rules = directory / "rules.json"
    rules.write_text(json.dumps({"groups": rule_groups()}))
    alerts = [rule["alert"] for group in rule_groups() for rule in group["rules"] if "alert" in rule]
    # promtool only compares: it is told that nothing fires, and says for which alert that is wrong.
    expected = [{"alertname": alert, "eval_time": "59m", "exp_alerts": []} for alert in alerts]
    samples = [{"series": name, "values": values} for name, values in series.items()]
    document = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": samples, "alert_rule_test": expected}],
    }
    file = directory / "test.json"
    file.write_text(json.dumps(document))
    run = promtool("test", "rules", str(file))
    said = run.stdout + run.stderr
    assert run.returncode == 0 or "alertname" in said, said
    return set(re.findall(r"alertname: ?(\w+)", said))
