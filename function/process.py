"""The one function of this process, built in the gunicorn worker after the fork.

The engine's supervisor comes first and alone, because it imports little: the engine boots while everything else is
imported. Importing this module starts nothing.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from function.config import Settings, read_settings
from function.engine.command import engine_command
from function.engine.supervisor import START_BUDGET, Supervisor
from function.logs import configure_logging

if TYPE_CHECKING:
    from function.lifecycle import Function


@cache
def settings() -> Settings:
    """The settings of this process."""
    return read_settings(os.environ)


@cache
def engine_supervisor() -> Supervisor | None:
    """The engine's supervisor, started; None for a service without an engine."""
    configure_logging(settings().log_level)
    if settings().engine == "none":
        return None
    start_budget = None if settings().always_restart else START_BUDGET
    supervisor = Supervisor(engine_command(settings()), start_budget=start_budget)
    supervisor.start()
    return supervisor


@cache
def function() -> Function:
    """The function, started."""
    supervisor = engine_supervisor()
    from function.lifecycle import Function  # noqa: PLC0415  (the engine boots while more is imported)

    started = Function(settings(), supervisor)
    started.start()
    return started
