"""docker-compose.yml and what goes on top of it: valid, and consistent with settings, scripts and image."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml

from function.config import read_settings, setting_variables
from function.server import conf
from tests.support.nginx import ROOT

VARIANTS = ("laptop", "direct", "traefik")
FILES = ["docker-compose.yml", *(f"compose/{variant}.yml" for variant in VARIANTS)]
PER_GPU = "compose/per-gpu.yml"
SCHEMA = json.loads((ROOT / "tests" / "data" / "compose-spec" / "compose-spec.json").read_text())


class ComposeLoader(yaml.SafeLoader):
    """YAML with the tags of the Compose Specification's merge rules."""


class Override(list[Any]):
    """A list that takes the place of the one below it, where lists are joined otherwise."""


ComposeLoader.add_constructor("!reset", lambda _loader, _node: None)
ComposeLoader.add_constructor("!override", lambda loader, node: Override(loader.construct_sequence(node, deep=True)))


def load(name: str) -> dict[str, Any]:
    """One file as it stands."""
    document: dict[str, Any] = yaml.load((ROOT / name).read_text(), Loader=ComposeLoader)  # noqa: S506  (a SafeLoader)
    return document


def interpolate(text: str, environ: dict[str, str]) -> str:
    """Fill in `${NAME:-default}`, the only form that the files use."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environ.get(found[1]) or found[2], text)


def environment(*names: str, **environ: str) -> dict[str, str]:
    """What a replica's environment is with these files on top of each other; values that are handed on are left out."""
    merged: dict[str, Any] = {}
    for name in names:
        merged |= load(name)["services"]["comfyui-api"].get("environment", {})
    return {key: interpolate(str(value), environ) for key, value in merged.items() if value is not None}


def seconds(text: str) -> int:
    """A duration like `630s`."""
    return int(interpolate(text, {}).removesuffix("s"))


@pytest.mark.parametrize("name", [*FILES, PER_GPU])
def test_the_file_satisfies_the_compose_specification(name: str) -> None:
    """It passes the schema of the Compose Specification, which refuses unknown members."""
    document = load(name)
    jsonschema.Draft7Validator(SCHEMA).validate(document)
    next(iter(document["services"].values()))["enviroment"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(document)


def test_every_variable_of_a_replica_is_a_setting() -> None:
    """A misspelt one would be ignored in silence. AWS_* is boto3's."""
    variables = {name for name, _default, _doc in setting_variables()}
    given = {key for name in FILES for key in load(name)["services"]["comfyui-api"].get("environment", {})}
    assert {key for key in given - variables if not key.startswith("AWS_")} == set()


def test_the_environment_makes_valid_settings() -> None:
    """ComfyUI with one shared model cache and one shared directory of claims, as the seed names its directories."""
    settings = read_settings(environment("docker-compose.yml"))
    assert settings.engine == "comfyui"
    assert (settings.port, str(settings.comfy_home)) == (3000, "/opt/ComfyUI")
    assert str(settings.model_dir) == "/opt/ComfyUI/models"
    assert "CMD" in load("docker-compose.yml")["services"]["comfyui-api"]["environment"]
    volumes = [volume.rpartition(":") for volume in load("docker-compose.yml")["services"]["comfyui-api"]["volumes"]]
    shared = [path for name, _, path in volumes if name]
    own = [path for name, _, path in volumes if not name]
    assert shared == ["/shared", str(settings.model_dir)]
    assert str(settings.gpu_claim_dir) == "/shared/gpu-claims"
    stores = (settings.models_url, settings.uploads_url, settings.workflows_url, settings.results_url)
    assert all(url.startswith("file:///shared/store/") for url in stores)
    assert own == [str(settings.data_dir)]
    assert {str(settings.input_dir.parent), str(settings.output_dir.parent)} == set(own)


def test_a_laptop_runs_the_embedded_engine_with_the_s3_stand_in() -> None:
    """No GPU is reserved or claimed; compose/s3.env points every store to the stand-in."""
    lines = (ROOT / "compose" / "s3.env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    settings = read_settings(environment("docker-compose.yml", "compose/laptop.yml", **given))
    assert (settings.engine, settings.gpu_claim_dir) == ("embedded", None)
    assert {settings.models_url, settings.uploads_url, settings.workflows_url, settings.results_url} == {
        f"s3://comfyfn/{folder}" for folder in ("models", "uploads", "workflows", "results")
    }
    assert load("compose/laptop.yml")["services"]["comfyui-api"]["deploy"] is None
    base = load("docker-compose.yml")
    assert [name for name, service in base["services"].items() if service.get("profiles") == ["s3"]] == [
        "s3",
        "s3-bucket",
    ]
    identities = json.loads(interpolate(base["configs"]["s3"]["content"], given))["identities"]
    assert identities[0]["credentials"] == [
        {"accessKey": given["AWS_ACCESS_KEY_ID"], "secretKey": given["AWS_SECRET_ACCESS_KEY"]}
    ]


def test_the_bucket_is_made_with_the_functions_python() -> None:
    """Of the image's interpreters only that of the environment which ENTRYPOINT is in has boto3."""
    (entrypoint,) = set(re.findall(r'^ENTRYPOINT \["(.+)"\]$', (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    service = load("docker-compose.yml")["services"]["s3-bucket"]
    assert service["entrypoint"] == [str(PurePosixPath(entrypoint).with_name("python")), "-c"]
    (program,) = service["command"]
    compile(program, "s3-bucket", "exec")
    assert "boto3==" in (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize("name", ["docker-compose.yml", "compose/traefik.yml"])
def test_replicas_have_no_host_port(name: str) -> None:
    """Nothing keeps the service from being scaled: neither a host port nor a container's name."""
    service = load(name)["services"]["comfyui-api"]
    assert not {"ports", "container_name", "network_mode"} & service.keys()


def test_without_a_proxy_replicas_share_a_range_of_ports() -> None:
    """One port of the range for each replica, from the seed's 3001 on; the proxy, which has it, isn't started."""
    services = load("compose/direct.yml")["services"]
    (port,) = services["comfyui-api"]["ports"]
    assert interpolate(port, {}) == "3001-3016:3000"
    assert services["nginx"]["profiles"]


def test_separate_services_have_a_gpu_and_a_port_each() -> None:
    """The replicas' service with a number in place of all GPUs: each claims none, and runs the jobs that it took."""
    services = {name: service for name, service in load(PER_GPU)["services"].items() if name != "permissions"}
    assert list(services) == ["comfyui-api-0", "comfyui-api-1"]
    for number, service in enumerate(services.values()):
        assert service["extends"] == {"file": "../docker-compose.yml", "service": "comfyui-api"}
        assert service["ports"] == [f"{3001 + number}:3000"]
        devices = service["deploy"]["resources"]["reservations"]["devices"]
        assert isinstance(devices, Override)  # `count: all` would stay beside it
        assert devices == [{"driver": "nvidia", "device_ids": [str(number)], "capabilities": ["gpu"]}]
        settings = read_settings(environment("docker-compose.yml") | service["environment"])
        assert (settings.gpu_claim_dir, settings.dispatch_url) == (None, "http://127.0.0.1:3000/")


def test_separate_services_find_what_they_take_over() -> None:
    """`extends` takes over dependencies and volumes by name: what they name is in the file too."""
    document, base = load(PER_GPU), load("docker-compose.yml")
    assert document["name"] == base["name"]  # whose volumes they share
    for service in document["services"].values():
        below = base["services"][service["extends"]["service"]]
        assert below.get("depends_on", {}).keys() <= document["services"].keys()
        named = {volume.partition(":")[0] for volume in below["volumes"] if not volume.startswith("/")}
        assert named <= document["volumes"].keys()
        assert {name: base["volumes"][name] for name in named} == {name: document["volumes"][name] for name in named}


def test_the_health_check_is_the_seeds() -> None:
    """Curl on /health, every 30 s, three times."""
    check = load("docker-compose.yml")["services"]["comfyui-api"]["healthcheck"]
    assert check["test"] == ["CMD", "curl", "-f", "http://localhost:3000/health"]
    assert (check["interval"], check["timeout"], check["retries"]) == ("30s", "10s", 3)


@pytest.mark.parametrize(("name", "proxy"), [("docker-compose.yml", "nginx"), ("compose/traefik.yml", "traefik")])
def test_a_proxy_stands_at_port_3001_and_is_the_load_balancer(name: str, proxy: str) -> None:
    """`http://localhost:3001` outside, `http://load-balancer:80` inside, which is where asynchronous jobs are sent."""
    service = load(name)["services"][proxy]
    assert interpolate(service["ports"][0], {}) == "3001:80"
    assert service["networks"]["default"]["aliases"] == ["load-balancer"]
    assert read_settings(environment("docker-compose.yml")).dispatch_url == "http://load-balancer/"


def test_the_proxy_has_the_replicas_limits() -> None:
    """Body size and deadline come from the same variables with the same defaults."""
    services = load("docker-compose.yml")["services"]
    for name in ("MAX_BODY_SIZE_MB", "DEADLINE_SECONDS"):
        assert services["nginx"]["environment"][name] == services["comfyui-api"]["environment"][name]


def test_a_container_is_not_killed_while_it_drains() -> None:
    """stop_grace_period is longer than DRAIN_SECONDS and the time that answers get; a drain takes any job."""
    service = load("docker-compose.yml")["services"]["comfyui-api"]
    settings = read_settings(environment("docker-compose.yml"))
    answers_seconds = conf.graceful_timeout - conf._settings.drain_seconds
    assert seconds(service["stop_grace_period"]) >= settings.drain_seconds + answers_seconds
    assert settings.drain_seconds >= settings.deadline_seconds


def test_traefik_sends_nothing_twice_and_asks_whether_replicas_are_ready() -> None:
    """No retry middleware; the health check is /ready; a body may take as long as a job."""
    services = load("compose/traefik.yml")["services"]
    labels = services["comfyui-api"]["labels"]
    assert not any("retry" in label for label in labels)
    assert labels["traefik.http.services.comfyui-api.loadbalancer.healthcheck.path"] == "/ready"
    (timeout,) = [flag for flag in services["traefik"]["command"] if "respondingTimeouts.readTimeout" in flag]
    assert seconds(timeout.rpartition("=")[2]) >= read_settings(environment("docker-compose.yml")).deadline_seconds


def test_the_manual_has_the_seeds_commands() -> None:
    """What people type today is what the manual shows, and the scripts that it names exist."""
    manual = (ROOT / "docs" / "operations.md").read_text()
    for command in (
        "bash scripts/scale-compose.sh 4",
        "bash scripts/health-check.sh http://localhost:3001",
        "docker compose up -d --scale comfyui-api=4",
        "docker compose ps",
        "netstat -tuln | grep -E ':(3001|3002|3003|3004)'",
        "kubectl exec -it <pod-name> -- nvidia-smi",
        "kubectl exec -it <pod-name> -- ls -la /opt/ComfyUI/models/",
    ):
        assert command in manual
    for path in set(re.findall(r"(?:compose|scripts|monitoring)/[\w/-]+\.\w+", manual)):
        assert (ROOT / path).is_file(), path


def test_settings_in_the_manual_exist() -> None:
    """A word in capitals with an underscore is a setting, a variable of the compose files, or somebody else's."""
    manual = (ROOT / "docs" / "operations.md").read_text()
    texts = [(ROOT / name).read_text() for name in FILES] + [path.read_text() for path in (ROOT / "scripts").iterdir()]
    known = {name for name, _default, _doc in setting_variables()} | {"COMPOSE_FILE"}
    known |= set(re.findall(r"\$\{(\w+):-", "\n".join(texts)))
    assert set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", manual)) - known == set()
