"""What the Dockerfile's target `gpu` fetches, in small: PyTorch's index, ComfyUI's repository, a custom node's.

The stand-in of ComfyUI's `main.py` is started by the Python that has the stand-in of PyTorch, and becomes the embedded
engine, which takes ComfyUI's flags.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

from tests.support.engine import ROOT

# Layers are kept from one test run to the next: what a build fetches has a name that changes with it.
REVISION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
VERSION = f"0.1+{REVISION}"
TAG = f"v{REVISION}"
TORCH = ("torch", "torchvision", "torchaudio")
NODE, NODE_PACKAGE = "ComfyUI-StandIn", "iniconfig"
DEBIAN_PACKAGE = "tree"

# As ComfyUI does, it makes its directory of users where no other one is given. The embedded engine reads the paths of
# models as JSON only.
MAIN = """\
import json, os, sys
import torch, yaml
print("started with torch", torch.__version__, "and nodes", sorted(os.listdir("custom_nodes")), flush=True)
arguments = sys.argv[1:]
if "--user-directory" not in arguments:
    os.makedirs("user", exist_ok=True)
paths = arguments.index("--extra-model-paths-config") + 1
with open(arguments[paths]) as given, open("/data/paths.json", "w") as converted:
    json.dump(yaml.safe_load(given), converted)
arguments[paths] = converted.name
os.execv("/opt/comfyfn/bin/comfyfn", ["comfyfn", "engine", *arguments])
"""


def write_wheel(directory: Path, name: str) -> None:
    """A wheel of a package that knows its version, and the page of an index that lists it."""
    directory.mkdir(parents=True)
    file = f"{name}-{VERSION}-py3-none-any.whl"
    info = f"{name}-{VERSION}.dist-info"
    with zipfile.ZipFile(directory / file, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", f"__version__ = {VERSION!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (directory / "index.html").write_text(f'<a href="{file}">{file}</a>')


def write_repository(directory: Path, files: dict[str, str]) -> None:
    """A git repository whose one commit has the tag."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    who = ["-c", "user.name=Node", "-c", "user.email=node@example.com", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "one"], ["tag", TAG]):
        subprocess.run(["/usr/bin/env", "git", "-C", directory, *who, *command], check=True)


def write_stand_ins(directory: Path) -> None:
    """All of them, below a directory that the build mounts."""
    for name in TORCH:
        write_wheel(directory / "whl" / "cu128" / name, name)
    write_repository(
        directory / "ComfyUI",
        {
            "main.py": MAIN,
            "comfy/cli_args.py": "# has --database-url",
            "requirements.txt": "torch\npyyaml\n",
            "custom_nodes/example.py": "",
            "models/checkpoints/put_checkpoints_here": "",
        },
    )
    write_repository(directory / NODE, {"__init__.py": "", "requirements.txt": f"{NODE_PACKAGE}\ntorch\n"})


def write_context(directory: Path, mounted_at: str) -> None:
    """What the Dockerfile copies, with a manifest that names the stand-ins where the build sees them."""
    directory.mkdir()
    for name in ("Dockerfile", ".dockerignore", "requirements.lock", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, directory / name)
    for name in ("events", "function", "image"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    nodes = [{"url": f"file://{mounted_at}/{NODE}", "ref": TAG}]
    manifest = {"apt": [DEBIAN_PACKAGE], "pip": ["torchvision"], "custom_nodes": nodes}
    (directory / "image" / "test.json").write_text(json.dumps(manifest))


def build_arguments(mounted_at: str) -> dict[str, str]:
    """Where the Dockerfile gets what the stand-ins stand in for."""
    return {
        "PYTORCH_INDEX": f"file://{mounted_at}/whl",
        "COMFYUI_REPOSITORY": f"file://{mounted_at}/ComfyUI",
        "COMFYUI_VERSION": TAG,
        "MANIFEST": "image/test.json",
        **{f"{name.upper()}_VERSION": VERSION for name in TORCH},
    }
