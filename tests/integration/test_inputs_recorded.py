"""Input files of jobs that are run from their records: stored as the job's own before the sender is answered."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from function.credentials import parse_credentials
from function.errors import InputMissingError, InputRefusedError, InvalidRequestError, JobRunningError
from function.inputs.recording import OwnInputs
from function.jobs.records import JobRecords
from function.jobs.service import Jobs
from function.models.lookup import ModelLookup
from function.sources import parse_allow_list
from function.storage.https import FetchRules
from tests.support.https import HttpsServer, ServedFile
from tests.support.inputs import input_sources, job_of, load_image, staging
from tests.support.pictures import bomb, picture, to_base64

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from function.inputs.sources import InputSources
    from function.job import Job

CAT = picture()
SECRET = "s3cr3t"


class RecordingDispatcher:
    """Somebody to send jobs to, who only notes them."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def dispatch(self, job_id: str, **_: bool) -> None:
        """Note a job."""
        self.sent.append(job_id)

    def answer_by(self) -> str:
        """Never."""
        return ""


@pytest.fixture
def host() -> Iterator[HttpsServer]:
    """Somebody else's server with a picture."""
    with HttpsServer() as host:
        host.files["/cat.png"] = ServedFile(CAT, headers={})
        yield host


@pytest.fixture
def sources(tmp_path: Path) -> InputSources:
    """Sources that find every host on this machine."""
    return input_sources(tmp_path)


@pytest.fixture
def jobs(sources: InputSources) -> Jobs:
    """Jobs with records beside their files."""
    dispatcher: Any = RecordingDispatcher()
    return Jobs(
        JobRecords(sources.results, lease_seconds=20),
        OwnInputs(sources, deadline_seconds=30),
        dispatcher=dispatcher,
        sweep=None,
        on_ended=lambda _job_id: None,
        on_stop=lambda: None,
    )


def bearer(host: HttpsServer) -> tuple[Any, ...]:
    """The credential of a request for a host."""
    return parse_credentials([{"url_pattern": host.url("/**"), "auth": {"type": "bearer", "token": SECRET}}])


def keys(sources: InputSources) -> list[str]:
    """Everything that was stored."""
    return [info.key for info in sources.results.list_objects()]


def content(sources: InputSources, job: Job) -> bytes:
    """The file of a job's one input, brought by whoever runs it."""
    with staging(job, sources) as staged:
        return (sources.input_dir / staged["1"]["inputs"]["image"]).read_bytes()


def test_a_file_of_another_server_becomes_the_jobs_own(jobs: Jobs, sources: InputSources, host: HttpsServer) -> None:
    """Query and credentials are used once, and are in no record; the job needs the server no more."""
    given = {"asynchronous": True, "credentials": bearer(host)}
    job = job_of(load_image(host.url(f"/cat.png?key={SECRET}")), **given)
    assert jobs.submit(job)
    assert host.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    host.files.clear()
    recorded = jobs.records.load(job.job_id)
    assert recorded.credentials == ()
    assert recorded.workflow["1"]["inputs"]["image"].endswith(f"/inputs/{job.job_id}/0/cat.png")
    assert content(sources, recorded) == CAT
    for key in keys(sources):
        assert SECRET.encode() not in sources.results.get(key, max_bytes=100_000)


def test_whatever_comes_inside_a_workflow_becomes_the_jobs_own(jobs: Jobs, sources: InputSources) -> None:
    """Lists of files too; names stay what they are."""
    sources.uploads.put("up.png", CAT)
    workflow = load_image([to_base64(CAT), "up.png"], "VHS_LoadImages", "directory") | {
        "2": load_image(f"data:image/png;base64,{to_base64(CAT)}")["1"],
        "3": load_image("up.png")["1"],
    }
    job = job_of(workflow, asynchronous=True)
    jobs.submit(job)
    recorded = jobs.records.load(job.job_id)
    own = f"inputs/{job.job_id}/"
    first, second = recorded.workflow["1"]["inputs"]["directory"]
    assert (own in first, second) == (True, "up.png")
    assert own in recorded.workflow["2"]["inputs"]["image"]
    assert recorded.workflow["3"]["inputs"]["image"] == "up.png"
    with staging(recorded, sources) as staged:
        folder = sources.input_dir / staged["1"]["inputs"]["directory"]
        assert [path.read_bytes() for path in sorted(folder.iterdir())] == [CAT, CAT]


@pytest.mark.parametrize(
    ("value", "error"),
    [("/none.png", InputMissingError), ("bomb", InputRefusedError), ("data:image/png;base64,c@t=", InputRefusedError)],
)
def test_what_is_wrong_with_an_input_is_the_answer(
    jobs: Jobs, sources: InputSources, host: HttpsServer, value: str, error: type[Exception]
) -> None:
    """With its place; nothing was recorded, and of the inputs before it nothing was stored."""
    value = host.url(value) if value.startswith("/") else value.replace("bomb", to_base64(bomb()))
    workflow = {"0": load_image(to_base64(CAT))["1"], **load_image(value)}
    with pytest.raises(error) as caught:
        jobs.submit(job_of(workflow, asynchronous=True))
    assert caught.value.details["location"] == "prompt.1.inputs.image"  # type: ignore[attr-defined]
    assert keys(sources) == []


def test_a_job_that_is_submitted_again_is_not_fetched_again(
    jobs: Jobs, sources: InputSources, host: HttpsServer
) -> None:
    """It has its files."""
    job = job_of(load_image(host.url("/cat.png")), asynchronous=True)
    assert [jobs.submit(job), jobs.submit(job)] == [True, False]
    assert len(host.requests) == 1
    assert content(sources, jobs.records.load(job.job_id)) == CAT


def test_a_job_that_is_repeated_has_copies_of_its_own_files(jobs: Jobs, sources: InputSources) -> None:
    """The first one's may be deleted."""
    job = job_of(load_image(to_base64(CAT)), asynchronous=True)
    jobs.submit(job)
    again = jobs.records.load(jobs.repeat(job.job_id))
    for info in list(sources.results.list_objects(f"inputs/{job.job_id}/")):
        sources.results.delete(info.key)
    assert content(sources, again) == CAT


def test_the_files_of_a_job_whose_sender_waits_are_fetched_when_it_runs(
    jobs: Jobs, sources: InputSources, host: HttpsServer
) -> None:
    """Its record says where they came from, without what may be a secret."""
    url = host.url("/cat.png")
    job = job_of(load_image(f"{url}?key={SECRET}".replace("://", f"://me:{SECRET}@")), credentials=bearer(host))
    jobs.submit(job)
    assert host.requests == []
    recorded = sources.results.get(f"jobs/{job.job_id}/job.json", max_bytes=100_000).decode()
    assert SECRET not in recorded
    assert json.loads(recorded)["workflow"]["1"]["inputs"]["image"] == url.replace("://", "://...@") + "?..."
    assert content(sources, job) == CAT


def test_a_refused_job_is_recorded_without_its_files(jobs: Jobs, host: HttpsServer) -> None:
    """It is not run, and nothing is fetched for it."""
    job = job_of(load_image(host.url("/none.png")), asynchronous=True)
    jobs.submit(job, refusal=InputMissingError("gone"))
    assert jobs.records.load(job.job_id).workflow == load_image("")
    assert host.requests == []


def test_a_model_that_needs_a_requests_credentials_can_not_wait(
    jobs: Jobs, sources: InputSources, host: HttpsServer
) -> None:
    """The line names node and remedy; no input is fetched for a job that can't be."""
    loader = load_image(host.url("/m.safetensors"), "CheckpointLoaderSimple", "ckpt_name")["1"]
    workflow = load_image(host.url("/cat.png")) | {"4": loader}
    with pytest.raises(
        InvalidRequestError, match=r"node 4: input ckpt_name: .*MODEL_URL_CREDENTIALS.*POST /download"
    ) as error:
        jobs.submit(job_of(workflow, asynchronous=True, credentials=bearer(host)))
    assert error.value.details == {"location": "prompt.4.inputs"}
    assert SECRET not in error.value.message
    assert (keys(sources), host.requests) == ([], [])


def test_a_model_takes_the_credentials_of_the_request_before_the_settings(sources: InputSources) -> None:
    """Those that are meant for other URLs may be meant for what it redirects to, and a file by name has none."""
    operators = parse_credentials([{"url_pattern": "s3://bucket/**", "auth": ACCOUNT}])
    rules = FetchRules(allow=parse_allow_list("hub.example,s3://bucket"), credentials=operators)
    lookup = ModelLookup(sources.uploads, rules=rules)
    given = parse_credentials(
        [
            {"url_pattern": "https://hub.example/**", "auth": {"type": "bearer", "token": SECRET}},
            {"url_pattern": "https://cdn.example/**", "auth": {"type": "bearer", "token": "other"}},
        ]
    )
    values = ("https://hub.example/m.safetensors", "s3://bucket/m.safetensors", "m.safetensors")
    workflow = {
        str(number): load_image(value, "CheckpointLoaderSimple", "ckpt_name")["1"]
        for number, value in enumerate(values)
    }
    references = lookup.references(workflow, credentials=given)
    assert [reference.credentials for reference in references] == [given, operators, ()]
    assert [reference.private for reference in references] == [True, False, False]
    assert SECRET not in repr(references)


ACCOUNT = {"type": "s3", "access_key_id": "key", "secret_access_key": SECRET}


@pytest.mark.parametrize("url", ["https://host.test/cat.png?key=1", "https://me:word@host.test/cat.png"])
def test_a_record_without_its_secrets_is_not_run(jobs: Jobs, url: str) -> None:
    """What is left of the URL would fail for a reason that is none."""
    job = job_of(load_image(url))
    jobs.submit(job)
    for run in (jobs.resume, jobs.repeat):
        with pytest.raises(InvalidRequestError, match="were not recorded: send the job itself again"):
            run(job.job_id)


def test_a_job_that_is_refused_later_is_not_failed(jobs: Jobs, sources: InputSources) -> None:
    """What was recorded once as a job that can be run is that job; one that never could stays refused."""
    good, bad = job_of(load_image("up.png"), asynchronous=True), job_of({}, asynchronous=True)
    sources.uploads.put("up.png", CAT)
    assert jobs.submit(good)
    for job in (good, bad, bad):
        jobs.submit(job, refusal=InputMissingError("it was deleted"))
    assert jobs.records.result(good.job_id) is None
    assert jobs.refuse(replace(good, workflow={}), InputMissingError("it was deleted")) is None
    assert jobs.records.state(good.job_id).attempts == ()
    refused = jobs.records.result(bad.job_id)
    assert refused is not None
    assert (refused.error or {})["code"] == "input_missing"
    assert jobs.refuse(bad, InputMissingError("again")) == refused


def test_a_job_that_another_pod_holds_is_not_refused(jobs: Jobs) -> None:
    """Whatever its pod makes of it counts."""
    job = job_of({}, asynchronous=True)
    jobs.records.submit(job)
    jobs.records.claim(job.job_id, new=True)
    with pytest.raises(JobRunningError):
        jobs.refuse(job, InputMissingError("it was deleted"))
    assert jobs.records.result(job.job_id) is None
