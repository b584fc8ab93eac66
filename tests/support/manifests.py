"""Kubernetes manifests as the cluster would see them: overlays built, objects checked against their schemas.

CustomResourceDefinitions with full schemas are looked for in the directory that CRDS_DIR names, by default
`../shared/crds` beside the project.
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from function.config import setting_variables

ROOT = Path(__file__).parents[2]
CRDS_DIR = Path(os.environ.get("CRDS_DIR") or ROOT.parent / "shared" / "crds")
KUBERNETES_VERSION = "1.34"  # of the built-in kinds' schemas

_CLUSTER_WIDE = frozenset({"Namespace", "PersistentVolume"})
# Of structural schemas: they only repeat or narrow what stands beside them.
_DROPPED = frozenset({"format", "allOf", "anyOf", "oneOf", "not"})


@dataclass(frozen=True)
class Manifests:
    """The objects of one directory."""

    objects: tuple[dict[str, Any], ...]

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Every object of a kind; `group/Kind` where two groups have it."""
        group, _, name = kind.rpartition("/")
        return [
            found for found in self.objects if found["kind"] == name and found["apiVersion"].startswith(group or "")
        ]

    def one(self, kind: str, name: str) -> dict[str, Any]:
        """The object of that kind and name."""
        (found,) = [found for found in self.all(kind) if found["metadata"]["name"] == name]
        return found


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The documents of one YAML file."""
    return [document for document in yaml.load_all(path.read_bytes(), yaml.CSafeLoader) if document]


def build(directory: Path) -> Manifests:
    """What `kustomize build` makes, for the part of kustomize that is used here: anything else is an error.

    That part is resources, a namespace, and JSON patches (RFC 6902: test, add, replace) with a target, in files
    or inline.
    """
    rules = yaml.safe_load((directory / "kustomization.yaml").read_text())
    unknown = set(rules) - {"apiVersion", "kind", "namespace", "resources", "patches"}
    assert not unknown, f"{directory.name}: {unknown}"
    objects: list[dict[str, Any]] = []
    for resource in rules["resources"]:
        path = directory / resource
        objects += copy.deepcopy(build(path).objects) if path.is_dir() else read_objects(path)
    for patch in rules.get("patches", []):
        operations = patch["patch"] if "patch" in patch else (directory / patch["path"]).read_text()
        _patch(objects, patch["target"], yaml.safe_load(operations))
    for found in objects:
        if found["kind"] not in _CLUSTER_WIDE:
            found["metadata"]["namespace"] = rules["namespace"]
    return Manifests(tuple(objects))


def _patch(objects: list[dict[str, Any]], target: dict[str, str], operations: list[dict[str, Any]]) -> None:
    selected = [found for found in objects if _is_target(found, target)]
    assert selected, f"no object for {target}"
    for found in selected:
        for operation in operations:
            _apply(found, operation["op"], operation["path"].split("/")[1:], operation["value"])


def _is_target(found: dict[str, Any], target: dict[str, str]) -> bool:
    group = found["apiVersion"].rpartition("/")[0]
    own = {"group": group, "kind": found["kind"], "name": found["metadata"]["name"]}
    return all(own[name] == value for name, value in target.items())


def _apply(document: Any, operation: str, path: list[str], value: Any) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path]
    for part in parents:
        document = document[int(part) if isinstance(document, list) else part]
    place: Any = int(last) if isinstance(document, list) and last != "-" else last
    if operation == "add" and isinstance(document, list):
        document.insert(len(document) if place == "-" else place, value)
        return
    assert operation in {"test", "add", "replace"}, operation
    if operation == "add":
        document[place] = value
        return
    assert not isinstance(document, dict) or place in document, path
    if operation == "test":
        assert document[place] == value, (path, document[place])
    else:
        document[place] = value


def errors_of(found: dict[str, Any]) -> list[str]:
    """What the API server would refuse an object for; unknown fields count."""
    return list(_errors_of(json.dumps(found)))


@cache  # a schema takes its time, and variants share most of their objects
def _errors_of(document: str) -> tuple[str, ...]:
    found = json.loads(document)
    schema = crd_schemas().get((found["apiVersion"], found["kind"]))
    if schema:
        errors = jsonschema.Draft202012Validator(schema).iter_errors(found)
        return tuple(f"{error.json_path}: {error.message}" for error in errors)
    try:
        kubernetes_validate.validate(found, KUBERNETES_VERSION, strict=True)
    except jsonschema.ValidationError as error:
        return (f"{error.json_path}: {error.message}",)
    return ()


@cache
def crd_schemas() -> dict[tuple[str, str], dict[str, Any]]:
    """The schema of every custom kind, by apiVersion and kind; empty where CRDS_DIR is missing."""
    return {
        (f"{spec['group']}/{version['name']}", spec["names"]["kind"]): _object_schema(version["schema"])
        for path in sorted(CRDS_DIR.glob("*.yaml"))
        for definition in read_objects(path)
        for spec in [definition["spec"]]
        for version in spec["versions"]
    }


def _object_schema(schema: dict[str, Any]) -> dict[str, Any]:
    root = schema["openAPIV3Schema"]
    general = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    strict: dict[str, Any] = _strict({**root, "properties": {**root.get("properties", {}), **general}})
    strict["properties"]["metadata"] = {"type": "object"}
    return strict


def _strict(schema: Any) -> Any:
    """The same schema in the words of JSON Schema, with unknown fields refused."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {name: value for name, value in schema.items() if name not in _DROPPED and not name.startswith("x-")}
    if "properties" in result:
        result["properties"] = {name: _strict(value) for name, value in result["properties"].items()}
        result.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    for name in ("items", "additionalProperties"):
        if name in result:
            result[name] = _strict(result[name])
    if result.pop("nullable", False):
        result["type"] = [result["type"], "null"]
    return result


def container(workload: dict[str, Any]) -> dict[str, Any]:
    """The one container of a Deployment or Knative Service."""
    only: dict[str, Any]
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return only


def environment(manifests: Manifests, workload: dict[str, Any]) -> dict[str, str]:
    """The variables of a workload's container: those of its ConfigMaps, then its own."""
    own = container(workload)
    names = [source["configMapRef"]["name"] for source in own.get("envFrom", []) if "configMapRef" in source]
    shared = {key: value for name in names for key, value in manifests.one("ConfigMap", name)["data"].items()}
    return {**shared, **{variable["name"]: variable["value"] for variable in own["env"]}}


def unknown_settings(names: set[str]) -> set[str]:
    """Names of variables that nobody reads: neither a setting of ours nor one of boto3."""
    return {name for name in names if not name.startswith("AWS_")} - {name for name, _, _ in setting_variables()}
