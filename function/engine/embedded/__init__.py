"""A small CPU core that speaks ComfyUI's HTTP and WebSocket protocol, run as `python -m function.engine.embedded`.

It exists so that the whole line runs where there is no ComfyUI: on a laptop, in continuous integration. Real image
nodes, real model files, and the protocol of ComfyUI 0.3.64 as recorded in tests/data/comfyui. It imports nothing else
of `function`: to the rest of the project it is a process behind an address, exactly as ComfyUI is.
"""

EMBEDDED_VERSION = "0.1.0"
"""The version of the project that this core ships with; `/system_stats` names it: nobody takes it for ComfyUI."""

COMFYUI_VERSION = "0.3.64"
"""The version of ComfyUI whose protocol this core speaks."""
