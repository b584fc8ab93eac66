"""What a client of comfyui-api may ask for beside the workflow: the fields of its requests, with their defaults.

Fields that are not known are dropped, as they are there; an answer's `warnings` names them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from function.handover import Conversion
from function.request_credentials import RequestCredentials  # noqa: TC001  (pydantic reads the annotation)

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Fields(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class JpegOptions(_Fields):
    """How a JPEG is written."""

    quality: Annotated[float, Field(ge=1, le=100)] = 80
    progressive: bool = False
    chromaSubsampling: Literal["4:4:4", "4:2:0"] = "4:2:0"  # noqa: N815  (the field's name)
    optimizeCoding: bool = True  # noqa: N815
    mozjpeg: Annotated[bool, Field(description="Writes a progressive file.")] = False
    trellisQuantisation: Annotated[bool, Field(description="No effect.")] = False  # noqa: N815
    overshootDeringing: Annotated[bool, Field(description="No effect.")] = False  # noqa: N815
    optimizeScans: Annotated[bool, Field(description="Writes a progressive file.")] = False  # noqa: N815
    quantisationTable: Annotated[float, Field(ge=0, le=8, description="No effect.")] = 0  # noqa: N815


class WebpOptions(_Fields):
    """How a WebP is written."""

    quality: Annotated[int, Field(ge=1, le=100)] = 80
    alphaQuality: Annotated[int, Field(ge=0, le=100)] = 100  # noqa: N815
    lossless: bool = False
    nearLossless: Annotated[bool, Field(description="Writes a lossless file.")] = False  # noqa: N815
    smartSubsample: Annotated[bool, Field(description="No effect.")] = False  # noqa: N815
    preset: Annotated[
        Literal["default", "photo", "picture", "drawing", "icon", "text"], Field(description="No effect.")
    ] = "default"
    effort: Annotated[int, Field(ge=0, le=6)] = 4


class PngOptions(_Fields):
    """A PNG has none."""


class JpegOutput(_Fields):
    """Images as JPEG; the format is the files' extension too."""

    format: Literal["jpeg", "jpg"]
    options: JpegOptions | None = None


class WebpOutput(_Fields):
    """Images as WebP."""

    format: Literal["webp"]
    options: WebpOptions | None = None


class PngOutput(_Fields):
    """Images as PNG."""

    format: Literal["png"]
    options: PngOptions | None = None


class S3Upload(_Fields):
    """Outputs go to `s3://<bucket>/<prefix><filename>`; no slash is put between."""

    bucket: Annotated[str, Field(min_length=1)]
    prefix: str
    asynchronous: Annotated[bool, Field(alias="async", description="Whether to answer 202 at once.")] = False


class HttpUpload(_Fields):
    """Outputs go to `<url_prefix>/<filename>` by PUT."""

    url_prefix: Annotated[str, Field(max_length=2048, repr=False)]
    asynchronous: Annotated[bool, Field(alias="async", description="Whether to answer 202 at once.")] = False


class ClientRequest(_Fields):
    """What requests for a workflow and for a template have in common."""

    id: Annotated[str, Field(max_length=256, description="The caller's own name for the job.")] = ""
    webhook: Annotated[
        str | None, Field(max_length=2048, description="Gets one unsigned POST for each output file.")
    ] = None
    webhook_v2: Annotated[str | None, Field(max_length=2048, description="Gets one signed POST at the job's end.")] = (
        None
    )
    convert_output: Annotated[JpegOutput | WebpOutput | PngOutput | None, Field(discriminator="format")] = None
    s3: S3Upload | None = None
    hf_upload: Annotated[dict[str, Any] | None, Field(description="Not available: refused.")] = None
    azure_blob_upload: Annotated[dict[str, Any] | None, Field(description="Not available: refused.")] = None
    http_upload: HttpUpload | None = None
    credentials: RequestCredentials = Field(default_factory=list)

    @property
    def conversion(self) -> Conversion | None:
        """What images are turned into."""
        if self.convert_output is None:
            return None
        return Conversion(self.convert_output.format, _options_of(self.convert_output).model_dump())

    def shown(self) -> dict[str, Any]:
        """The fields as they came, with their defaults, without credentials; answers add workflow and files."""
        return self.model_dump(
            by_alias=True, exclude_none=True, include=ClientRequest.model_fields.keys() - {"credentials"}
        )


class PromptRequest(ClientRequest):
    """The body of `POST /prompt`."""

    prompt: dict[str, Any] = Field(description="The workflow in ComfyUI's API format.")


def _options_of(wanted: JpegOutput | WebpOutput | PngOutput) -> BaseModel:
    if isinstance(wanted, JpegOutput):
        return wanted.options or JpegOptions()
    return wanted.options or (WebpOptions() if isinstance(wanted, WebpOutput) else PngOptions())


def ignored_fields(document: dict[str, Any], wanted: BaseModel, place: str = "") -> Iterator[str]:
    """One line for each field of a document that is not known."""
    fields = {field.alias or name: name for name, field in type(wanted).model_fields.items()}
    for key in document.keys() - fields.keys():
        yield f"{place}{key}: unknown field, ignored"
    for key, name in fields.items():
        if isinstance(below := getattr(wanted, name), BaseModel):
            yield from ignored_fields(document[key], below, f"{place}{key}.")
