"""The command line of the embedded core."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from function.engine.embedded import EMBEDDED_VERSION
from function.engine.embedded.options import parse_options

ROOT = Path(__file__).parents[2]


def test_defaults_lie_under_the_base_directory(tmp_path: Path) -> None:
    """All directories follow `--base-directory`, temp included."""
    options = parse_options(["--base-directory", str(tmp_path)])
    assert options.models_directory == tmp_path / "models"
    assert options.input_directory == tmp_path / "input"
    assert options.output_directory == tmp_path / "output"
    assert options.temp_directory == tmp_path / "temp"
    assert (options.addresses, options.port) == (("127.0.0.1",), 8188)


def test_temp_is_appended(tmp_path: Path) -> None:
    """`--temp-directory` names the parent: `temp` is wiped, what lies beside it is not."""
    assert parse_options(["--temp-directory", str(tmp_path)]).temp_directory == tmp_path / "temp"


@pytest.mark.parametrize(
    ("flags", "addresses"),
    [(["--listen"], ("0.0.0.0", "::")), (["--listen", "127.0.0.1,::1"], ("127.0.0.1", "::1"))],  # noqa: S104  (parsed only)
)
def test_listen(flags: list[str], addresses: tuple[str, ...]) -> None:
    """`--listen` takes a comma list, and means every address without one."""
    assert parse_options(flags).addresses == addresses


@pytest.mark.parametrize(
    "flags",
    [
        "--normalvram --listen 0.0.0.0",
        "--disable-auto-launch --cpu --base-directory /b --models-directory /m --input-directory /i",
        "--output-directory /o --temp-directory /t --user-directory /",
        "--cache-lru 10",
        "--cache-classic",
        "--cache-ram",
        "--cache-ram 2 8.5",
        *(f"--preview-method {method} --preview-size 256" for method in ("none", "auto", "latent2rgb", "taesd")),
        "--max-upload-size 0.5 --front-end-root /",
        "--disable-all-custom-nodes --whitelist-custom-nodes a b --disable-api-nodes",
        "--database-url sqlite:///:memory: --deterministic",
        "--enable-assets --enable-asset-hashing --enable-cors-header",
        "--verbose --log-stdout --dont-print-server --fast fp16_accumulation cublas_ops",
        "--highvram --cuda-device 0,1 --reserve-vram 1.5 --async-offload --use-sage-attention --bf16-vae --fast",
        "--feature-flag a=1 --feature-flag b --gpu-only --verbose DEBUG --async-offload 4",
    ],
)
def test_flags_of_comfyui_are_taken(flags: str) -> None:
    """A command line written for ComfyUI, 0.3.64 to 0.33.0, starts this core too, with its cache on."""
    assert parse_options(flags.split()).keep_cache


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--cpu --lowvram", "--lowvram: not allowed with argument --cpu"),
        ("--cache-none --cache-lru 3", "--cache-lru: not allowed with argument --cache-none"),
        ("--preview-method best", "invalid choice: 'best'"),
        ("--cache-lru many", "invalid int value: 'many'"),
        ("--port", "--port: expected one argument"),
        ("--whitelist-custom-nodes", "expected at least one argument"),
        ("--tls-keyfile key.pem", "unrecognized arguments: --tls-keyfile"),
        ("--user-directory /no/such", "--user-directory: '/no/such' is no directory"),
        ("--front-end-root /dev/null", "--front-end-root: '/dev/null' is no directory"),
        ("somewhere", "unrecognized arguments: somewhere"),
    ],
)
def test_what_comfyui_refuses_is_refused(flags: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags that exclude each other, bad values and what this core can't do end the start with the reason."""
    with pytest.raises(SystemExit) as stopped:
        parse_options(flags.split())
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


def test_cache_none_and_metadata() -> None:
    """`--cache-none` and `--disable-metadata` are honoured."""
    options = parse_options(["--cache-none", "--disable-metadata"])
    assert (options.keep_cache, options.metadata) == (False, False)


def test_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown flag ends the start with status 2 and is named."""
    with pytest.raises(SystemExit) as stopped:
        parse_options(["--no-such-flag"])
    assert stopped.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err


def test_version_is_the_projects() -> None:
    """The version that the core tells is the project's."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == EMBEDDED_VERSION
