"""`comfyfn cache`, as an operator runs it, also beside a running function."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from function.job import derived_job_id
from tests.e2e.test_command_line import ROOT, comfyfn
from tests.e2e.test_main_job import slow_workflow
from tests.support.engine import case
from tests.support.function_process import EVENT_SOURCE, Background
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.function_process import FunctionFactory

UPSCALER = "upscale_models/tiny_srvgg_x2.safetensors"
A, B = "checkpoints/a.safetensors", "loras/b.safetensors"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with two models in storage."""
    for key, size_bytes in ((A, 3 * 1024**2), (B, 2_048)):
        path = tmp_path / "data" / "store" / "models" / key
        path.parent.mkdir(parents=True)
        path.write_bytes(key.encode()[:1] * size_bytes)
    return tmp_path


def run(place: Path, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """Exit status, output and error output of one command."""
    done = comfyfn("cache", *arguments, cwd=place, DATA_DIR="data", **environ)
    return done.returncode, done.stdout, done.stderr


def listed(place: Path) -> dict[str, dict[str, object]]:
    """What `ls --json` says of each file."""
    status, out, _ = run(place, "ls", "--json")
    assert status == 0
    return {file["key"]: file for file in json.loads(out)["files"]}


def test_pull_brings_models_and_ls_shows_them(place: Path) -> None:
    """With sizes, last use, source, and the total against the capacity."""
    assert run(place, "pull", A, B) == (
        0,
        f"{A}: 3.0 MiB\n{B}: 2.0 KiB\n",
        f"pulling {A}\npulling {B}\n",
    )
    status, out, err = run(place, "ls", LRU_CACHE_SIZE_GB="1")
    assert (status, err) == (0, "")
    first, second, total = out.splitlines()
    assert first.startswith(f"{A}     3.0 MiB  20")
    assert first.endswith(f"file://{place}/data/store/models/{A}")
    assert second.split()[:3] == [B, "2.0", "KiB"]
    assert total == f"3.0 MiB of 1.00 GiB in {place}/data/models, files: 2"


def test_pull_brings_a_new_version(place: Path) -> None:
    """Storage is asked, whatever MODEL_REVALIDATE_SECONDS lets the function do."""
    run(place, "pull", A)
    (place / "data" / "store" / "models" / A).write_bytes(b"new")
    assert run(place, "pull", A, MODEL_REVALIDATE_SECONDS="never")[1] == f"{A}: 3 B\n"
    assert (place / "data" / "models" / A).read_bytes() == b"new"


def test_a_pinned_file_stays_until_it_is_unpinned(place: Path) -> None:
    """Each command says what it did, and what it could not do, and exits with 1 if there was any such thing."""
    run(place, "pull", A, B)
    assert run(place, "pin", A) == (0, f"pinned {A}\n", "")
    assert listed(place)[A]["pinned"] is True
    status, out, err = run(place, "evict", A, B, "vae/no.safetensors")
    assert (status, out) == (1, f"evicted {B}\n")
    assert err.splitlines() == [
        f"Error: model {A} is pinned; unpin it first",
        "Error: the cache has no model vae/no.safetensors",
    ]
    assert run(place, "unpin", A)[0] == 0
    assert run(place, "evict", A)[0] == 0
    assert listed(place) == {}
    assert not (place / "data" / "models" / A).exists()


def test_verify_finds_a_damaged_file(place: Path) -> None:
    """It reads everything, names what is damaged, and says what to do."""
    run(place, "pull", A, B)
    assert run(place, "verify")[:2] == (0, f"{A}: ok\n{B}: ok\n")
    with (place / "data" / "models" / A).open("r+b") as file:
        file.write(b"X")
    status, out, err = run(place, "verify", A)
    assert (status, out) == (1, f"{A}: DAMAGED\n")
    assert err.endswith(f"Error: damaged: {A}; evict them, the next job brings them anew\n")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["pull", "vae/no.safetensors"], 1, "neither in vae nor at file://"),
        (["pull", "../../etc/x.safetensors"], 1, "not a relative file name"),
        (["pull", "x.safetensors"], 1, "not a relative file name"),
        (["pull", "vae/x.pth"], 1, "ALLOW_PICKLE_MODELS=true"),
        (["pull", "vae/x.sft", "--from", "https://example.com/x.sft?key=s3cr3t"], 1, "add example.com"),
        (["pull", A, B, "--from", "https://example.com/x.sft"], 2, "one KEY"),
        (["verify", "vae/no.safetensors"], 1, "the cache has no model vae/no.safetensors"),
        (["evict"], 2, "Missing argument"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(place: Path, arguments: list[str], status: int, says: str) -> None:
    """Without a stack trace, and without a secret."""
    code, out, err = run(place, *arguments)
    assert (code, out) == (status, "")
    assert says in err.splitlines()[-1]
    assert "s3cr3t" not in err
    assert "Traceback" not in err


def test_a_directory_that_is_none_is_said_in_one_line(place: Path) -> None:
    """Nothing can be kept below a file."""
    (place / "file").touch()
    status, out, err = run(place, "ls", MODEL_DIR=str(place / "file" / "models"))
    assert (status, out) == (1, "")
    assert err == f"Error: {place}/file/models can't be written to, so there is no cache in it\n"


def test_a_terminal_gets_bars(place: Path) -> None:
    """Of what is read or brought, up to the end."""
    main, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "function.cli", "cache", "pull", A],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT), "DATA_DIR": "data", "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=terminal,
            check=True,
            timeout=60,
        )
        shown = os.read(main, 65_536).decode()
    finally:
        os.close(main)
        os.close(terminal)
    assert done.stdout.decode() == f"{A}: 3.0 MiB\n"
    assert f"pulling {A}" in shown
    assert "100%" in shown


def test_a_file_that_a_job_uses_can_not_be_evicted(function_factory: FunctionFactory, model_files: Path) -> None:
    """The command and the function look at the same locks."""
    function = function_factory()
    function.put_upload("in_64x48.png")
    function.put_model("upscale_models", model_files / UPSCALER)
    upscale = {f"u{node_id}": node for node_id, node in renamed_upscale().items()}
    workflow = slow_workflow(100, size=2048) | upscale  # it ends when it is cancelled
    job = Background(lambda: function.send_event("slow", {"workflow": workflow}))
    wait_until(lambda: listed(function.root).get(UPSCALER, {}).get("in_use") is True, what="the model in use")
    status, _, err = run(function.root, "evict", UPSCALER)
    assert job.running
    assert (status, err) == (1, f"Error: a job uses model {UPSCALER}\n")
    function.post(f"/jobs/{derived_job_id(EVENT_SOURCE, 'slow')}/cancel", {})
    assert job.join().json["data"]["error"]["code"] == "cancelled"
    assert run(function.root, "evict", UPSCALER)[0] == 0
    assert function.send_event("again", {"workflow": upscale}).json["data"]["status"] == "completed"


def renamed_upscale() -> dict[str, dict[str, object]]:
    """The recorded upscaling, with links that fit its nodes' new names."""
    workflow: dict[str, dict[str, object]] = case("10_upscale_srvgg")
    for node in workflow.values():
        inputs = node["inputs"]
        assert isinstance(inputs, dict)
        for name, value in inputs.items():
            if isinstance(value, list):
                inputs[name] = [f"u{value[0]}", value[1]]
    return workflow
