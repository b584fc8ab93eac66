"""The engine's command line."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from function.config import read_settings
from function.engine.command import EngineCommand, engine_command, to_model_paths
from function.engine.embedded.options import parse_options
from function.errors import SettingsError

FOLDERS = {"MODEL": "models", "INPUT": "input", "OUTPUT": "output"}
HOME = {"ENGINE": "comfyui", "COMFY_HOME": "/opt/ComfyUI", "DATA_DIR": "/data"}


def command(**environ: str) -> EngineCommand:
    """The command for ComfyUI in /opt/ComfyUI and some variables."""
    return engine_command(read_settings(HOME | environ))


def test_embedded_engine_takes_all_directories() -> None:
    """The embedded engine is a module of ours, with every directory given and a port of its own for each start."""
    settings = read_settings({"DATA_DIR": "/data", "MODEL_DIR": "/models"})
    built = engine_command(settings)
    argv = built.argv_for(1234)
    assert argv[:3] == [sys.executable, "-m", "function.engine.embedded"]
    pairs = dict(pairwise(argv))
    assert pairs["--models-directory"] == "/models"
    assert pairs["--input-directory"] == "/data/input"
    assert pairs["--output-directory"] == "/data/output"
    assert pairs["--listen"] == "127.0.0.1"
    assert pairs["--port"] == "1234"
    assert built.port == 0
    assert (built.cwd / "function" / "engine").is_dir()


@pytest.mark.parametrize(
    "program", ["python main.py", "python -u main.py", "comfy launch --", "python3 -W error main.py"]
)
def test_embedded_engine_takes_the_flags_of_cmd(program: str) -> None:
    """A CMD for ComfyUI runs the embedded engine where ENGINE says so; directories stay those of the settings."""
    cmd = f"{program} --normalvram --listen 0.0.0.0 --input-directory /elsewhere"
    built = engine_command(read_settings({"DATA_DIR": "/data", "ENGINE": "embedded", "CMD": cmd}))
    options = parse_options(built.argv_for(1234)[3:])
    assert (options.addresses, options.port, built.port) == (("0.0.0.0",), 1234, 0)  # noqa: S104  (parsed only)
    assert options.input_directory == Path("/data/input")


def test_embedded_engine_takes_the_port_of_cmd() -> None:
    """A port that CMD names is the engine's."""
    settings = read_settings({"DATA_DIR": "/data", "ENGINE": "embedded", "CMD": "python main.py --port=9000"})
    built = engine_command(settings)
    assert (built.port, parse_options(built.argv_for(9000)[3:]).port) == (9000, 9000)


def test_comfyui_with_its_own_directories_runs_as_it_is() -> None:
    """Where all directories are COMFY_HOME's own, CMD is not changed."""
    built = command(CMD="python main.py --listen")
    assert built.argv_for(8188) == ["python", "main.py", "--listen"]
    assert (built.cwd, built.port, built.files) == (Path("/opt/ComfyUI"), 8188, ())


@pytest.mark.parametrize("flag", ["--port 9000", "--port=9000", "--port 1 --port=9000"])
def test_port_of_comfyui(flag: str) -> None:
    """The port is CMD's own."""
    assert command(CMD=f"python main.py {flag}").port == 9000


def test_port_that_is_none() -> None:
    """A port that is no number stops the start."""
    with pytest.raises(SettingsError, match="CMD: --port 'x'"):
        command(CMD="python main.py --port x")


def test_other_directories_are_appended() -> None:
    """Directories elsewhere are appended as flags."""
    built = command(CMD="python main.py", INPUT_DIR="/in", OUTPUT_DIR="/out")
    assert built.argv == ("python", "main.py", "--input-directory", "/in", "--output-directory", "/out")


def test_flags_in_cmd_count() -> None:
    """A directory that CMD already gives is not given again; one that CMD sends elsewhere is set right."""
    built = command(CMD="python main.py --output-directory=/out --input-directory /elsewhere", OUTPUT_DIR="/out")
    assert built.argv[4:] == ("/elsewhere", "--input-directory", "/opt/ComfyUI/input")


def test_base_directory_counts() -> None:
    """With --base-directory in CMD ComfyUI's own directories lie there."""
    own = {f"{name}_DIR": f"/base/{folder}" for name, folder in [("INPUT", "input"), ("OUTPUT", "output")]}
    built = command(CMD="python main.py --base-directory /base", MODEL_DIR="/base/models", **own)
    assert built.argv == ("python", "main.py", "--base-directory", "/base")


@pytest.mark.parametrize(
    ("flag", "directory"),
    [
        ("--user-directory /users", "/users"),
        ("--user-directory=users", "/opt/ComfyUI/users"),
        ("--user-directory /first --user-directory /users", "/users"),
    ],
)
def test_a_user_directory_of_cmd_is_made(flag: str, directory: str) -> None:
    """ComfyUI refuses one that isn't there; it reads a relative one from where it runs."""
    assert Path(directory) in command(CMD=f"python main.py {flag}").directories


def comfyui(home: Path, *, database: bool = True) -> Path:
    """A ComfyUI, as far as it is looked at: whether it has the flag of a database."""
    (home / "comfy").mkdir(parents=True)
    (home / "comfy" / "cli_args.py").write_text('parser.add_argument("--database-url")' if database else "")
    return home


def added(home: Path, cmd: str, writable: tuple[Path, ...] = ()) -> list[str]:
    """What is added to CMD where only some directories can be written, in DATA_DIR /data."""
    directories = {f"{name}_DIR": str(home / folder) for name, folder in FOLDERS.items()}
    settings = read_settings(HOME | {"COMFY_HOME": str(home), "CMD": cmd} | directories)
    built = engine_command(settings, may_write=lambda directory: directory in writable)
    return list(built.argv[len(settings.command) :])


def test_what_comfyui_writes_beside_itself_lies_in_data_where_it_cant(tmp_path: Path) -> None:
    """A CMD for a ComfyUI that may write anywhere starts one on a read-only root."""
    cmd = "python main.py --normalvram --listen 0.0.0.0"
    assert added(comfyui(tmp_path), cmd) == [
        *("--user-directory", "/data/user"),
        *("--temp-directory", "/data"),
        *("--database-url", "sqlite:////data/comfyui.db"),
    ]
    assert added(tmp_path, cmd, writable=(tmp_path,)) == []


def test_a_user_directory_that_is_added_is_made(tmp_path: Path) -> None:
    """ComfyUI refuses one that isn't there."""
    settings = read_settings(HOME | {"COMFY_HOME": str(tmp_path), "CMD": "python main.py"})
    assert Path("/data/user") in engine_command(settings, may_write=lambda _directory: False).directories


def test_what_cmd_says_of_them_holds(tmp_path: Path) -> None:
    """The operator's own places are left as they are."""
    cmd = "python main.py --user-directory=/u --temp-directory /t --database-url sqlite:///:memory:"
    assert added(comfyui(tmp_path), cmd) == []


def test_a_comfyui_without_a_database_is_given_none(tmp_path: Path) -> None:
    """It would end at a flag that it doesn't know."""
    flags = added(comfyui(tmp_path, database=False), "python main.py")
    assert flags[::2] == ["--user-directory", "--temp-directory"]


def test_a_volume_below_a_read_only_home_is_used(tmp_path: Path) -> None:
    """What is mounted where ComfyUI looks for its users' files and database holds them."""
    (comfyui(tmp_path) / "user").mkdir()
    assert added(tmp_path, "python main.py", writable=(tmp_path / "user",)) == ["--temp-directory", "/data"]


def test_with_a_base_directory_only_the_database_lies_in_home(tmp_path: Path) -> None:
    """ComfyUI keeps its database beside itself whatever the base directory is."""
    base = tmp_path / "base"
    base.mkdir()
    home = comfyui(tmp_path / "home")
    cmd = f"python main.py --base-directory {base}"
    flags = added(home, cmd, writable=(base,))
    assert "--database-url" in flags
    assert not {"--user-directory", "--temp-directory"} & set(flags)


def test_embedded_engine_starts_with_a_user_directory_of_cmd(tmp_path: Path) -> None:
    """It refuses one that isn't there, as ComfyUI does, so that one is made for it too."""
    cmd = f"python main.py --user-directory {tmp_path / 'user'}"
    built = engine_command(read_settings({"DATA_DIR": str(tmp_path / "data"), "ENGINE": "embedded", "CMD": cmd}))
    with pytest.raises(SystemExit):
        parse_options(built.argv_for(1234)[3:])
    built.prepare()
    parse_options(built.argv_for(1234)[3:])


def test_other_model_directory_gets_a_paths_file() -> None:
    """Another MODEL_DIR is made known by a file that every ComfyUI reads."""
    built = command(CMD="python main.py", MODEL_DIR="/models")
    assert built.argv[2:] == ("--extra-model-paths-config", "/data/engine/extra_model_paths.yaml")
    ((path, text),) = built.files
    assert path == Path("/data/engine/extra_model_paths.yaml")
    assert text == to_model_paths(Path("/models"))


def test_flags_of_a_wrapper_go_to_comfyui() -> None:
    """`comfy launch` gets flags after its `--`, which is added only if flags follow and it is missing."""
    wrapped = "comfy --workspace /opt/ComfyUI launch"
    assert command(CMD=f"{wrapped} -- --listen *", INPUT_DIR="/in").argv[4:] == (
        *("--", "--listen", "*"),
        *("--input-directory", "/in"),
    )
    assert command(CMD=wrapped, INPUT_DIR="/in").argv[4:] == ("--", "--input-directory", "/in")
    assert command(CMD=wrapped).argv[-1] == "launch"


def test_model_paths_are_yaml_that_survives_hostile_names() -> None:
    """The path is quoted, the folder is the default, and folders that were renamed keep their old name too."""
    lines = to_model_paths(Path('/m: "x" #é')).splitlines()
    assert lines[:3] == ["comfyfn:", '  base_path: "/m: \\"x\\" #é"', "  is_default: true"]
    assert '  checkpoints: "checkpoints"' in lines
    assert '  diffusion_models: "unet\\ndiffusion_models"' in lines


def test_prepare_makes_what_the_command_names(tmp_path: Path) -> None:
    """Directories and files exist before the start, and a second time is no error."""
    built = EngineCommand(
        argv=("x",), cwd=tmp_path, directories=(tmp_path / "a" / "b",), files=((tmp_path / "a" / "f", "text"),)
    )
    built.prepare()
    built.prepare()
    assert (tmp_path / "a" / "b").is_dir()
    assert (tmp_path / "a" / "f").read_text() == "text"
