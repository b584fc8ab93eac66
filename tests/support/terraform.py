"""Terraform in tests: the program, a mirror of its AWS provider, and copies of `terraform/` to run it in.

Nothing is downloaded. The provider is looked for in TF_MIRROR_DIR, or else in the directories that Terraform's
documentation names ("Implied Local Mirror Directories" of the CLI configuration) and up to two directories deep below
/opt. Credentials and endpoints of whoever runs the tests are taken out of the environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.support.manifests import ROOT

_PROVIDER = "registry.terraform.io/hashicorp/aws"
_MIRRORS = ("~/.terraform.d/plugins", "/usr/local/share/terraform/plugins", "/usr/share/terraform/plugins")
_COMMAND_SECONDS = 150


def find_mirror() -> Path | None:
    """The directory with a version 5 of the AWS provider, unpacked or as an archive."""
    given = os.environ.get("TF_MIRROR_DIR")
    places = [Path(given)] if given else [Path(place).expanduser() for place in _MIRRORS]
    if not given:
        places += [found.parents[2] for depth in ("*", "*/*") for found in Path("/opt").glob(f"{depth}/{_PROVIDER}")]
    return next((place for place in places if _has_provider(place)), None)


def _has_provider(place: Path) -> bool:
    names = [path.name for path in (place / _PROVIDER).glob("*")]
    return any(name.removeprefix("terraform-provider-aws_").startswith("5.") for name in names)


def missing() -> str:
    """What Terraform can't run for; empty if it can."""
    if not shutil.which("terraform"):
        return "no terraform on PATH"
    if not find_mirror():
        return (
            f"no mirror of Terraform's provider hashicorp/aws 5.x in TF_MIRROR_DIR, {', '.join(_MIRRORS)} or below /opt"
        )
    return ""


@dataclass
class Workspace:
    """A copy of `terraform/`, and of `knative/` beside it, whose files tests may change."""

    root: Path
    environ: dict[str, str] = field(default_factory=dict)
    _initialized: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Copy what is part of the project, without what Terraform left in it."""
        for name in ("terraform", "knative"):
            unwanted = shutil.ignore_patterns(".terraform*", "*.tfstate*")
            shutil.copytree(ROOT / name, self.root / name, ignore=unwanted)
        mirror = json.dumps(str(find_mirror()))
        (self.root / "cli.tfrc").write_text(
            f"provider_installation {{\n  filesystem_mirror {{ path = {mirror} }}\n}}\n"
        )

    def start(self, directory: str, *arguments: str, output: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a command of Terraform in a directory of `terraform/`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))}
        ours = {
            "TF_CLI_CONFIG_FILE": str(self.root / "cli.tfrc"),
            "TF_IN_AUTOMATION": "1",
            "TF_INPUT": "0",
            "CHECKPOINT_DISABLE": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return subprocess.Popen(
            [str(shutil.which("terraform")), f"-chdir={self.root / 'terraform' / directory}", *arguments],
            env=kept | ours | self.environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, directory: str, *arguments: str) -> tuple[int, str]:
        """Run a command to its end: exit status and output."""
        with self.start(directory, *arguments) as process:
            try:
                output, _ = process.communicate(timeout=_COMMAND_SECONDS)
            finally:
                process.kill()
        return process.returncode, output

    def done(self, directory: str, *arguments: str) -> str:
        """Run a command that has to succeed: its output."""
        status, output = self.run(directory, *arguments)
        assert status == 0, output
        return output

    def initialize(self, directory: str) -> None:
        """`terraform init`, once for each directory."""
        if directory not in self._initialized:
            self.done(directory, "init", "-no-color")
            self._initialized.add(directory)

    def plan(self, directory: str, *arguments: str) -> list[dict[str, Any]]:
        """The changes of a plan that really are ones: the same JSON in another layout is none."""
        self.done(directory, "plan", "-no-color", f"-out={self.root / 'plan'}", *arguments)
        plan = json.loads(self.done(directory, "show", "-json", str(self.root / "plan")))
        return [found for found in plan["resource_changes"] if _changes(found["change"])]


def _changes(change: dict[str, Any]) -> bool:
    if change["actions"] in (["no-op"], ["read"]):
        return False
    return change["actions"] != ["update"] or _parsed(change["before"]) != _parsed(change["after"])


def _parsed(value: Any) -> Any:
    """The value with texts that are JSON objects replaced by these objects."""
    if isinstance(value, dict):
        return {name: _parsed(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_parsed(part) for part in value]
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value
