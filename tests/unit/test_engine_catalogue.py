"""The engine's node classes: asked, kept on disk, taken from there by the next process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from function.engine.catalogue import NodeCatalogue, fingerprint, has_custom_nodes
from function.engine.command import EngineCommand
from function.engine.supervisor import EngineState
from function.errors import EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
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


class Told:
    """A supervisor whose engine is in one state for ever."""

    def __init__(self, state: EngineState) -> None:
        self.state = state

    def subscribe(self, on_state: Callable[[EngineState], None]) -> None:
        """Tell of it."""
        on_state(self.state)


def lacks(_host: str, port: int, class_type: str) -> bool:
    """What an engine says that has one class more than it describes; one on port 9 does not answer."""
    if port == 9:
        raise EngineUnavailableError("busy")
    return class_type != "Hidden"


@pytest.mark.parametrize(
    ("state", "customised", "undescribed"),
    [
        (EngineState(generation=1, ready=True, port=1), True, {"Hidden"}),
        (EngineState(generation=1, ready=True, port=9), True, {"Hidden", "NoSuch"}),
        (EngineState(generation=1), True, {"Hidden", "NoSuch"}),
        (EngineState(generation=1), False, set()),
    ],
    ids=["ready", "busy", "booting", "booting without custom nodes"],
)
def test_an_engine_is_asked_for_classes_that_it_did_not_describe(
    tmp_path: Path, state: EngineState, *, customised: bool, undescribed: set[str]
) -> None:
    """It leaves out those whose inputs it can't list; where it can't be asked, any class may be such a one."""
    NodeCatalogue(tmp_path / "nodes.json", fingerprint="a", fetch=fetch).refresh(1)
    catalogue = NodeCatalogue(
        tmp_path / "nodes.json", fingerprint="a", fetch=refuse, lacks=lacks, customised=customised
    )
    workflow = {name: {"class_type": name, "inputs": {}} for name in ("Save", "NoSuch", "Hidden")}
    assert catalogue.undescribed(workflow) == frozenset()
    catalogue.load()
    catalogue.follow(Told(state))
    assert catalogue.undescribed(workflow) == undescribed


def test_the_custom_node_that_comes_with_comfyui_is_its_own(tmp_path: Path) -> None:
    """Any other file there is somebody else's."""
    command = EngineCommand(("python", "main.py"), cwd=tmp_path)
    (tmp_path / "custom_nodes" / "pack").mkdir(parents=True)
    (tmp_path / "custom_nodes" / "websocket_image_save.py").touch()
    assert not has_custom_nodes(command)
    (tmp_path / "custom_nodes" / "pack" / "__init__.py").touch()
    assert has_custom_nodes(command)


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
