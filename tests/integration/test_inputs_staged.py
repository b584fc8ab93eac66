"""Input files from stores, from the workflow and from the input directory, into the directory of a job."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from function.credentials import S3Account
from function.errors import (
    DeadlineExceededError,
    InputMissingError,
    InputRefusedError,
    JobCancelledError,
    StorageUnavailableError,
)
from function.inputs.errand import Arrival, Errand
from function.inputs.remote import RemoteFiles, copy_object
from function.inputs.staging import remove_strays
from function.job import random_job_id
from function.storage import open_store
from function.validation.definitions import parse_definitions
from tests.support.https import HttpsServer, ServedFile
from tests.support.inputs import RULES, input_sources, job_of, load_image, staging
from tests.support.models import SteeredStore
from tests.support.pictures import bomb, picture, to_base64

if TYPE_CHECKING:
    from pathlib import Path

    from function.inputs.sources import InputSources
    from function.storage.objects import ObjectStore
    from function.storage.s3 import S3Store
    from function.workflow import Workflow

CAT = picture()
SECRET = "s3cr3t"


@pytest.fixture
def sources(tmp_path: Path) -> InputSources:
    """Sources below a fresh directory."""
    return input_sources(tmp_path)


def stage(workflow: Workflow, sources: InputSources, **changes: Any) -> None:
    """Stage the inputs of a workflow, for an error that this ends in."""
    with staging(job_of(workflow), sources, **changes):
        pass


def staged_value(sources: InputSources, value: Any, **loader: str) -> tuple[str, bytes]:
    """The value that an input gets, and the file that it names; afterwards the input directory is as it was."""
    before = sorted(sources.input_dir.rglob("*"))
    job = job_of(load_image(value, **loader))
    with staging(job, sources) as staged:
        name = staged["1"]["inputs"][loader.get("name", "image")]
        content = (sources.input_dir / name).read_bytes()
    assert sorted(sources.input_dir.rglob("*")) == before
    return name.replace(job.job_id, "JOB"), content


def refusal(sources: InputSources, value: Any, **loader: str) -> str:
    """The line that the staging of a value ends in; nothing is left behind."""
    with pytest.raises((InputRefusedError, InputMissingError)) as error:
        stage(load_image(value, **loader), sources)
    assert error.value.details["location"] == f"prompt.1.inputs.{loader.get('name', 'image')}"
    assert error.value.status == 400
    assert list(sources.input_dir.iterdir()) == []
    return error.value.message


@pytest.mark.parametrize("suffix", ["", " [input]"])
def test_a_name_is_a_key_under_uploads_url(tmp_path: Path, store: ObjectStore, suffix: str) -> None:
    """The file is in a directory of the job, and goes with it."""
    store.put("cats/ä b.png", CAT)
    sources = input_sources(tmp_path, store)
    assert staged_value(sources, f"cats/ä b.png{suffix}") == ("JOB/0/ä b.png", CAT)


def test_an_upload_may_be_named_by_its_url(tmp_path: Path, store: ObjectStore) -> None:
    """Spaces and other letters stand in it as they are in the key."""
    store.put("cats/ä b+%20.png", CAT)
    assert staged_value(input_sources(tmp_path, store), store.object_url("cats/ä b+%20.png"))[1] == CAT


def test_an_output_may_be_an_input(sources: InputSources) -> None:
    """By the URL that its job told; records of jobs and their own inputs may not."""
    for key in ("outputs/j/1/a.png", "jobs/j/job.png", "inputs/j/a.png"):
        sources.results.put(key, CAT)
    assert staged_value(sources, sources.results.object_url("outputs/j/1/a.png"))[1] == CAT
    for key in ("jobs/j/job.png", "inputs/j/a.png"):
        assert "this URL can't be used" in refusal(sources, sources.results.object_url(key))


def test_a_name_that_only_the_input_directory_has_stays(sources: InputSources) -> None:
    """What ComfyUI or the image brought is an input; an upload of that name comes first."""
    (sources.input_dir / "sub").mkdir()
    (sources.input_dir / "sub" / "example.png").write_bytes(b"theirs")
    assert staged_value(sources, "sub/example.png") == ("sub/example.png", b"theirs")
    sources.uploads.put("sub/example.png", CAT)
    assert staged_value(sources, "sub/example.png") == ("JOB/0/example.png", CAT)


def test_files_of_other_jobs_are_no_inputs(sources: InputSources) -> None:
    """Whoever knows a job's id does not get its files by it."""
    other = sources.input_dir / random_job_id()
    other.mkdir()
    (other / "a.png").write_bytes(CAT)
    with pytest.raises(InputMissingError), staging(job_of(load_image(f"{other.name}/a.png")), sources):
        pass
    assert (other / "a.png").exists()


@pytest.mark.parametrize("value", ["data:image/png;base64,{}", "{}"])
def test_a_picture_may_come_inside_the_workflow(sources: InputSources, value: str) -> None:
    """As a data URI or as bare base64, for which a JPEG's leading slash is no path."""
    for file_format, name in (("PNG", "inline.png"), ("JPEG", "inline.jpg")):
        data = picture(file_format)
        text = value.format(to_base64(data))
        assert staged_value(sources, text) == (f"JOB/0/{name}", data)
        assert staged_value(sources, text, class_type="Custom") == (f"JOB/0/{name}", data)


def test_a_data_uri_is_a_file_for_any_input(sources: InputSources) -> None:
    """Its media type gives the extension where its content doesn't."""
    uri = "data:image/png;charset=binary;base64,Y2F0"
    assert staged_value(sources, uri, class_type="Custom", name="picture") == ("JOB/0/inline.png", b"cat")


def test_one_file_for_two_nodes_is_brought_once(sources: InputSources) -> None:
    """Files of one name from two places don't meet."""
    for key in ("a/x.png", "b/x.png"):
        sources.uploads.put(key, key.encode())
    values = ("a/x.png", "b/x.png", "a/x.png")
    workflow = {str(number): load_image(value)["1"] for number, value in enumerate(values)}
    with staging(job_of(workflow), sources) as staged:
        names = [staged[node]["inputs"]["image"] for node in "012"]
        assert names[0] == names[2] != names[1]
        assert [(sources.input_dir / name).read_bytes() for name in names[:2]] == [b"a/x.png", b"b/x.png"]


def test_a_list_of_images_becomes_a_folder_in_their_order(sources: InputSources) -> None:
    """Whatever each of them is; a node that takes paths gets a path."""
    sources.uploads.put("z.png", CAT)
    (sources.input_dir / "example.png").write_bytes(b"theirs")
    values = ["z.png", to_base64(picture("JPEG")), "example.png", "z.png"]
    for class_type in ("VHS_LoadImages", "VHS_LoadImagesPath"):
        job = job_of(load_image(values, class_type, "directory"))
        with staging(job, sources) as staged:
            name = staged["1"]["inputs"]["directory"]
            files = sorted((sources.input_dir / name).iterdir())
            assert [file.name for file in files] == [
                "00000-z.png",
                "00001-inline.jpg",
                "00002-example.png",
                "00003-z.png",
            ]
            assert name == (
                str(sources.input_dir / job.job_id / "0") if class_type.endswith("Path") else f"{job.job_id}/0"
            )
    with pytest.raises(InputMissingError) as error:
        stage(load_image(["no.png"], "VHS_LoadImages", "directory"), sources)
    assert error.value.message.startswith("Failed to download images for node 1: no object")
    assert error.value.details == {"location": "prompt.1.inputs.directory"}


def test_a_node_that_takes_paths_gets_one(sources: InputSources) -> None:
    """Because it looks for relative ones in the engine's own directory."""
    sources.uploads.put("a.mp4", b"film")
    job = job_of(load_image("a.mp4", "VHS_LoadVideoPath", "video"))
    with staging(job, sources) as staged:
        assert staged["1"]["inputs"]["video"] == str(sources.input_dir / job.job_id / "0" / "a.mp4")


def test_what_an_unknown_node_calls_image_is_brought_if_it_is_a_file(sources: InputSources) -> None:
    """A name of an upload is; a word, a name that nobody has, and a choice that the node lists are left alone."""
    for key in ("a.png", "red", "listed.png"):
        sources.uploads.put(key, CAT)
    assert staged_value(sources, "a.png", class_type="Custom") == ("JOB/0/a.png", CAT)
    declared = {"Custom": {"input": {"required": {"image": [["listed.png"]]}}}}
    for value in ("red", "none.png", "listed.png", "a long text about a cat", "asset://42"):
        workflow = load_image(value, "Custom")
        with staging(job_of(workflow), sources, definitions=parse_definitions(declared, {})) as staged:
            assert staged == workflow


def test_links_and_other_texts_are_left_alone(sources: InputSources) -> None:
    """A text that looks like a file name is none."""
    workflow = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "cat.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": ["1", 0]}},
    }
    with staging(job_of(workflow), sources) as staged:
        assert staged == workflow
        assert list(sources.input_dir.iterdir()) == []


def test_a_name_may_be_as_long_as_a_key(sources: InputSources) -> None:
    """The file gets a name that the file system takes, with the extension."""
    name = "ä" * 120 + ".png"
    sources.uploads.put(name, CAT)
    value, content = staged_value(sources, name)
    assert (content, value.endswith("ä.png"), len(value.encode()) < 255) == (CAT, True, True)


def test_a_missing_input_names_node_and_url(tmp_path: Path, store: ObjectStore) -> None:
    """And says what to do."""
    line = refusal(input_sources(tmp_path, store), "no.png")
    assert line.startswith(f"Failed to download image for node 1: no object {store.url}/no.png")


def test_a_missing_input_may_have_a_name_that_no_file_system_takes(tmp_path: Path, s3_store: S3Store) -> None:
    """Keys of S3 may be so long; what is not there is the sender's mistake, however it is called."""
    assert "upload it first" in refusal(input_sources(tmp_path, s3_store), "x" * 300 + ".png")


@pytest.mark.parametrize(
    "value",
    [
        *("../a.png", "/a.png", "/etc/passwd", "./a.png", "a/../../b.png", "a\\b.png", "C:/a.png", "", "x" * 5_000),
        *("a.png [output]", "a.png [temp]", "file:///etc/passwd", "ftp://host/a.png", "s3://other/a.png"),
        *("data:image/png,cat", "data:image/png;base64,c@t"),
    ],
)
def test_paths_other_places_and_broken_data_are_refused(sources: InputSources, value: str) -> None:
    """No path, no other place, no half-understood data; a long value is not repeated."""
    assert len(refusal(sources, value)) < 300


@pytest.mark.parametrize("value", ["/etc/passwd", "../a.png", "./a.png", "a.png [output]"])
def test_an_unknown_nodes_image_leads_nowhere_else_either(sources: InputSources, value: str) -> None:
    """A path is refused there, too."""
    assert "not a relative file name" in refusal(sources, value, class_type="Custom")


@pytest.mark.parametrize("inline", [True, False])
def test_a_file_that_is_too_large_is_refused(sources: InputSources, tmp_path: Path, *, inline: bool) -> None:
    """By the setting that the line names."""
    data = picture(size=(200, 200)) + bytes(2_000)
    sources.uploads.put("a.png", data)
    limited = input_sources(tmp_path, max_bytes=1_000)
    assert "MAX_INPUT_SIZE_MB" in refusal(limited, to_base64(data) if inline else "a.png")


def test_the_files_of_a_job_are_limited_together(sources: InputSources, tmp_path: Path) -> None:
    """To four times the largest."""
    for number in range(5):
        sources.uploads.put(f"{number}.png", bytes(900))
    limited = input_sources(tmp_path, max_bytes=1_000)
    workflow = {str(number): load_image(f"{number}.png")["1"] for number in range(5)}
    with pytest.raises(InputRefusedError, match="together"), staging(job_of(workflow), limited):
        pass
    with staging(job_of(dict(list(workflow.items())[:4])), limited):
        pass


def test_an_image_that_is_small_as_a_file_and_huge_as_pixels_is_refused(sources: InputSources, tmp_path: Path) -> None:
    """However it comes; MAX_PIXELS sets a lower limit than the engine's own; other files are not judged by it."""
    sources.uploads.put("bomb.png", bomb())
    assert "pixels" in refusal(sources, "bomb.png")
    assert "pixels" in refusal(sources, f"data:image/png;base64,{to_base64(bomb())}")
    limited = input_sources(tmp_path, max_pixels=47)
    assert "has 48 pixels; 47 is the most (MAX_PIXELS)" in refusal(limited, to_base64(CAT))
    assert staged_value(limited, "bomb.png", class_type="LoadVideo", name="file")[1] == bomb()


def test_a_header_without_an_end_is_not_read_into_memory(sources: InputSources) -> None:
    """A PNG whose first chunk is a gigabyte long is refused; a file that is no image is the engine's business."""
    path = sources.input_dir.parent / "uploads" / "endless.png"
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + (2**30).to_bytes(4, "big") + b"zTXt")
        file.truncate(2**30)
    assert "header goes on" in refusal(sources, "endless.png")
    sources.uploads.put("text.png", b"a text\n" * 100)
    assert staged_value(sources, "text.png")[1] == b"a text\n" * 100


def test_a_disk_that_can_not_be_written_to_is_worth_another_try(sources: InputSources) -> None:
    """The job is not at fault."""
    (sources.input_dir / "x").touch()
    broken = input_sources(sources.input_dir.parent, input_dir=sources.input_dir / "x")
    with pytest.raises(StorageUnavailableError, match="input directory"):
        stage(load_image(to_base64(CAT)), broken)


def assert_nobody_brings_files() -> None:
    """No thread of a job is left, or it is about to end."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("inputs")]
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_the_deadline_of_the_job_holds(tmp_path: Path) -> None:
    """A server that sends nothing more can't hold it, nor a thread of it, however long it may be silent."""
    hold, sources = threading.Event(), input_sources(tmp_path, read_seconds=3600.0)
    with HttpsServer() as host:
        host.files["/a.png"] = ServedFile(CAT, hold=hold)
        job = job_of(load_image(host.url("/a.png")))
        with pytest.raises(DeadlineExceededError), staging(job, sources, deadline=time.monotonic() + 0.5):
            pass
        assert_nobody_brings_files()
        hold.set()
    assert list(sources.input_dir.iterdir()) == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_deadline_holds_for_a_server_that_never_answers(tmp_path: Path, scheme: str) -> None:
    """Neither to a request nor to the handshake of TLS."""
    patient = input_sources(tmp_path, connect_seconds=3600.0, read_seconds=3600.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        workflow = load_image(f"{scheme}://models.example:{silent.getsockname()[1]}/a.png")
        with pytest.raises(DeadlineExceededError):
            stage(workflow, patient, deadline=time.monotonic() + 0.5)
        assert_nobody_brings_files()


def test_who_comes_too_late_overwrites_nothing(tmp_path: Path) -> None:
    """A second delivery of the job may have the file by then; here the deadline passes with the first question."""
    path = tmp_path / "a.png"
    path.write_bytes(CAT)
    store = SteeredStore(tmp_path / "uploads")
    store.put("a.png", b"late")
    errand = Errand(max_bytes=0, deadline=1, clock=lambda: len(store.heads))
    with pytest.raises(DeadlineExceededError):
        copy_object(store, "a.png", path, Arrival(errand))
    with HttpsServer() as host:
        host.files["/a.png"] = ServedFile(b"late")
        errand = Errand(max_bytes=0, deadline=1, clock=lambda: len(host.requests))
        with pytest.raises(DeadlineExceededError):
            RemoteFiles(RULES).fetch(host.url("/a.png"), path, credentials=(), arrival=Arrival(errand))
    assert path.read_bytes() == CAT


def test_a_cancelled_job_does_not_wait_for_its_files(sources: InputSources) -> None:
    """What observes its progress ends it; nothing is written any more, and nothing is left."""
    hold = threading.Event()
    with HttpsServer() as host:
        host.files["/a.png"] = ServedFile(CAT, hold=hold)

        def on_progress(_progress: object) -> None:
            if host.requests:
                raise JobCancelledError("cancelled")

        with pytest.raises(JobCancelledError):
            stage(load_image(host.url("/a.png")), sources, on_progress=on_progress)
        assert not hold.is_set()
        hold.set()
    assert list(sources.input_dir.iterdir()) == []


def test_directories_of_killed_jobs_go_at_the_start(sources: InputSources) -> None:
    """What else lies in the input directory is not ours."""
    for name in (random_job_id(), "3d", "a" * 31):
        (sources.input_dir / name / "sub").mkdir(parents=True)
    remove_strays(sources.input_dir)
    assert sorted(path.name for path in sources.input_dir.iterdir()) == ["3d", "a" * 31]
    remove_strays(sources.input_dir / "missing")


def test_a_store_that_does_not_answer_is_worth_another_try(tmp_path: Path) -> None:
    """Its files may be there when the job is delivered again."""
    nowhere = S3Account("key", SECRET, endpoint="http://127.0.0.1:1", region="us-east-1")
    uploads = open_store("s3://bucket", account=nowhere, attempts=1)
    with pytest.raises(StorageUnavailableError):
        stage(load_image("a.png"), input_sources(tmp_path, uploads))
