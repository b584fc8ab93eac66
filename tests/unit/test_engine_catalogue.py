"""The engine's node classes: asked, kept on disk, taken from there by the next process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from function.engine.catalogue import NodeCatalogue, fingerprint
from function.engine.command import EngineCommand
from function.errors import EngineUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

ANSWERS = {"object_info": {"Save": {"output_node": True, "output": []}}, "node_replacements": {}}


def fetch(_host: str, _port: int) -> dict[str, Any]:
    """An engine that answers."""
    return ANSWERS


def refuse(_host: str, _port: int) -> dict[str, Any]:
    """An engine that died."""
    raise EngineUnavailableError("gone")


def test_what_one_process_asked_the_next_one_knows(tmp_path: Path) -> None:
    """Before its engine answers."""
    path = tmp_path / "engine" / "nodes.json"
    first = NodeCatalogue(path, fingerprint="a", fetch=fetch)
    first.load()
    assert first.definitions is None
    first.refresh(1)
    second = NodeCatalogue(path, fingerprint="a", fetch=refuse)
    second.load()
    assert second.definitions == first.definitions
    assert list(second.definitions.nodes if second.definitions else ()) == ["Save"]
    assert [entry.name for entry in path.parent.iterdir()] == ["nodes.json"]


def test_answers_of_another_installation_do_not_count(tmp_path: Path) -> None:
    """They may lack the very node that a workflow needs."""
    NodeCatalogue(tmp_path / "nodes.json", fingerprint="a", fetch=fetch).refresh(1)
    other = NodeCatalogue(tmp_path / "nodes.json", fingerprint="b")
    other.load()
    assert other.definitions is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fingerprint": "a"}', '{"fingerprint": "a", "object_info": {}}'])
def test_a_broken_file_counts_as_none(tmp_path: Path, text: str) -> None:
    """The engine decides until it has been asked."""
    path = tmp_path / "nodes.json"
    path.write_text(text)
    catalogue = NodeCatalogue(path, fingerprint="a")
    catalogue.load()
    assert catalogue.definitions is None


def test_an_engine_that_does_not_answer_changes_nothing(tmp_path: Path) -> None:
    """What is known stays known."""
    path = tmp_path / "nodes.json"
    NodeCatalogue(path, fingerprint="a", fetch=fetch).refresh(1)
    catalogue = NodeCatalogue(path, fingerprint="a", fetch=refuse)
    catalogue.load()
    catalogue.refresh(1)
    assert catalogue.definitions is not None


def test_a_directory_that_cannot_be_written_costs_only_the_next_start(tmp_path: Path) -> None:
    """This process knows the nodes all the same."""
    (tmp_path / "engine").write_text("a file where the directory should be")
    catalogue = NodeCatalogue(tmp_path / "engine" / "nodes.json", fingerprint="a", fetch=fetch)
    catalogue.refresh(1)
    assert catalogue.definitions is not None


def test_the_fingerprint_follows_command_version_and_custom_nodes_only(tmp_path: Path) -> None:
    """Caches that Python writes at the first start don't count."""
    home, base = tmp_path / "ComfyUI", tmp_path / "base"
    (home / "comfy_extras").mkdir(parents=True)
    pack = base / "custom_nodes" / "pack"
    (tmp_path / "linked" / "py" / "image").mkdir(parents=True)
    pack.parent.mkdir(parents=True)
    pack.symlink_to(tmp_path / "linked")
    (base / "custom_nodes" / "dangling.py").symlink_to("nowhere")
    command = EngineCommand(("python", "main.py", f"--base-directory={base}", "x" * 5000), cwd=home)
    seen = [fingerprint(command)]
    (home / "comfyui_version.py").write_text("__version__ = '0.33.0'")
    seen.append(fingerprint(command))
    (pack / "nodes.py").write_text("NODE_CLASS_MAPPINGS = {}")
    seen.append(fingerprint(command))
    (pack / "py" / "image" / "nodes.py").write_text("NODE_CLASS_MAPPINGS = {}")
    seen.append(fingerprint(command))
    seen.append(fingerprint(EngineCommand((*command.argv, "--cpu"), cwd=home)))
    assert len(set(seen)) == len(seen)
    (pack / "__pycache__").mkdir()
    assert fingerprint(command) == seen[3]
