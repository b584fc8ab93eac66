"""The job document and the identity of jobs."""

from __future__ import annotations

import pytest

from function.errors import InvalidRequestError
from function.job import JOB_ID, derived_job_id, parse_job_document, random_job_id


def test_the_same_event_is_the_same_job_and_framing_can_not_be_forged() -> None:
    """Moving a character from one part to the next gives another id."""
    assert derived_job_id("/a", "1") == derived_job_id("/a", "1")
    assert derived_job_id("/a", "1") != derived_job_id("/", "a1")
    assert JOB_ID.fullmatch(derived_job_id("/ä", "日本"))
    assert random_job_id() != random_job_id()


def test_a_document_becomes_a_job() -> None:
    """Every field arrives."""
    document = {"workflow": {"1": {}}, "label": "mine", "deadline_seconds": 5}
    job = parse_job_document(document, job_id="0" * 32)
    assert (job.workflow, job.label, job.deadline_seconds, job.stored) == ({"1": {}}, "mine", 5, True)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (None, "document: "),
        ([], "document: "),
        ({}, "workflow: Field required"),
        ({"workflow": []}, "workflow: Input should be a valid dictionary"),
        ({"workflow": {}, "colour": 1, "size": 2}, "colour: unknown field; size: unknown field"),
        ({"workflow": {}, "deadline_seconds": 0}, "deadline_seconds: "),
        ({"workflow": {}, "deadline_seconds": "5"}, "deadline_seconds: "),
        ({"workflow": {}, "label": "x" * 257}, "label: "),
    ],
)
def test_every_wrong_field_is_named(document: object, says: str) -> None:
    """One line, values not repeated."""
    with pytest.raises(InvalidRequestError) as error:
        parse_job_document(document, job_id="0" * 32)
    assert says in error.value.message
    assert "\n" not in error.value.message
