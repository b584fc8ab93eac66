"""The check that every workflow passes before models are brought."""

from __future__ import annotations

from typing import TYPE_CHECKING

from function.validation.graph import check_graph
from function.validation.policy import check_policy

if TYPE_CHECKING:
    from collections.abc import Collection

    from function.validation.definitions import Definitions
    from function.validation.policy import Policy
    from function.workflow import Workflow


def check_workflow(
    workflow: Workflow, policy: Policy, definitions: Definitions | None, *, undescribed: Collection[str] = ()
) -> None:
    """Refuse a workflow that the operator or the engine would refuse.

    Args:
        workflow: A parsed graph, as its sender wrote it.
        policy: What the operator allows.
        definitions: The engine's node classes; None while nobody knows them: the engine decides.
        undescribed: Classes that the engine may have although they are not among those.

    Raises:
        NodeRefusedError: A node whose class is not allowed.
        BudgetExceededError: A node that asks for more than is allowed.
        InvalidWorkflowError: With ComfyUI's `node_errors`.
    """
    check_policy(workflow, policy, replacements=definitions.replacements if definitions else {})
    if definitions:
        check_graph(workflow, definitions, undescribed=undescribed)
