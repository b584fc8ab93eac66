"""Requests of OpenAI's images API: read from JSON or a form, and made into a template's parameters."""

from __future__ import annotations

import base64
import io
import json
import mimetypes
import re
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from function.errors import InvalidRequestError
from function.http.bodies import parse_json
from function.http.prompt_request import ClientRequest
from function.job import validated
from function.templates.parameter import MEDIA_TYPES

if TYPE_CHECKING:
    from werkzeug.datastructures import FileStorage

    from function.handover import Conversion
    from function.http.bodies import RequestBody
    from function.templates.template import Template

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_MAX_PARTS = 100
_FORMATS = ("png", "jpeg", "webp")
_BEST_QUALITY = 100  # what OpenAI calls a compression of 100 %
_TYPED_FIELDS = frozenset({"n", "stream", "partial_images", "output_compression"})
_TUNING = frozenset(
    {"quality", "background", "style", "moderation", "user", "input_fidelity", "output_compression", "output_format"}
)
"""Fields of OpenAI that a template may have as parameters; where it has not, they change nothing."""


class ImageRequest(BaseModel):
    """What the three routes take; a field that is not named here is a parameter of the template."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(min_length=1, max_length=256, description="The name of a template under WORKFLOWS_URL.")
    prompt: str | None = Field(default=None, description="The template's `prompt`.")
    n: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="How many images: the template's `n` or `batch_size`."
    )
    size: Annotated[str, Field(pattern=f"^(auto|{_SIZE.pattern})$")] | None = Field(
        default=None, description="The template's `width` and `height`, as in `1024x1024`; `auto`: its defaults."
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        default=None, description="Links to stored files (`url`, the default), or the files themselves."
    )
    stream: bool | None = Field(default=None, description="Not supported: only false.")
    partial_images: Annotated[int, Field(ge=0)] | None = Field(default=None, description="Not supported: only 0.")


class ImageFormRequest(ImageRequest):
    """The form of edits and variations."""

    image: str = Field(
        json_schema_extra={"contentMediaType": "application/octet-stream"},
        description="A file: the template's `image`, or the parameter that it names as `upload`.",
    )
    mask: str | None = Field(
        default=None,
        json_schema_extra={"contentMediaType": "application/octet-stream"},
        description="A file: the template's `mask`.",
    )


_Wanted = TypeVar("_Wanted", bound=ImageRequest)


def read_json_request(body: RequestBody) -> ImageRequest:
    """A request without files.

    Raises:
        InvalidRequestError: It is none.
    """
    return _supported(validated(ImageRequest, parse_json(body)))


def read_form_request(body: bytes, content_type: str) -> ImageFormRequest:
    """A form with files; those become data URIs, which the parameters of templates take.

    Raises:
        InvalidRequestError: It is none, or has several files where one is taken.
    """
    kind, options = parse_options_header(content_type)
    if kind != "multipart/form-data":
        raise InvalidRequestError("expected multipart/form-data")
    parser = FormDataParser(
        stream_factory=_in_memory,
        max_form_memory_size=len(body),
        max_form_parts=_MAX_PARTS,
        silent=False,
    )
    try:
        _, fields, files = parser.parse(io.BytesIO(body), kind, len(body), options)
    except (ValueError, RequestEntityTooLarge) as error:
        raise InvalidRequestError("the body is not multipart/form-data") from error
    members: dict[str, Any] = {name: _typed(name, text) for name, text in fields.items()}
    for name, file in files.items(multi=True):
        field = name.removesuffix("[]")
        if field in members:
            raise _refusal(field, "given several times; one file is taken")
        members[field] = _data_uri(file)
    return _supported(validated(ImageFormRequest, members))


def to_parameters(wanted: ImageRequest, template: Template) -> dict[str, Any]:
    """The values of the template's parameters that a request gives, by name.

    Raises:
        InvalidRequestError: It gives what the template has no parameter for.
    """
    given: dict[str, Any] = dict(_sized(wanted))
    if wanted.prompt:
        given["prompt"] = wanted.prompt
    if wanted.n is not None and (wanted.n > 1 or _count_name(template) in template.parameters):
        given[_count_name(template)] = wanted.n
    if isinstance(wanted, ImageFormRequest):
        given |= {_image_name(template): wanted.image} | ({"mask": wanted.mask} if wanted.mask else {})
    for name, value in (wanted.model_extra or {}).items():
        if value is not None and (name in template.parameters or name not in _TUNING):
            given[name] = _as_declared(template, name, value)
    for name in given:
        if name not in template.parameters:
            field = {"width": "size", "height": "size", _count_name(template): "n"}.get(name, name)
            raise _refusal(field, f"the model {template.name} has no parameter {name!r}")
    return given


def to_conversion(wanted: ImageRequest, template: Template) -> Conversion | None:
    """What the images are turned into; None if that is not asked for, or is the template's own business.

    Raises:
        InvalidRequestError: It is nothing that OpenAI's API knows.
    """
    given = wanted.model_extra or {}
    wanted_format, compression = given.get("output_format"), given.get("output_compression")
    if wanted_format is None or "output_format" in template.parameters:
        return None
    if wanted_format not in _FORMATS:
        raise _refusal("output_format", f"expected one of {', '.join(_FORMATS)}")
    if compression is not None and (not isinstance(compression, int) or not 0 <= compression <= _BEST_QUALITY):
        raise _refusal("output_compression", f"expected a whole number from 0 to {_BEST_QUALITY}")
    quality = max(1, _BEST_QUALITY if compression is None else compression)
    converted = {"convert_output": {"format": wanted_format, "options": {"quality": quality}}}
    return ClientRequest.model_validate(converted).conversion


def _supported(wanted: _Wanted) -> _Wanted:
    if wanted.stream or wanted.partial_images:
        field = "stream" if wanted.stream else "partial_images"
        raise _refusal(field, "images are not streamed: leave it out, or follow GET /jobs/<job_id>/events of a job")
    return wanted


def _sized(wanted: ImageRequest) -> dict[str, int]:
    match = _SIZE.fullmatch(wanted.size or "")
    return {"width": int(match[1]), "height": int(match[2])} if match else {}


def _count_name(template: Template) -> str:
    return "batch_size" if "batch_size" in template.parameters else "n"


def _image_name(template: Template) -> str:
    return "image" if "image" in template.parameters else template.upload or "image"


def _as_declared(template: Template, name: str, value: Any) -> Any:  # noqa: ANN401  (of the parameter's type)
    """A value of a form is text, whatever the parameter takes."""
    parameter = template.parameters.get(name)
    if parameter is None or not isinstance(value, str) or parameter.type in MEDIA_TYPES | {"string"}:
        return value
    return _parsed(value)


def _in_memory(*_: object, **_hints: object) -> IO[bytes]:
    return io.BytesIO()


def _typed(name: str, text: str) -> object:
    return _parsed(text) if name in _TYPED_FIELDS else text


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _data_uri(file: FileStorage) -> str:
    """The client's word for the type, else its file name's; the engine goes by the bytes."""
    named = mimetypes.guess_type(file.filename or "")[0]
    media_type = file.mimetype if file.mimetype.startswith("image/") else named or "image/png"
    return f"data:{media_type};base64,{base64.b64encode(file.stream.read()).decode()}"


def _refusal(field: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {problem}", details={"param": field})
