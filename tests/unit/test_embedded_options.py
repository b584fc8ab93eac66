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


def test_comfyui_flags_are_taken() -> None:
    """A command line written for ComfyUI starts this core too."""
    flags = "--normalvram --disable-auto-launch --preview-method taesd --cache-lru 10 --verbose DEBUG --cpu"
    assert parse_options(flags.split()).keep_cache


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
