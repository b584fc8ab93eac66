"""Manifests in comfyui-api's form: read, placed, compared with the image."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from function.config import read_settings, shown_settings
from function.errors import SettingsError
from function.start_manifest import StartModel, manifest_json, not_in_image

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://host.example/sd.safetensors?token=s3cr3t"


def document(*paths: str, when: str = "before_start") -> dict[str, Any]:
    """A manifest with models at these paths."""
    return {"models": {when: [{"url": URL, "local_path": path} for path in paths]}}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/data/models/checkpoints/a.safetensors", "checkpoints/a.safetensors"),
        ("/comfy/models/loras/sub/b.safetensors", "loras/sub/b.safetensors"),
        ("/opt/ComfyUI/models/vae/c.safetensors", "vae/c.safetensors"),
        ("unet/d.safetensors", "unet/d.safetensors"),
    ],
)
def test_a_path_is_a_folder_and_a_name(path: str, key: str) -> None:
    """Below MODEL_DIR, below COMFY_HOME's models, or where images of comfyui-api have them."""
    environ = {"MODEL_DIR": "/data/models", "COMFY_HOME": "/comfy", "MANIFEST_JSON": json.dumps(document(path))}
    assert read_settings(environ).manifest.before_start == (StartModel(key, URL),)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/data/models/../x/y.safetensors", "a.safetensors", "/data/models/a.safetensors", "../a/b", ""],
)
def test_a_path_elsewhere_stops_the_start(path: str) -> None:
    """No manifest makes the function write outside the model directory; the line says where a path may lie."""
    with pytest.raises(SettingsError, match=r"^MANIFEST_JSON: expected local_path .* to lie in a model folder, like"):
        read_settings({"MODEL_DIR": "/data/models", "MANIFEST_JSON": json.dumps(document(path))})


@pytest.mark.parametrize("suffix", [".yml", ".yaml", ".json"])
def test_a_manifest_is_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    """YAML or JSON by its name; every member may be missing, `models` among them."""
    path = tmp_path / f"manifest{suffix}"
    model = {"url": "s3://b/k.safetensors", "local_path": "vae/k.safetensors"}
    yaml = (
        "apt:\n  - ffmpeg\nmodels:\n  after_start:\n    - {url: 's3://b/k.safetensors', local_path: vae/k.safetensors}"
    )
    as_json = {"apt": ["ffmpeg"], "models": {"after_start": [model]}}
    path.write_text(json.dumps(as_json) if suffix == ".json" else yaml)
    manifest = read_settings({"MANIFEST": str(path)}).manifest
    assert manifest.after_start == (StartModel("vae/k.safetensors", "s3://b/k.safetensors"),)
    assert manifest.image == (("apt", "ffmpeg"),)
    path.write_text("{}")
    assert read_settings({"MANIFEST": str(path)}).manifest.urls == frozenset()


def test_the_text_wins_over_the_file(tmp_path: Path) -> None:
    """As in comfyui-api."""
    path = tmp_path / "m.json"
    path.write_text(json.dumps(document("vae/file.safetensors")))
    settings = read_settings({"MANIFEST": str(path), "MANIFEST_JSON": json.dumps(document("vae/text.safetensors"))})
    assert [model.key for model in settings.manifest.before_start] == ["vae/text.safetensors"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "JSON"),
        ("[]", "an object with models"),
        ('{"modles": {}}', "an object with models"),
        ('{"models": {"now": []}}', "an object with models"),
        ('{"models": {"before_start": {}}}', "before_start to be a list"),
        ('{"apt": "ffmpeg"}', "apt to be a list"),
        ('{"models": {"before_start": [{"url": "https://h/x"}]}}', "models.before_start.0 to have a url and"),
        ('{"models": {"after_start": [{"url": 1, "local_path": "a/b"}]}}', "models.after_start.0 to have texts"),
        ('{"models": {"after_start": [{"url": "ftp://s3cr3t", "local_path": "a/b"}]}}', "url to be an https:// or"),
    ],
)
def test_what_is_no_manifest_stops_the_start(text: str, says: str) -> None:
    """With one line that says what is expected and repeats nothing that may be a secret."""
    with pytest.raises(SettingsError, match=re.escape(says)) as raised:
        read_settings({"MANIFEST_JSON": text})
    assert raised.value.message.startswith("MANIFEST_JSON=...: expected ")
    assert "s3cr3t" not in raised.value.message


@pytest.mark.parametrize("content", [None, b"a: [", b"\xff", b"[" * 5_000])
def test_a_file_that_holds_no_manifest_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    """The line names the variable and the file."""
    path = tmp_path / "m.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"^MANIFEST='{path}': expected "):
        read_settings({"MANIFEST": str(path)})


def test_urls_are_not_shown() -> None:
    """They may hold tokens."""
    environ = {"MANIFEST_JSON": json.dumps(document("vae/x.safetensors"))}
    assert "s3cr3t" not in repr(read_settings(environ))
    assert shown_settings(environ) == ["MANIFEST_JSON=..."]


def test_what_the_image_was_built_with_is_not_missing(tmp_path: Path) -> None:
    """By name: an image says versions in another form than a manifest of comfyui-api."""
    manifest = manifest_json(
        json.dumps(
            {
                "apt": ["ffmpeg", "git=1:2.39"],
                "pip": ["Kornia_rs", "torch>=2"],
                "custom_nodes": [
                    "comfyui-kjnodes",
                    "https://github.com/u/Repo/tree/abc123",
                    "https://gitlab.example/u/Other@v1.0.0",
                    "https://github.com/u/third.git",
                ],
            }
        )
    )
    assert manifest
    baked = tmp_path / "manifest.json"
    assert len(not_in_image(manifest, baked=baked)) == 8
    nodes = [{"url": f"https://github.com/u/{name}", "ref": "v2"} for name in ("Repo", "Other", "third")]
    baked.write_text(json.dumps({"apt": ["ffmpeg", "git"], "pip": ["kornia-rs==0.1", "torch"], "custom_nodes": nodes}))
    assert not_in_image(manifest, baked=baked) == ["custom_nodes comfyui-kjnodes"]
