"""The Dockerfile and what bakes a manifest into an image, as far as neither needs a registry or a GPU."""

from __future__ import annotations

import fnmatch
import json
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from function.config import read_settings
from function.engine.command import engine_command
from function.engine.embedded.options import parse_options
from tests.support.manifests import ROOT, build, environment, unknown_settings

BAKE = ROOT / "image" / "bake.py"
HADOLINT = Path(sys.executable).with_name("hadolint")
# Variables of an image that others than the function read.
OTHERS = {"HOME", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "NVIDIA_DRIVER_CAPABILITIES"}


@dataclass(frozen=True)
class Stage:
    """One stage of a Dockerfile: its base, and its instructions in order."""

    base: str
    instructions: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        """The arguments of every instruction of that name."""
        return [arguments for instruction, arguments in self.instructions if instruction == name]


def read_stages() -> dict[str, Stage]:
    """The stages of the Dockerfile by name; what stands before the first one is not in them."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    instructions = [
        (words[0], words[1].strip())
        for line in "\n".join(lines).replace("\\\n", " ").splitlines()
        if len(words := line.split(maxsplit=1)) == 2
    ]
    stages: dict[str, Stage] = {}
    for name, arguments in instructions:
        if name == "FROM":
            base, _, stage = arguments.partition(" AS ")
            stages[stage] = Stage(base, ())
        elif stages:
            last = next(reversed(stages))
            stages[last] = Stage(stages[last].base, (*stages[last].instructions, (name, arguments)))
    return stages


def variables(stages: dict[str, Stage], name: str) -> dict[str, str]:
    """The environment of a stage, its bases' included."""
    stage = stages.get(name)
    if stage is None:
        return {}
    own = dict(pair.split("=", 1) for text in stage.all("ENV") for pair in shlex.split(text))
    return {**variables(stages, stage.base), **own}


@pytest.fixture(name="stages", scope="module")
def _stages() -> dict[str, Stage]:
    return read_stages()


def test_hadolint_has_nothing_to_say() -> None:
    """The linter passes, with its reasoned exceptions beside the lines they are for."""
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_say_something(tmp_path: Path) -> None:
    """The check can fail."""
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && sudo apt-get install curl\n")
    assert subprocess.run([HADOLINT, bad], capture_output=True, check=False).returncode == 1


def test_it_builds_where_only_the_base_image_can_be_had(stages: dict[str, Stage]) -> None:
    """No frontend is fetched (`# syntax=`), every stage comes of the one base, whose digest is an argument's matter."""
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE)
    assert "ARG PYTHON_IMAGE=" in text.partition("FROM")[0]
    assert {stage.base for stage in stages.values()} == {"${PYTHON_IMAGE}", "base"}


def test_what_varies_is_an_argument(stages: dict[str, Stage]) -> None:
    """ComfyUI is a pinned tag; PyTorch and CUDA have a version; each can be given."""
    given = dict(argument.split("=", 1) for argument in stages["comfyui"].all("ARG"))
    assert re.fullmatch(r"v\d+\.\d+\.\d+", given["COMFYUI_VERSION"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", given["TORCH_VERSION"])
    assert re.fullmatch(r"cu\d+", given["CUDA"])
    assert (ROOT / given["MANIFEST"]).is_file()


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_runs_as_nobody_special_and_says_what_it_is(stages: dict[str, Stage], target: str) -> None:
    """The user is a number, so that Kubernetes can tell it from root; nothing comes after it that root would do."""
    stage = stages[target]
    assert stage.all("USER") == ["10001:10001"]
    names = [name for name, _ in stage.instructions]
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :])
    assert "VOLUME" not in names
    assert json.loads(stage.all("ENTRYPOINT")[0]) == ["/opt/comfyfn/bin/comfyfn"]
    assert json.loads(stage.all("CMD")[0]) == ["serve"]
    assert stage.all("EXPOSE") == [variables(stages, target)["PORT"]]
    labels = stage.all("LABEL")[0]
    assert {"title", "description", "licenses"} <= set(re.findall(r"org\.opencontainers\.image\.(\w+)", labels))


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_brings_what_health_checks_call(stages: dict[str, Stage], target: str) -> None:
    """`curl` is in the image, and the image's own check asks for /health."""
    assert stages[target].base == "base"
    assert any(" curl" in command for command in stages["base"].all("RUN"))
    (check,) = stages[target].all("HEALTHCHECK")
    assert "curl" in check
    assert "/health" in check


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_command_line_is_on_the_path(stages: dict[str, Stage], target: str) -> None:
    """`docker exec ... comfyfn doctor` finds what the image itself starts."""
    (program,) = json.loads(stages[target].all("ENTRYPOINT")[0])
    assert stages[target].base == "base"
    assert any(f"ln -s {program} /usr/local/bin/comfyfn" in command for command in stages["base"].all("RUN"))


@pytest.mark.parametrize(("target", "engine"), [("cpu", "embedded"), ("gpu", "comfyui")])
def test_an_image_starts_with_what_it_sets(stages: dict[str, Stage], target: str, engine: str) -> None:
    """Its variables are settings, and every directory that is written to lies below the one that is a volume."""
    given = variables(stages, target)
    assert unknown_settings(set(given) - OTHERS) == set()
    settings = read_settings(given)
    assert settings.engine == engine
    for directory in (settings.data_dir, settings.model_dir, settings.input_dir, settings.output_dir):
        assert directory.is_relative_to(given["DATA_DIR"])
    assert given["HOME"] == given["DATA_DIR"]


@pytest.mark.parametrize("given", ["", "python main.py --normalvram --listen 0.0.0.0"])
def test_comfyui_writes_into_data_whatever_cmd_is(stages: dict[str, Stage], tmp_path: Path, given: str) -> None:
    """Of the image's own command and of an operator's: what ComfyUI wants to write leaves the read-only COMFY_HOME."""
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "cli_args.py").write_text("--database-url")
    image = variables(stages, "gpu")
    settings = read_settings(image | {"COMFY_HOME": str(tmp_path)} | ({"CMD": given} if given else {}))
    built = engine_command(settings, may_write=lambda _directory: False)
    assert built.argv[:2] == ("python", "main.py")
    flags = dict(pairwise(built.argv))
    assert (flags["--user-directory"], flags["--temp-directory"]) == ("/data/user", "/data")
    assert flags["--database-url"] == "sqlite:////data/comfyui.db"
    assert Path("/data/user") in built.directories


def test_the_images_comfyui_listens_for_this_pod_alone(stages: dict[str, Stage]) -> None:
    """Nobody reaches its port from outside unless CMD says so; the flags are such as ComfyUI has."""
    command = read_settings(variables(stages, "gpu")).command
    assert parse_options(command[2:]).addresses == ("127.0.0.1",)


def test_the_build_gets_what_it_copies_and_nothing_else(stages: dict[str, Stage]) -> None:
    """Every source of a COPY is there and passes .dockerignore; tests, data and .git don't."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source.replace("${MANIFEST}", "image/manifest.json")
        for stage in stages.values()
        for arguments in stage.all("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    assert {source.split("/")[0] for source in copied} == allowed
    assert all((ROOT / source).exists() for source in copied)
    assert not any(
        fnmatch.fnmatch(name, rule) for name in ("tests", ".git", ".venv", "comfyfn-data") for rule in allowed
    )


@pytest.mark.parametrize(("service", "target"), [("comfyfn", "gpu"), ("comfyfn-api", "cpu")])
def test_the_image_and_the_manifest_together_start(stages: dict[str, Stage], service: str, target: str) -> None:
    """What the manifest sets wins over what the image sets, and the two fit."""
    base = build(ROOT / "knative" / "base")
    given = environment(base, base.one("serving.knative.dev/Service", service))
    settings = read_settings({**variables(stages, target), **given, "PORT": "8080", "K_SERVICE": service})
    assert settings.engine == {"gpu": "comfyui", "cpu": "none"}[target]
    assert settings.results_url.startswith("s3://")


def bake(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script as the Dockerfile does: as a program of its own."""
    return subprocess.run(
        [sys.executable, "-I", BAKE, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def write(path: Path, document: Any) -> Path:
    """Write JSON, return its path."""
    path.write_text(json.dumps(document))
    return path


def git(directory: Path, *arguments: str) -> str:
    """Run git in a directory, as somebody."""
    who = ["-c", "user.name=Node", "-c", "user.email=node@example.com", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["/usr/bin/env", "git", "-C", directory, *who, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(name="repository")
def _repository(tmp_path: Path) -> Path:
    """A custom node's repository: version v1 is tagged, and a later commit is not."""
    repository = tmp_path / "upstream" / "ComfyUI-Demo"
    repository.mkdir(parents=True)
    git(repository, "init", "--quiet")
    for text in ("one", "two"):
        (repository / "__init__.py").write_text(f"NODE = {text!r}\n")
        (repository / "requirements.txt").write_text("click\n")
        git(repository, "add", ".")
        git(repository, "commit", "--quiet", "-m", text)
        if text == "one":
            git(repository, "tag", "v1")
    return repository


@pytest.mark.parametrize(("named", "text"), [("tag", "one"), ("commit", "two")])
def test_a_custom_node_is_baked_at_its_tag_or_commit(tmp_path: Path, repository: Path, named: str, text: str) -> None:
    """Its files lie under its name, without history, and its requirements are installed."""
    ref = "v1" if named == "tag" else git(repository, "rev-parse", "HEAD")
    manifest = write(tmp_path / "manifest.json", {"custom_nodes": [{"url": f"file://{repository}", "ref": ref}]})
    done = bake("nodes", manifest, "--python", sys.executable, "--directory", tmp_path / "custom_nodes")
    assert done.returncode == 0, done.stderr
    baked = tmp_path / "custom_nodes" / "ComfyUI-Demo"
    assert (baked / "__init__.py").read_text() == f"NODE = {text!r}\n"
    assert not (baked / ".git").exists()
    assert "already satisfied: click" in done.stdout


def test_a_repository_that_is_not_there_ends_the_build(tmp_path: Path) -> None:
    """An image without one of its nodes is no image."""
    node = {"url": f"file://{tmp_path}/nowhere", "ref": "v1"}
    done = bake("nodes", write(tmp_path / "manifest.json", {"custom_nodes": [node]}), "--directory", tmp_path / "nodes")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: git ")


def test_the_manifest_of_the_readme_becomes_these_commands(tmp_path: Path) -> None:
    """Names stay arguments of their own, PyTorch's version stays where it is, and no package list stays behind."""
    (text,) = re.findall(r'```json\n(\{\n  "apt".*?)```', (ROOT / "README.md").read_text(), re.DOTALL)
    script = runpy.run_path(str(BAKE))
    manifest = script["read_manifest"](write(tmp_path / "manifest.json", json.loads(text)))
    update, install, clean = script["apt_commands"](manifest)
    assert update == ["apt-get", "update"]
    assert install == ["apt-get", "install", "-y", "--no-install-recommends", "ffmpeg"]
    assert "/var/lib/apt/lists" in clean
    pip = script["pip_commands"](manifest.pip, python="/opt/comfyui/bin/python", constraint="pins.txt")
    assert len(pip) == 1
    assert shlex.join(pip[0]) == (
        "/opt/comfyui/bin/python -m pip install --no-cache-dir --constraint pins.txt kornia==0.8.1"
    )
    assert [(node.name, node.ref) for node in manifest.custom_nodes] == [("ComfyUI-Example", "v1.2.0")]


@pytest.mark.parametrize(
    "entry",
    [
        "https://git.example/u/Node@v1.0.0",
        "https://git.example/u/Node/tree/v1.0.0",
        "https://git.example/u/Node/commit/v1.0.0",
        "https://git.example/u/Node/releases/tag/v1.0.0",
        "https://git.example/u/Node/-/tree/v1.0.0",
        "https://git.example/u/Node/src/v1.0.0",
        "https://git.example/u/Node/commits/v1.0.0",
    ],
)
def test_a_node_may_be_named_as_manifests_of_comfyui_api_do(tmp_path: Path, entry: str) -> None:
    """Repository and reference in one URL; models are left to the function's start."""
    document = {"custom_nodes": [entry], "models": {"before_start": []}}
    (node,) = runpy.run_path(str(BAKE))["read_manifest"](write(tmp_path / "manifest.json", document)).custom_nodes
    assert (node.url, node.ref, node.name) == ("https://git.example/u/Node", "v1.0.0", "Node")


@pytest.mark.parametrize("part", ["apt", "pip", "nodes"])
def test_the_manifest_that_ships_bakes_nothing(part: str) -> None:
    """It is empty, and no command is run for it."""
    done = bake(part, ROOT / "image" / "manifest.json")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ([], "expected an object with apt, pip and custom_nodes"),
        ({"modles": []}, "modles: expected an object"),
        ({"apt": ["ffmpeg; rm -rf /"]}, "apt: 'ffmpeg; rm -rf /': expected a package"),
        ({"apt": ["--allow-unauthenticated"]}, "apt: '--allow-unauthenticated': expected a package"),
        ({"pip": ["--index-url=http://evil.example"]}, "expected a requirement like kornia==0.8.1, not an option"),
        ({"pip": [1]}, "pip: 1: expected a requirement"),
        ({"custom_nodes": ["https://example.com/node"]}, "expected an object with url and ref"),
        ({"custom_nodes": ["https://example.com/u/node/tree/main"]}, "ref 'main' is a branch"),
        ({"custom_nodes": ["https://me:pw@example.com/n@v1"]}, "without credentials"),
        ({"custom_nodes": [{"url": "https://me:pw@example.com/n", "ref": "v1"}]}, "without credentials"),
        ({"custom_nodes": [{"url": "ext::sh -c id", "ref": "v1"}]}, "expected an https:// URL"),
        ({"custom_nodes": [{"url": "https://example.com/n", "ref": "main"}]}, "ref 'main' is a branch"),
        ({"custom_nodes": [{"url": "https://example.com/n", "ref": "--upload-pack=id"}]}, "expected a tag or a commit"),
        ({"custom_nodes": [{"url": "https://example.com/..", "ref": "v1"}]}, "expected a URL that ends in a name"),
        ({"custom_nodes": [{"url": f"https://{h}.example/n", "ref": "v1"} for h in "ab"]}, "have the same name"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_in_one_line(tmp_path: Path, document: Any, error: str) -> None:
    """No command is made of what isn't a name; the line says what is wrong."""
    done = bake("nodes", write(tmp_path / "manifest.json", document))
    assert done.returncode == 1
    assert done.stdout == ""
    assert error in done.stderr
    assert len(done.stderr.splitlines()) == 1
