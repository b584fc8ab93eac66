"""OpenAI's images API, asked by OpenAI's own client."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import openai
import pytest
import urllib3
from PIL import Image

from tests.e2e.test_main_job import slow_workflow
from tests.e2e.test_templates import put_template
from tests.support.engine import DATA
from tests.support.function_process import Background, functions
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.function_process import FunctionFactory, FunctionProcess
    from tests.support.storage import S3Server

TOKEN = "a-token-for-openai-clients"
PHOTO = (DATA / "cases" / "in_64x48.png").read_bytes()


def flat_template() -> dict[str, Any]:
    """A picture of one colour; the words are kept in a node that nothing depends on."""
    return {
        "description": "One colour.",
        "parameters": {
            "prompt": {"input": "1.value", "type": "string"},
            "width": {"input": "2.width", "type": "integer", "default": 32, "minimum": 8, "maximum": 256},
            "height": {"input": "2.height", "type": "integer", "default": 32, "minimum": 8, "maximum": 256},
            "n": {"input": "2.batch_size", "type": "integer", "default": 1, "minimum": 1, "maximum": 4},
            "seed": {"input": "2.color", "type": "integer", "default": "random", "minimum": 0, "maximum": 0xFFFFFF},
        },
        "workflow": {
            "1": {"class_type": "PrimitiveString", "inputs": {"value": ""}},
            "2": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 0}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "flat"}},
            "4": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        },
    }


def larger_template(*, mask: bool = False) -> dict[str, Any]:
    """A photo, twice as large; with a mask, the mask as a picture."""
    workflow: dict[str, Any] = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {
            "class_type": "ImageScaleBy",
            "inputs": {"image": ["1", 0], "upscale_method": "nearest-exact", "scale_by": 2.0},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "larger"}},
    }
    parameters = {"photo": {"input": "1.image", "type": "image"}}
    if mask:
        workflow["4"] = {"class_type": "LoadImageMask", "inputs": {"image": "m.png", "channel": "alpha"}}
        workflow["5"] = {"class_type": "MaskToImage", "inputs": {"mask": ["4", 0]}}
        workflow["2"]["inputs"]["image"] = ["5", 0]
        parameters["mask"] = {"input": "4.image", "type": "mask"}
        parameters["image"] = parameters.pop("photo")
    return {"parameters": parameters, "workflow": workflow}


def put_templates(function: FunctionProcess) -> None:
    """The templates of these tests."""
    put_template(function, "flat", flat_template())
    put_template(function, "photo/larger", larger_template())
    put_template(function, "masked", larger_template(mask=True))


def client_of(function: FunctionProcess, token: str = TOKEN) -> openai.OpenAI:
    """OpenAI's client; it tries nothing twice, so that an error is the first answer."""
    return openai.OpenAI(base_url=f"{function.url}/v1", api_key=token, max_retries=0)


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionProcess]:
    """A function with templates and a token."""
    with functions(tmp_path_factory.mktemp("openai")) as start:
        process = start(API_TOKENS=TOKEN, DEADLINE_SECONDS="60")
        put_templates(process)
        yield process


@pytest.fixture(scope="module")
def client(function: FunctionProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's client of that function."""
    with client_of(function) as made:
        yield made


def picture(data: str | None) -> Image.Image:
    """An image from its base64."""
    assert data
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_models_are_the_templates(client: openai.OpenAI) -> None:
    """Listed, and one by one, also from a folder."""
    assert [model.id for model in client.models.list()] == ["flat", "masked", "photo/larger"]
    assert client.models.retrieve("photo/larger").id == "photo/larger"


@pytest.mark.parametrize(("wanted", "found"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_images_come_in_the_format_that_is_asked_for(client: openai.OpenAI, wanted: Any, found: str) -> None:
    """Whatever the template saves."""
    answer = client.images.generate(
        model="flat", prompt="x", response_format="b64_json", output_format=wanted, output_compression=50
    )
    assert answer.data
    assert picture(answer.data[0].b64_json).format == found


@pytest.mark.parametrize("field", [{"output_format": "gif"}, {"output_format": "webp", "output_compression": 101}])
def test_a_format_that_is_none_is_refused(client: openai.OpenAI, field: dict[str, Any]) -> None:
    """Naming the field."""
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(model="flat", prompt="x", extra_body=field)
    assert error.value.param == list(field)[-1]


def test_an_image_is_made_from_words(client: openai.OpenAI) -> None:
    """Size and seed are parameters by name; the answer carries the file."""
    answer = client.images.generate(
        model="flat", prompt="red", size="64x48", response_format="b64_json", extra_body={"seed": 0xFF0000}
    )
    (image,) = answer.data or ()
    made = picture(image.b64_json)
    assert (made.size, made.convert("RGB").getpixel((0, 0))) == ((64, 48), (255, 0, 0))
    assert answer.created > 1_700_000_000


def test_an_image_is_a_link_unless_asked_otherwise(function: FunctionProcess, client: openai.OpenAI) -> None:
    """It is stored, and the link leads to it."""
    (image,) = client.images.generate(model="flat", prompt="x").data or ()
    assert image.url
    assert image.url.startswith(f"{function.url}/outputs/")
    answer = function._request(
        "GET", image.url.removeprefix(function.url), headers={"Authorization": f"Bearer {TOKEN}"}
    )
    assert Image.open(io.BytesIO(answer.body)).size == (32, 32)


def test_a_link_to_s3_opens_without_a_token(
    function_factory: FunctionFactory, s3_server: S3Server, s3_bucket: str
) -> None:
    """It is presigned."""
    results = f"s3://{s3_bucket}/openai/results"
    function = function_factory(**s3_server.environ, RESULTS_URL=results, API_TOKENS=TOKEN)
    put_templates(function)
    with client_of(function) as client:
        (image,) = client.images.generate(model="flat", prompt="x").data or ()
    assert image.url
    assert "X-Amz-Signature=" in image.url
    answer = urllib3.request("GET", image.url)
    assert (answer.status, Image.open(io.BytesIO(answer.data)).size) == (200, (32, 32))


def test_a_link_leads_to_where_clients_reach_s3(
    function_factory: FunctionFactory, s3_server: S3Server, s3_bucket: str
) -> None:
    """The function itself may reach it by another name, which is none to them; the signature is for theirs."""
    public = s3_server.endpoint_url.replace("127.0.0.1", "localhost")
    results = f"s3://{s3_bucket}/public/results"
    function = function_factory(**s3_server.environ, RESULTS_URL=results, LINK_ENDPOINT_URL=public)
    put_templates(function)
    with client_of(function) as client:
        (image,) = client.images.generate(model="flat", prompt="x").data or ()
    key = (image.url or "").partition("/outputs/")[2].partition("?")[0]
    moved = function.get(f"/outputs/{key}")
    assert moved.status == 302
    for link in (image.url or "", moved.headers["location"]):
        assert link.startswith(f"{public}/")
        answer = urllib3.request("GET", link)
        assert (answer.status, Image.open(io.BytesIO(answer.data)).size) == (200, (32, 32))


def test_several_images_are_made_at_a_time(client: openai.OpenAI) -> None:
    """`n` is the template's batch."""
    answer = client.images.generate(model="flat", prompt="x", n=3, size="auto", response_format="b64_json")
    assert [picture(image.b64_json).size for image in answer.data or ()] == [(32, 32)] * 3


def test_what_only_tunes_is_ignored_where_the_template_has_no_parameter(client: openai.OpenAI) -> None:
    """Clients send it always."""
    answer = client.images.generate(
        model="flat", prompt="x", quality="high", background="opaque", user="u", response_format="b64_json"
    )
    assert len(answer.data or ()) == 1


def test_an_image_is_edited(client: openai.OpenAI) -> None:
    """The file goes into the template's only image, whatever that is called."""
    answer = client.images.edit(model="photo/larger", image=PHOTO, prompt="", response_format="b64_json")
    assert [picture(image.b64_json).size for image in answer.data or ()] == [(128, 96)]


def test_a_mask_is_what_is_transparent(client: openai.OpenAI) -> None:
    """OpenAI's meaning of a mask is the one of LoadImageMask's alpha channel."""
    mask = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    mask.putpixel((3, 3), (0, 0, 0, 0))
    stream = io.BytesIO()
    mask.save(stream, "PNG")
    answer = client.images.edit(
        model="masked", image=("p.png", PHOTO), mask=("m.png", stream.getvalue()), prompt="", response_format="b64_json"
    )
    (image,) = answer.data or ()
    made = picture(image.b64_json).convert("L")
    assert made.size == (16, 16)
    assert (made.getpixel((6, 6)), made.getpixel((0, 0))) == (255, 0)


def test_an_image_is_varied(client: openai.OpenAI) -> None:
    """An edit without words; the client calls the route deprecated and still has it."""
    with pytest.deprecated_call():
        answer = client.images.create_variation(model="photo/larger", image=PHOTO, response_format="b64_json")
    assert [picture(image.b64_json).size for image in answer.data or ()] == [(128, 96)]


@pytest.mark.parametrize(
    ("body", "kind", "param", "says"),
    [
        ({"model": "none"}, openai.NotFoundError, "model", "there is no template 'none'"),
        ({"prompt": ""}, openai.BadRequestError, None, "prompt: required"),
        ({"size": "64by64"}, openai.BadRequestError, None, "size"),
        ({"size": "4096x64"}, openai.BadRequestError, None, "width: expected a whole number from 8 to 256"),
        ({"n": 99}, openai.BadRequestError, None, "n: expected a whole number from 1 to 4"),
        ({"extra_body": {"steps": 3}}, openai.BadRequestError, "steps", "has no parameter 'steps'"),
        ({"stream": True}, openai.BadRequestError, "stream", "images are not streamed"),
        ({"partial_images": 2}, openai.BadRequestError, "partial_images", "images are not streamed"),
        ({"model": "photo/larger"}, openai.BadRequestError, "prompt", "has no parameter 'prompt'"),
    ],
)
def test_what_can_not_be_done_is_an_error_of_the_client(
    client: openai.OpenAI, body: dict[str, Any], kind: type[openai.APIStatusError], param: str | None, says: str
) -> None:
    """Of the class that OpenAI's own answers give, with a message that says what to change."""
    with pytest.raises(kind) as raised:
        client.images.generate(**{"model": "flat", "prompt": "x", **body})
    assert (raised.value.type, raised.value.param) == ("invalid_request_error", param)
    assert says in raised.value.message


def test_a_number_that_is_none_is_refused(client: openai.OpenAI) -> None:
    """However many brackets it has."""
    with pytest.raises(openai.BadRequestError, match="n: "):
        client.images.edit(model="photo/larger", image=PHOTO, prompt="", extra_body={"n": "[" * 100_000})


def test_a_second_file_is_refused(client: openai.OpenAI) -> None:
    """Templates take one image under one name."""
    with pytest.raises(openai.BadRequestError, match="one file is taken"):
        client.images.edit(model="photo/larger", image=[PHOTO, PHOTO], prompt="")


def test_a_wrong_token_is_an_authentication_error(function: FunctionProcess) -> None:
    """401, as with OpenAI."""
    with client_of(function, "not-a-token-of-theirs") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_full_pod_is_a_rate_limit(function_factory: FunctionFactory) -> None:
    """429 with Retry-After, which the client waits for by itself."""
    function = function_factory(ADMIT_LIMIT="1", API_TOKENS=TOKEN)
    put_templates(function)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    running = Background(lambda: function.post("/prompt", {"prompt": slow_workflow(12)}, headers))
    wait_until(lambda: b"comfyfn_jobs_admitted 1.0" in function.get("/metrics").body, what="the running job")
    with client_of(function) as client, pytest.raises(openai.RateLimitError) as raised:
        client.images.generate(model="flat", prompt="x")
    assert int(raised.value.response.headers["retry-after"]) > 0
    assert running.join().status == 200
