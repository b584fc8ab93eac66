"""Which uploads become which jobs, over every kind of store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from events import ObjectCreated
from function.errors import InputMissingError, InputRefusedError, InvalidRequestError, TemplateInvalidError
from function.storage.local import LocalStore
from function.templates.store import TemplateStore
from function.uploads import MAX_DOCUMENT_BYTES, UploadRules, split_store_url, upload_job_id
from tests.support.engine import case

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from function.storage.objects import ObjectStore


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """A directory of templates: `scale` has one image, `sdxl/refine` too, `empty` has none."""
    folder = tmp_path / "workflows"
    for name, workflow in (("scale", "02_load_scale_save"), ("sdxl/refine", "03_blur_invert_blend"), ("empty", "01")):
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(case("01_empty_save" if name == "empty" else workflow)))
    (folder / "broken.json").write_text("{")
    return folder


@pytest.fixture
def rules(store: ObjectStore, templates: Path) -> UploadRules:
    """The rules of one uploads store whose bucket holds the results too."""
    bucket, _ = split_store_url(store.url)
    results = f"s3://{bucket}/results" if store.url.startswith("s3:") else f"file:///somewhere/{bucket}-results"
    return UploadRules(store, results_url=results, templates=TemplateStore(LocalStore(f"file://{templates}")))


@pytest.fixture
def created(store: ObjectStore) -> Callable[..., ObjectCreated]:
    """A notice of an object below the uploads store."""
    bucket, prefix = split_store_url(store.url)

    def notice(key: str, *, below: bool = True, **changes: str) -> ObjectCreated:
        facts = {"bucket": bucket, "version_id": "", "sequencer": "01", "etag": "e", "literal_key": "", **changes}
        return ObjectCreated(key=prefix + key if below else key, size_bytes=None, dialect="other", **facts)  # type: ignore[arg-type]

    return notice


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://b", ("b", "")),
        ("s3://b/", ("b", "")),
        ("s3://b/a/c", ("b", "a/c/")),
        ("file:///data/store/uploads", ("uploads", "")),
        ("file:///data/store/uploads/", ("uploads", "")),
    ],
)
def test_a_store_has_a_bucket_and_a_prefix(url: str, expected: tuple[str, str]) -> None:
    """Those that notices name; a directory counts as a bucket of its own name."""
    assert split_store_url(url) == expected


@pytest.mark.parametrize(("key", "workflow"), [("scale/cat 1.png", "02"), ("sdxl/refine/2026/ä.png", "03")])
def test_an_object_in_a_templates_folder_runs_the_template(
    rules: UploadRules, created: Callable[..., ObjectCreated], key: str, workflow: str
) -> None:
    """Its key is the input; the deepest folder that is a template counts; the same upload is the same job."""
    del workflow
    notice = created(key)
    assert rules.find_key(notice) == key
    job = rules.parse(notice, key)
    assert job
    assert job == rules.parse(notice, key)
    assert key in [node["inputs"].get("image") for node in job.workflow.values()]
    assert (job.job_id, job.label, job.stored) == (upload_job_id(notice), key, True)
    assert upload_job_id(created(key, sequencer="02")) != job.job_id


@pytest.mark.parametrize("key", ["photo.png", "other/photo.png", "scale.png", "scale"])
def test_other_uploads_run_nothing(rules: UploadRules, created: Callable[..., ObjectCreated], key: str) -> None:
    """They are files that workflows name themselves."""
    assert rules.parse(created(key), key) is None


def test_notices_of_other_places_are_ignored(rules: UploadRules, created: Callable[..., ObjectCreated]) -> None:
    """Another bucket, another prefix, a name that leads out, and what the function itself has stored."""
    for notice in (
        created("scale/cat.png", bucket="other"),
        created("../results/outputs/scale/cat.png"),
        created("scale/../../secret.png"),
        created("scale/"),
        created(""),
    ):
        assert rules.find_key(notice) is None


def test_results_are_ignored_even_where_uploads_are_the_whole_bucket(store: ObjectStore, templates: Path) -> None:
    """No output can feed an input."""
    bucket, prefix = split_store_url(store.url)
    rules = UploadRules(store, results_url=store.url, templates=TemplateStore(LocalStore(f"file://{templates}")))
    notice = ObjectCreated(bucket, f"{prefix}scale/cat.png", "", "1", "", None, "aws:s3")
    assert rules.find_key(notice) is None


def test_a_key_of_an_unknown_sender_is_what_exists(
    rules: UploadRules, store: ObjectStore, created: Callable[..., ObjectCreated]
) -> None:
    """Decoded first; the literal one if only that is there."""
    _, prefix = split_store_url(store.url)
    notice = created("scale/a b.png", literal_key=f"{prefix}scale/a+b.png")
    assert rules.find_key(notice) == "scale/a b.png"
    store.put("scale/a+b.png", b"x")
    assert rules.find_key(notice) == "scale/a+b.png"
    store.put("scale/a b.png", b"x")
    assert rules.find_key(notice) == "scale/a b.png"


def test_an_uploaded_job_document_runs_as_it_is(
    rules: UploadRules, store: ObjectStore, created: Callable[..., ObjectCreated]
) -> None:
    """Wherever it lies."""
    store.put("any/job.json", json.dumps({"workflow": case("01_empty_save"), "label": "mine"}).encode())
    job = rules.parse(created("any/job.json"), "any/job.json")
    assert job
    assert (job.workflow, job.label) == (case("01_empty_save"), "mine")


@pytest.mark.parametrize(
    ("key", "content", "error"),
    [
        ("a.json", b"{", InvalidRequestError),
        ("a.json", b'{"workflow": {}, "x": 1}', InvalidRequestError),
        ("a.json", None, InputMissingError),
        ("a.json", b" " * (MAX_DOCUMENT_BYTES + 1), InputRefusedError),
        ("empty/cat.png", b"x", InvalidRequestError),
        ("broken/cat.png", b"x", TemplateInvalidError),
    ],
)
def test_an_upload_that_asks_for_what_can_not_be_is_a_clear_error(
    rules: UploadRules,
    store: ObjectStore,
    created: Callable[..., ObjectCreated],
    key: str,
    content: bytes | None,
    error: type[Exception],
) -> None:
    """It names what is wrong; the edge makes a failed job of it."""
    if content is not None:
        store.put(key, content)
    with pytest.raises(error):
        rules.parse(created(key), key)
