"""The job document and the identity of jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from function.errors import InvalidRequestError, TemplateMissingError
from function.job import JOB_ID, FilledTemplate, derived_job_id, parse_job_document, random_job_id

if TYPE_CHECKING:
    from collections.abc import Mapping


class OneTemplate:
    """A template called `cat`, whose workflow is the parameters it was given."""

    def fill(self, name: str, parameters: Mapping[str, Any], *, job_id: str) -> FilledTemplate:
        """Its values beside the job's id."""
        if name != "cat":
            raise TemplateMissingError(f"there is no template {name!r}")
        return FilledTemplate({"1": {**parameters, "job_id": job_id}}, dict(parameters), ("vae/a.safetensors",))


def test_the_same_event_is_the_same_job_and_framing_can_not_be_forged() -> None:
    """Moving a character from one part to the next gives another id."""
    assert derived_job_id("/a", "1") == derived_job_id("/a", "1")
    assert derived_job_id("/a", "1") != derived_job_id("/", "a1")
    assert JOB_ID.fullmatch(derived_job_id("/ä", "日本"))
    assert random_job_id() != random_job_id()


def test_a_document_becomes_a_job() -> None:
    """Every field arrives."""
    document = {"workflow": {"1": {}}, "label": "mine", "deadline_seconds": 5}
    job = parse_job_document(document, job_id="0" * 32, templates=OneTemplate())
    assert (job.workflow, job.label, job.deadline_seconds, job.stored) == ({"1": {}}, "mine", 5, True)


def test_a_job_with_a_webhook_outlives_its_request() -> None:
    """As an asynchronous one does, and no other."""
    for webhook, url in (({"url": "https://shop.example/hook"}, "https://shop.example/hook"), (None, "")):
        document = {"workflow": {}, "webhook": webhook}
        job = parse_job_document(document, job_id="0" * 32, templates=OneTemplate())
        assert ([target.url for target in job.webhooks], job.outlives_request) == ([url] if url else [], bool(url))
        assert replace(job, asynchronous=True).outlives_request


def test_a_template_becomes_the_workflow_that_it_stands_for() -> None:
    """Everything behind the edge sees a workflow, and the models that must be there besides."""
    document = {"template": "cat", "parameters": {"size": 2}, "label": "mine"}
    job = parse_job_document(document, job_id="0" * 32, templates=OneTemplate())
    assert (job.workflow, job.label) == ({"1": {"size": 2, "job_id": "0" * 32}}, "mine")
    assert job.preloads == ("vae/a.safetensors",)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (None, "document: "),
        ([], "document: "),
        ({}, "document: expected a workflow or the name of a template, one of the two"),
        ({"workflow": {}, "template": "cat"}, "one of the two"),
        ({"workflow": {}, "parameters": {}}, "parameters are a template's"),
        ({"parameters": {}}, "one of the two"),
        ({"template": "dog"}, "template: there is no template 'dog'"),
        ({"template": ""}, "template: "),
        ({"template": None}, "template: "),
        ({"template": "cat", "parameters": []}, "parameters: "),
        ({"workflow": []}, "workflow: Input should be a valid dictionary"),
        ({"workflow": {}, "colour": 1, "size": 2}, "colour: unknown field; size: unknown field"),
        ({"workflow": {}, "deadline_seconds": 0}, "deadline_seconds: "),
        ({"workflow": {}, "deadline_seconds": "5"}, "deadline_seconds: "),
        ({"workflow": {}, "label": "x" * 257}, "label: "),
        ({"workflow": {}, "webhook": "https://shop.example"}, "webhook: "),
        ({"workflow": {}, "webhook": {}}, "webhook.url: "),
        ({"workflow": {}, "webhook": {"url": "ftp://shop.example"}}, "webhook.url: "),
        ({"workflow": {}, "webhook": {"url": "https://me@shop.example"}}, "webhook.url: expected an http or https URL"),
        ({"workflow": {}, "webhook": {"url": "https://shop.example", "secret": "s"}}, "webhook.secret: unknown field"),
    ],
)
def test_every_wrong_field_is_named(document: object, says: str) -> None:
    """One line, values not repeated."""
    with pytest.raises(InvalidRequestError) as error:
        parse_job_document(document, job_id="0" * 32, templates=OneTemplate())
    assert says in error.value.message
    assert "\n" not in error.value.message
