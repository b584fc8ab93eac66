"""The list of comfyui-api's defects names tests that there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "comfyui_api"
DEFECTS = json.loads((DATA / "defects.json").read_text())


@pytest.mark.parametrize("defect", DEFECTS, ids=[str(defect["number"]) for defect in DEFECTS])
def test_each_defect_has_a_test_that_there_is(defect: dict[str, str]) -> None:
    """The file has the function, and the contract's data the case."""
    path, _, name = defect["test"].partition("::")
    function, _, case = name.removesuffix("]").partition("[")
    assert f"\ndef {function}(" in (ROOT / path).read_text()
    if case:
        cases = json.loads((DATA / "requests.json").read_text()) | json.loads((DATA / "webhooks.json").read_text())
        assert case in cases


def test_every_defect_of_what_we_have_is_listed() -> None:
    """Once."""
    assert [defect["number"] for defect in DEFECTS] == [number for number in range(1, 39) if number not in {31, 35}]
