"""Settings: the environment, read once by `read_settings`, as one frozen dataclass.

Each field of `Settings` carries its variable's name, its parser and its one-line description; the README's table is
checked against them. Names that deployments of comfyui-api use keep their name and meaning, units included: there
"GB" and "MB" are binary, so LRU_CACHE_SIZE_GB counts GiB (2**30 bytes) and MAX_BODY_SIZE_MB counts MiB (2**20 bytes).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from function.credentials import UrlCredential, read_credentials
from function.errors import SettingsError
from function.setting_values import (
    GIB,
    MIB,
    api_tokens,
    binary_units,
    boolean,
    choice,
    command,
    directory,
    http_url,
    integer,
    log_level,
    model_keys,
    optional,
    origins,
    parse_store_url,
    patterns,
    seconds_or_never,
    webhook_secrets,
    workflow_file,
    workflow_url,
)
from function.sources import AllowedUrls, parse_allow_list, parse_input_allow_list
from function.start_manifest import StartManifest, manifest_file, manifest_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from function.sources import SourceUrl


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str
    parse: Callable[[str], Any]
    default: str
    doc: str
    secret: bool


def _setting(name: str, parse: Callable[[str], Any], default: str, doc: str, *, secret: bool = False) -> Any:  # noqa: ANN401  (a field of any type)
    return field(metadata={"variable": _Variable(name, parse, default, doc, secret)}, repr=not secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one process. Paths are absolute; sizes are bytes; durations are seconds."""

    port: int = _setting("PORT", integer(1, 65_535), "3000", "Port of the HTTP server; Knative injects it.")
    host: str = _setting("HOST", str, "0.0.0.0", "Address the HTTP server listens on.")  # noqa: S104  (a container serves its network)
    engine: str = _setting(
        "ENGINE",
        choice("", "embedded", "comfyui", "none"),
        "",
        "`comfyui` (runs CMD), `embedded` (our own CPU engine) or `none` (the API service, which needs DISPATCH_URL);"
        " default: `comfyui` if CMD or COMFY_HOME is set.",
    )
    command: tuple[str, ...] = _setting(
        "CMD",
        command,
        "",
        "How ComfyUI starts, run in COMFY_HOME without a shell; default `python main.py`. Flags for directories are"
        " added where the settings want others than ComfyUI's own, and for users' files, temporary files and database,"
        " in DATA_DIR, where ComfyUI's own can't be written.",
    )
    comfy_home: Path | None = _setting(
        "COMFY_HOME", directory, "", "ComfyUI's directory; default `/opt/ComfyUI` if ENGINE is comfyui."
    )
    always_restart: bool = _setting(
        "ALWAYS_RESTART_COMFYUI",
        boolean,
        "false",
        "Whether `/health` stays 200 however often the engine fails to start; it is restarted in any case. `false`: 500"
        " after five such starts in a row, so that the container is replaced.",
    )
    engine_memory_limit_bytes: int = _setting(
        "ENGINE_MEMORY_LIMIT_GB",
        binary_units(GIB),
        "0",
        "Main memory in GiB, without mapped files, above which the engine is replaced after a job; 0: never.",
    )
    warmup_workflow: dict[str, Any] | None = _setting(
        "WARMUP_PROMPT_FILE",
        workflow_file,
        "",
        "A workflow in API format that runs after each start of the engine, before `/ready` is 200.",
    )
    warmup_url: SourceUrl | None = _setting(
        "WARMUP_PROMPT_URL",
        workflow_url,
        "",
        "The same from an `https://` or `s3://` URL, fetched before each warm-up by the rules of MODEL_URL_ALLOW, which"
        " need not name the URL itself; only one of the two is given.",
        secret=True,
    )
    data_dir: Path = _setting(
        "DATA_DIR", directory, "comfyfn-data", "Where everything lies whose own setting is not given."
    )
    model_dir: Path = _setting(
        "MODEL_DIR", directory, "", "Model directory and cache; default `$COMFY_HOME/models`, else `$DATA_DIR/models`."
    )
    input_dir: Path = _setting(
        "INPUT_DIR",
        directory,
        "",
        "Engine's input directory; default `$COMFY_HOME/input`, else `$DATA_DIR/input`.",
    )
    output_dir: Path = _setting(
        "OUTPUT_DIR",
        directory,
        "",
        "Engine's output directory; default `$COMFY_HOME/output`, else `$DATA_DIR/output`.",
    )
    models_url: str = _setting(
        "MODELS_URL", parse_store_url, "", "Where models come from; default `file://$DATA_DIR/store/models`."
    )
    uploads_url: str = _setting(
        "UPLOADS_URL", parse_store_url, "", "Where input files come from; default `file://$DATA_DIR/store/uploads`."
    )
    workflows_url: str = _setting(
        "WORKFLOWS_URL", parse_store_url, "", "Where templates are; default `file://$DATA_DIR/store/workflows`."
    )
    results_url: str = _setting(
        "RESULTS_URL",
        parse_store_url,
        "",
        "Where jobs and outputs are stored; default `file://$DATA_DIR/store/results`.",
    )
    link_endpoint_url: str = _setting(
        "LINK_ENDPOINT_URL",
        http_url,
        "",
        "Where clients reach the S3 server of RESULTS_URL, if not at AWS_ENDPOINT_URL: links to outputs lead there.",
    )
    model_url_allow: tuple[AllowedUrls, ...] = _setting(
        "MODEL_URL_ALLOW",
        parse_allow_list,
        "",
        "Which `https://` and `s3://` URLs a workflow may name as models: hosts (`huggingface.co`, `*.hf.co`) and URL"
        " prefixes, separated by commas; redirects must lead to allowed ones too. MODELS_URL is always allowed.",
    )
    input_url_allow: tuple[AllowedUrls, ...] = _setting(
        "INPUT_URL_ALLOW",
        parse_input_allow_list,
        "",
        "Which URLs a workflow may name as input files, in the form of MODEL_URL_ALLOW; default: every `https://` and"
        " `http://` URL, and no `s3://` URL but those below UPLOADS_URL and of outputs.",
    )
    max_input_bytes: int = _setting(
        "MAX_INPUT_SIZE_MB",
        binary_units(MIB),
        "1024",
        "Largest input file in MiB; all of a job together may be four times as large; 0: unlimited.",
    )
    model_url_credentials: tuple[UrlCredential, ...] = _setting(
        "MODEL_URL_CREDENTIALS",
        read_credentials,
        "",
        "What requests to some of these URLs, and to those of uploads, carry: a JSON list of `url_pattern` and `auth`,"
        " or the path of such a file. For input files only if INPUT_URL_ALLOW is set.",
        secret=True,
    )
    output_url_allow: tuple[AllowedUrls, ...] = _setting(
        "OUTPUT_URL_ALLOW",
        parse_allow_list,
        "",
        "Where requests may have outputs uploaded: hosts and URL prefixes (`s3://bucket/prefix`), as in"
        " MODEL_URL_ALLOW; default: nowhere.",
    )
    prepend_filenames: bool = _setting(
        "PREPEND_FILENAMES",
        boolean,
        "true",
        "Names of the files that `POST /prompt` and `/workflow` save: `true`: `<id>_<filename_prefix>`, `false`:"
        " `<id>` alone.",
    )
    allow_private_networks: bool = _setting(
        "ALLOW_PRIVATE_NETWORKS",
        boolean,
        "false",
        "Whether these URLs, those of input files, uploads and webhooks may lead to addresses of private networks, and"
        " credentials go over plain http.",
    )
    allow_pickle_models: bool = _setting(
        "ALLOW_PICKLE_MODELS",
        boolean,
        "false",
        "Whether models may be `.ckpt`, `.pt`, `.pt2`, `.pth`, `.bin` or `.pkl`: loading one runs code that is in it.",
    )
    cache_capacity_bytes: int = _setting(
        "LRU_CACHE_SIZE_GB", binary_units(GIB), "0", "Capacity of the model cache in GiB; 0: as large as the disk."
    )
    model_revalidate_seconds: float | None = _setting(
        "MODEL_REVALIDATE_SECONDS",
        seconds_or_never,
        "0",
        "For how long a model counts as current after storage was asked; 0: ask for every job; `never`: what is there "
        "stays.",
    )
    preload_models: tuple[str, ...] = _setting(
        "PRELOAD_MODELS",
        model_keys,
        "",
        "Models to bring at the start, while the engine boots: keys below MODELS_URL, separated by commas. None is "
        "evicted for them.",
    )
    manifest_file: StartManifest | None = _setting(
        "MANIFEST",
        manifest_file,
        "",
        "A `.yml`, `.yaml` or `.json` file with models to bring before `/ready` (`before_start`) and after it; see The"
        " model cache.",
    )
    manifest_json: StartManifest | None = _setting(
        "MANIFEST_JSON", manifest_json, "", "The same as JSON; it wins over MANIFEST.", secret=True
    )
    max_body_bytes: int = _setting(
        "MAX_BODY_SIZE_MB", binary_units(MIB), "100", "Largest request body in MiB; a larger one is answered 413."
    )
    api_tokens: tuple[str, ...] = _setting(
        "API_TOKENS",
        api_tokens,
        "",
        "Bearer tokens that requests must bring one of, separated by commas or white space, or the path of a file with"
        " them; `/health`, `/ready`, `/metrics` and `/docs` need none. The first one goes along to DISPATCH_URL."
        " Default: no request needs one.",
        secret=True,
    )
    events_need_token: bool = _setting(
        "EVENTS_NEED_TOKEN",
        boolean,
        "true",
        "Whether `POST /` needs a token too where there are API_TOKENS. Brokers send none: with `false` the network"
        " must let only them reach that route.",
    )
    cors_origins: tuple[str, ...] = _setting(
        "CORS_ORIGINS",
        origins,
        "",
        "Whose web pages may read answers: origins (`https://app.example`), separated by commas, or `*`; never with"
        " cookies. Default: nobody's.",
    )
    max_queue_depth: int = _setting(
        "MAX_QUEUE_DEPTH", integer(0), "0", "`/ready` answers 503 while this many jobs wait or run; 0: never."
    )
    admit_limit: int = _setting(
        "ADMIT_LIMIT", integer(1), "10", "Jobs that may wait or run in this pod; one more is answered 429."
    )
    deadline_seconds: int = _setting(
        "DEADLINE_SECONDS", integer(1), "600", "How long a job may take from admission to stored result."
    )
    lease_seconds: int = _setting(
        "LEASE_SECONDS",
        integer(4, 3600),
        "20",
        "After how long without a sign of life of its pod another one may take a job; shorter than the sender's first"
        " pause before it delivers again.",
    )
    dispatch_url: str = _setting(
        "DISPATCH_URL",
        http_url,
        "",
        "Where asynchronous jobs are sent to be run: a broker or the GPU service; default: K_SINK, and outside Knative"
        " this process itself.",
    )
    webhook_secrets: tuple[bytes, ...] = _setting(
        "WEBHOOK_SECRET",
        webhook_secrets,
        "",
        "What webhooks are signed with: base64, with or without `whsec_` before it; while it is changed the new and the"
        " old one, separated by spaces or commas. Default: they are not signed.",
        secret=True,
    )
    retention_days: int = _setting(
        "RETENTION_DAYS", integer(0), "0", "Days after which a job is deleted with its outputs; 0: never."
    )
    allowed_nodes: tuple[str, ...] = _setting(
        "ALLOWED_NODES",
        patterns,
        "",
        "Which node classes a workflow may use: names and patterns (`Save*`), separated by commas; default: all.",
    )
    denied_nodes: tuple[str, ...] = _setting(
        "DENIED_NODES", patterns, "", "Which node classes it may not use, even if ALLOWED_NODES names them."
    )
    max_pixels: int = _setting(
        "MAX_PIXELS",
        integer(0),
        "0",
        "Most pixels of one node (width x height x batch x frames) and of one input image; 0: unlimited, and for an"
        " input image 178956970, above which ComfyUI's Pillow refuses it.",
    )
    max_batch: int = _setting("MAX_BATCH", integer(0), "0", "Most images that one node makes at a time; 0: unlimited.")
    max_frames: int = _setting("MAX_FRAMES", integer(0), "0", "Most frames that one node makes; 0: unlimited.")
    drain_seconds: int = _setting(
        "DRAIN_SECONDS", integer(0), "600", "How long the running job may take to finish after SIGTERM."
    )
    visible_gpus: str | None = _setting(
        "CUDA_VISIBLE_DEVICES", optional, "", "Which GPUs `/metrics` and `comfyfn doctor` look at, as CUDA reads it."
    )
    gpu_claim_dir: Path | None = _setting(
        "GPU_CLAIM_DIR",
        directory,
        "",
        "A directory that functions with the same GPUs share: each takes one GPU that no other has, and only that one"
        " is visible to its engine; default: no claim.",
    )
    knative_service: str | None = _setting(
        "K_SERVICE", optional, "", "Set by Knative; results in a local directory are then warned about."
    )
    knative_sink: str = _setting("K_SINK", http_url, "", "Set by Knative's SinkBinding; see DISPATCH_URL.")
    log_level: str = _setting("LOG_LEVEL", log_level, "INFO", "DEBUG, INFO, WARNING or ERROR.")

    @property
    def manifest(self) -> StartManifest:
        """What the operator's manifest names; an empty one if there is none."""
        return self.manifest_json or self.manifest_file or StartManifest()


def setting_variables() -> list[tuple[str, str, str]]:
    """Name, default and description of every variable, in the order of the README's table."""
    variables = [f.metadata["variable"] for f in fields(Settings)]
    return [(variable.name, variable.default, variable.doc) for variable in variables]


def shown_settings(environ: Mapping[str, str]) -> list[str]:
    """`NAME=value` of every setting that an environment gives, for people; secrets are not shown."""
    given = [f.metadata["variable"] for f in fields(Settings) if environ.get(f.metadata["variable"].name)]
    return [f"{variable.name}={'...' if variable.secret else environ[variable.name]}" for variable in given]


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings from an environment; an empty variable counts as unset.

    Raises:
        SettingsError: One line that names the variable, the value and what is allowed.
    """
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        variable: _Variable = setting.metadata["variable"]
        text = environ.get(variable.name, "") or variable.default
        try:
            values[setting.name] = variable.parse(text)
        except ValueError as error:
            shown = "..." if variable.secret else repr(text)
            raise SettingsError(f"{variable.name}={shown}: expected {error}") from error
    return Settings(**_with_derived_defaults(values))


def _with_derived_defaults(values: dict[str, Any]) -> dict[str, Any]:
    if values["warmup_workflow"] and values["warmup_url"]:
        raise SettingsError("WARMUP_PROMPT_FILE and WARMUP_PROMPT_URL are both set: expected one of them")
    values["engine"] = values["engine"] or ("comfyui" if values["command"] or values["comfy_home"] else "embedded")
    if values["engine"] == "comfyui":
        values["comfy_home"] = values["comfy_home"] or Path("/opt/ComfyUI")
        values["command"] = values["command"] or (sys.executable, "main.py")
    home = values["comfy_home"] or values["data_dir"]
    for name in ("model", "input", "output"):
        folder = "models" if name == "model" else name
        values[f"{name}_dir"] = values[f"{name}_dir"] or home / folder
    _place_manifests(values)
    for name in ("models", "uploads", "workflows", "results"):
        values[f"{name}_url"] = values[f"{name}_url"] or f"file://{values['data_dir']}/store/{name}"
    values["dispatch_url"] = values["dispatch_url"] or values["knative_sink"] or _own_url(values)
    if _overlap(values["uploads_url"], values["results_url"]):
        raise SettingsError(
            f"UPLOADS_URL={values['uploads_url']!r}: expected a place apart from RESULTS_URL, so that no output is"
            " taken for an upload"
        )
    if values["engine"] == "none" and not values["dispatch_url"]:
        raise SettingsError("DISPATCH_URL='': expected the URL of the GPU service or a broker, as ENGINE is none")
    return values


def _place_manifests(values: dict[str, Any]) -> None:
    dirs = [values["model_dir"], *([values["comfy_home"] / "models"] if values["comfy_home"] else [])]
    for name, variable in (("manifest_file", "MANIFEST"), ("manifest_json", "MANIFEST_JSON")):
        try:
            values[name] = values[name] and values[name].placed(dirs)
        except ValueError as error:
            raise SettingsError(f"{variable}: expected {error}") from error


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _own_url(values: dict[str, Any]) -> str:
    """This process, if nobody counts its requests from outside: Knative would end a pod that it thinks idle."""
    if values["engine"] == "none" or values["knative_service"]:
        return ""
    host = "127.0.0.1" if values["host"] in {"0.0.0.0", "::"} else values["host"]  # noqa: S104  (compared, not bound)
    return f"http://{f'[{host}]' if ':' in host else host}:{values['port']}/"
