"""Settings: read once, checked, with derived defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from function.config import read_settings, setting_variables, shown_settings
from function.errors import SettingsError
from function.setting_values import GIB, MIB

README = Path(__file__).parents[2] / "README.md"


def test_without_any_variable_everything_lies_below_the_data_directory() -> None:
    """The embedded engine and local directories: nothing else is needed."""
    settings = read_settings({"DATA_DIR": "/data"})
    assert (settings.engine, settings.port, settings.admit_limit) == ("embedded", 3000, 10)
    assert settings.model_dir == Path("/data/models")
    assert (settings.input_dir, settings.output_dir) == (Path("/data/input"), Path("/data/output"))
    assert settings.models_url == "file:///data/store/models"
    assert settings.uploads_url == "file:///data/store/uploads"
    assert settings.workflows_url == "file:///data/store/workflows"
    assert settings.results_url == "file:///data/store/results"


def test_deployments_of_comfyui_api_keep_their_settings() -> None:
    """COMFY_HOME and CMD select ComfyUI and its own directories."""
    settings = read_settings(
        {"COMFY_HOME": "/opt/ComfyUI", "CMD": "python main.py --normalvram --listen 127.0.0.1", "PORT": "8080"}
    )
    assert settings.engine == "comfyui"
    assert settings.command == ("python", "main.py", "--normalvram", "--listen", "127.0.0.1")
    assert settings.model_dir == Path("/opt/ComfyUI/models")
    assert settings.output_dir == Path("/opt/ComfyUI/output")
    assert settings.port == 8080


def test_units_are_binary_as_in_comfyui_api() -> None:
    """LRU_CACHE_SIZE_GB counts GiB and may be a fraction; MAX_BODY_SIZE_MB counts MiB."""
    settings = read_settings({"LRU_CACHE_SIZE_GB": "0.5", "MAX_BODY_SIZE_MB": "200"})
    assert settings.cache_capacity_bytes == GIB // 2 == 536_870_912
    assert settings.max_body_bytes == 200 * MIB == 209_715_200


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("PORT", "http", "a whole number from 1 to 65535"),
        ("PORT", "65536", "a whole number from 1 to 65535"),
        ("ADMIT_LIMIT", "0", "a whole number from 1"),
        ("ADMIT_LIMIT", "1.5", "a whole number from 1"),
        ("ADMIT_LIMIT", "--3", "a whole number from 1"),
        ("LRU_CACHE_SIZE_GB", "50GB", "a number, 0 or more"),
        ("LRU_CACHE_SIZE_GB", "nan", "a number, 0 or more"),
        ("LRU_CACHE_SIZE_GB", "inf", "a number, 0 or more"),
        ("ENGINE", "cuda", "embedded, comfyui"),
        ("PRELOAD_MODELS", "sd.safetensors", "a comma list of model keys"),
        ("PRELOAD_MODELS", "vae/a.sft,https://host/a.sft", "a comma list of model keys"),
        ("LOG_LEVEL", "loud", "DEBUG, INFO, WARNING, ERROR"),
        ("MODELS_URL", "/models", "s3://bucket/prefix or file:///directory"),
        ("MODELS_URL", "https://example.com/models", "s3://bucket/prefix or file:///directory"),
        ("MODELS_URL", "s3://key:secret@bucket", "s3://bucket/prefix or file:///directory"),
        ("CMD", "python 'main.py", "a command line with balanced quotes"),
        ("CORS_ORIGINS", "app.example", "origins like https://app.example, or *"),
        ("CORS_ORIGINS", "https://app.example/page", "origins like https://app.example, or *"),
    ],
)
def test_a_bad_value_is_one_line_that_names_variable_value_and_what_is_allowed(
    variable: str, value: str, allowed: str
) -> None:
    """Whoever reads the line can mend it."""
    with pytest.raises(SettingsError) as error:
        read_settings({variable: value})
    assert error.value.message.startswith(f"{variable}={value!r}: expected ")
    assert allowed in error.value.message
    assert "\n" not in error.value.message


def test_log_levels_are_taken_in_any_case_and_warn_is_warning() -> None:
    """Other systems write `info` and `warn`."""
    assert read_settings({"LOG_LEVEL": "warn"}).log_level == "WARNING"
    assert read_settings({"LOG_LEVEL": "debug"}).log_level == "DEBUG"


def test_an_empty_variable_counts_as_unset() -> None:
    """Compose files pass `${X:-}`."""
    assert read_settings({"PORT": "", "MODELS_URL": ""}).port == 3000


def test_the_readme_lists_every_setting_with_its_default_and_description() -> None:
    """The table is what the settings module says, row for row."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*) \|$", README.read_text(), re.MULTILINE)
    expected = [(name, f"`{default}`" if default else "", text) for name, default, text in setting_variables()]
    assert rows == expected


def test_a_warm_up_workflow_is_read_at_the_start(tmp_path: Path) -> None:
    """It is the document in the file; without the variable there is none."""
    path = tmp_path / "warm-up.json"
    path.write_text('{"1": {"class_type": "X", "inputs": {}}}')
    assert read_settings({"WARMUP_PROMPT_FILE": str(path)}).warmup_workflow == {"1": {"class_type": "X", "inputs": {}}}
    assert read_settings({}).warmup_workflow is None


def test_a_warm_up_url_is_taken_apart_and_not_shown() -> None:
    """Its query may hold a secret."""
    url = "https://h.example/w.json?token=s3cr3t"
    settings = read_settings({"WARMUP_PROMPT_URL": url})
    assert settings.warmup_url
    assert (str(settings.warmup_url), settings.warmup_url.query) == ("https://h.example/w.json", "token=s3cr3t")
    assert "s3cr3t" not in repr(settings)
    assert shown_settings({"WARMUP_PROMPT_URL": url}) == ["WARMUP_PROMPT_URL=..."]
    assert read_settings({}).warmup_url is None


@pytest.mark.parametrize(
    "url", ["file:///w.json", "w.json", "https://h.example/", "https://u:p@h/w.json", "s3://b/../k"]
)
def test_a_warm_up_url_that_is_none_stops_the_start(url: str) -> None:
    """The line names the variable and what is allowed, and quotes nothing."""
    with pytest.raises(
        SettingsError, match=r"^WARMUP_PROMPT_URL=\.\.\.: expected an https:// or s3:// URL of a workflow"
    ):
        read_settings({"WARMUP_PROMPT_URL": url})


def test_one_warm_up_is_given(tmp_path: Path) -> None:
    """A file and a URL at once are a mistake, and said so."""
    path = tmp_path / "warm-up.json"
    path.write_text('{"1": {"class_type": "X", "inputs": {}}}')
    with pytest.raises(SettingsError, match="WARMUP_PROMPT_FILE and WARMUP_PROMPT_URL are both set"):
        read_settings({"WARMUP_PROMPT_FILE": str(path), "WARMUP_PROMPT_URL": "s3://b/w.json"})


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_warm_up_file_that_holds_no_workflow_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    """The line names the variable and the file."""
    path = tmp_path / "warm-up.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"WARMUP_PROMPT_FILE='{path}': expected a (JSON )?file"):
        read_settings({"WARMUP_PROMPT_FILE": str(path)})


@pytest.mark.parametrize("text", ["short", "a-token-of-16-chars second", "ä" * 20, "/no/such/file", ",", "a b"])
def test_tokens_that_are_none_stop_the_start(text: str) -> None:
    """Also one that could be guessed, and a file that isn't there; nothing is repeated."""
    with pytest.raises(SettingsError, match=r"^API_TOKENS=\.\.\.: expected tokens of 16 or more letters"):
        read_settings({"API_TOKENS": text})


def test_tokens_come_from_a_text_or_from_a_file(tmp_path: Path) -> None:
    """Several of them, and none is shown."""
    text = "first-of-the-tokens,second-of-the-tokens"
    path = tmp_path / "tokens"
    path.write_text(text.replace(",", "\n"))
    assert read_settings({"API_TOKENS": text}).api_tokens == read_settings({"API_TOKENS": str(path)}).api_tokens
    assert read_settings({"API_TOKENS": text}).api_tokens == ("first-of-the-tokens", "second-of-the-tokens")
    assert "first-of" not in repr(read_settings({"API_TOKENS": text}))
    assert shown_settings({"API_TOKENS": text}) == ["API_TOKENS=..."]
    assert read_settings({}).api_tokens == ()
