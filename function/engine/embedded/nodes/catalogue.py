"""Every node this core has, by `class_type`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from function.engine.embedded.nodes import image, latent, loaders, mask, primitives, save, upscale, vae

if TYPE_CHECKING:
    from collections.abc import Mapping

    from function.engine.embedded.nodes.node import Node

_MODULES = (loaders, image, save, mask, upscale, vae, latent, primitives)

NODES: Mapping[str, Node] = {node.name: node for module in _MODULES for node in module.NODES}
