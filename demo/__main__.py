"""`make demo`: the main job on real input, from an empty directory, with everything that production has but the GPU."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import click

from demo.photo import write_photo
from demo.picture import before_after
from demo.upscaler import write_upscaler
from function.cli.client import FunctionClient, to_job_event
from function.cli.local import local_function
from function.cli.run import progress_bar

OUT = Path("demo-out")
WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
    "2": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "demo-x2.safetensors"}},
    "3": {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["2", 0], "image": ["1", 0]}},
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "larger"}},
}


def main() -> None:
    """Run the demo; everything it makes lies in demo-out/."""
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    store = OUT / "data" / "store"
    say("put a photo and an upscaler model into storage")
    write_photo(store / "uploads" / "photo.png")
    write_upscaler(store / "models" / "upscale_models" / "demo-x2.safetensors")

    say("start the function: gunicorn, functions-framework, the embedded engine, file:// storage")
    log = OUT / "function.log"
    with local_function(log=log, environ={"DATA_DIR": str(OUT / "data"), "ENGINE": "embedded"}) as url:
        client = FunctionClient(url)
        try:
            stored = run_twice(client, log)
        finally:
            client.close()
    output = store / "results" / stored
    before_after(store / "uploads" / "photo.png", output, OUT / "before-after.png")
    say(f"the result: {output}")
    say(f"before and after: {OUT / 'before-after.png'}")
    say(f"done in {time.monotonic() - started:.1f} s; what the function logged: {log}")


def run_twice(client: FunctionClient, log: Path) -> str:
    """Send one event, show what comes back, send it again; return the key of the stored result."""
    event = to_job_event({"workflow": WORKFLOW, "label": "demo"}, event_id="demo-1")
    say("send one CloudEvent (dev.comfyfn.job.requested) with the workflow")
    with progress_bar("working") as follow:
        reply = client.send_and_watch(event, follow)
    envelope = json.loads(reply)
    manifest = envelope.pop("data")
    show("the reply event", envelope)
    show("its data, which is the manifest", manifest)
    if manifest["error"]:
        sys.exit("the job failed")

    say("send the same event again")
    began = time.monotonic()
    again = client.send(event)
    milliseconds = (time.monotonic() - began) * 1000
    runs = engine_runs(log)
    say(f"the same reply, byte for byte: {again == reply}, in {milliseconds:.0f} ms")
    say(f"runs in the engine's own history: {runs}")
    if again != reply or runs != 1:
        sys.exit("the redelivered event was not answered from the stored result")
    output = manifest["outputs"][0]
    return f"outputs/{manifest['job_id']}/{manifest['attempt']}/{output['filename']}"


def engine_runs(log: Path) -> int:
    """How many runs the engine itself remembers; its port is in the function's log."""
    port = re.search(r"engine \d+ answers on port (\d+)", log.read_text())
    if port is None:
        sys.exit(f"the engine's port is not in {log}")
    with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/history", timeout=10) as answer:
        history: dict[str, Any] = json.load(answer)
    return len(history)


def say(text: str) -> None:
    """One line of the story."""
    click.echo(f"{click.style('>', fg='cyan')} {text}")


def show(title: str, document: dict[str, Any]) -> None:
    """A JSON document under a title."""
    say(f"{title}:")
    click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
