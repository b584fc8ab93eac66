"""The function under gunicorn, from the command line's point of view."""

from __future__ import annotations

import os
import sys

from gunicorn.app.wsgiapp import WSGIApplication

from function.config import Settings, read_settings
from function.errors import SettingsError


def serve() -> None:
    """Serve until told to stop; a setting that is wrong ends it at once, with one line."""
    try:
        _take_gpu(read_settings(os.environ))
    except SettingsError as error:
        sys.exit(f"Error: {error.message}")
    sys.argv = ["comfyfn serve", "-c", "python:function.server.conf", "function.server.wsgi:create_app()"]
    WSGIApplication().run()


def _take_gpu(settings: Settings) -> None:
    """Claim one GPU where GPU_CLAIM_DIR asks for it, and let everything from here on see that one only.

    The claim is the master's and, by its descriptor, the worker's: it lasts as long as either, so as long as an engine
    that one of them has started. A worker that is replaced gets the same GPU.
    """
    if settings.gpu_claim_dir is None or settings.engine == "none":
        return
    from function.gpu_claim import claim_gpu  # noqa: PLC0415  (NVML is of no use to all others)

    os.environ["CUDA_VISIBLE_DEVICES"], _ = claim_gpu(settings.gpu_claim_dir, visible=settings.visible_gpus)
