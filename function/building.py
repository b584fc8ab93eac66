"""What jobs run on, built from the settings: the one place that knows every capability's arguments."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from function.engine.catalogue import NodeCatalogue, open_catalogue
from function.engine.engine import Engine
from function.gpu import NvmlReader
from function.inputs.recording import OwnInputs
from function.inputs.remote import RemoteFiles
from function.inputs.sources import InputSources
from function.inputs.staging import remove_strays
from function.jobs.dispatch import Dispatcher
from function.jobs.holders import Holders
from function.jobs.records import JobRecords
from function.jobs.service import Jobs
from function.jobs.sweep import Sweep
from function.models.background import BackgroundModels
from function.models.opening import open_models
from function.outputs.files import remove_old_outputs
from function.outputs.uploading import Uploader
from function.pipeline import Line
from function.storage import open_store
from function.storage.connecting import ConnectionRules
from function.storage.origins import input_rules
from function.validation.policy import Policy
from function.webhooks.delivery import TRY_SECONDS, Webhooks
from function.webhooks.letters import Letters
from function.webhooks.records import WebhookRecords
from function.webhooks.sending import Sender

if TYPE_CHECKING:
    from function.config import Settings
    from function.engine.supervisor import Supervisor
    from function.storage.objects import ObjectStore
    from function.telemetry import Metrics


def build_jobs(settings: Settings, *, metrics: Metrics) -> Jobs:
    """Build what every process knows of jobs, whether it runs them or not; nothing is started or asked."""
    results = open_store(settings.results_url)
    records = JobRecords(results, lease_seconds=settings.lease_seconds)
    own = OwnInputs(build_inputs(settings, results), deadline_seconds=settings.deadline_seconds)
    webhooks = _webhooks(settings, records, results, metrics)
    on_ended, on_stop = webhooks.see_off, webhooks.stop
    if not settings.dispatch_url:
        return Jobs(records, own, dispatcher=None, sweep=None, on_ended=on_ended, on_stop=on_stop)
    holders = Holders(results)
    dispatcher = Dispatcher(
        settings.dispatch_url,
        records,
        holders,
        answer_seconds=settings.deadline_seconds + settings.lease_seconds,
        on_ended=on_ended,
        token=_dispatch_token(settings),
    )
    retention = timedelta(days=settings.retention_days) if settings.retention_days else None
    sweep = Sweep(records, dispatcher, on_ended=on_ended, chores=(webhooks.sweep,), retention=retention)
    return Jobs(records, own, dispatcher=dispatcher, sweep=sweep, on_ended=on_ended, on_stop=on_stop)


def build_inputs(settings: Settings, results: ObjectStore) -> InputSources:
    """Build what knows where input files come from."""
    return InputSources(
        open_store(settings.uploads_url),
        results,
        RemoteFiles(input_rules(settings)),
        settings.input_dir,
        max_bytes=settings.max_input_bytes,
        max_pixels=settings.max_pixels,
    )


def _dispatch_token(settings: Settings) -> str:
    """The token for DISPATCH_URL; Knative's sink is somebody else's choice and gets none."""
    is_sink = settings.dispatch_url == settings.knative_sink
    return settings.api_tokens[0] if settings.api_tokens and not is_sink else ""


def _webhooks(settings: Settings, records: JobRecords, results: ObjectStore, metrics: Metrics) -> Webhooks:
    rules = ConnectionRules(allow_private=settings.allow_private_networks, plain_http=True, read_seconds=TRY_SECONDS)
    return Webhooks(
        records,
        WebhookRecords(results),
        send=Sender(rules, secrets=settings.webhook_secrets).post,
        write=Letters(results).write,
        count=lambda outcome: metrics.webhooks.labels(outcome=outcome).inc(),
    )


def build_line(settings: Settings, supervisor: Supervisor, jobs: Jobs, *, metrics: Metrics) -> Line:
    """Build what jobs run on; nothing outside the process is touched but the model directory.

    Raises:
        OSError: The model directory can't be used, or the input directory can't be read.
    """
    models = open_models(settings, metrics=metrics)
    remove_strays(settings.input_dir)
    remove_old_outputs(settings.output_dir)
    catalogue = _catalogue(settings, supervisor)
    return Line(
        records=jobs.records,
        policy=_policy(settings),
        catalogue=catalogue,
        lookup=models.lookup,
        models=models.cache,
        fetcher=models.fetcher,
        start_models=models.start_models,
        background=BackgroundModels(models.cache, deadline_seconds=settings.deadline_seconds),
        inputs=jobs.own_inputs.sources,
        results=jobs.results,
        uploader=_uploader(settings),
        engine=Engine(
            supervisor,
            metrics=metrics,
            memory_limit_bytes=settings.engine_memory_limit_bytes,
            while_running=models.fetcher.making_way,
            definitions=lambda: catalogue.definitions,
        ),
        gpus=NvmlReader(visible=settings.visible_gpus),
        output_dir=settings.output_dir,
    )


def _uploader(settings: Settings) -> Uploader:
    rules = ConnectionRules(allow_private=settings.allow_private_networks, plain_http=True)
    return Uploader(rules, credentials=settings.model_url_credentials)


def _policy(settings: Settings) -> Policy:
    return Policy(
        allowed_nodes=settings.allowed_nodes,
        denied_nodes=settings.denied_nodes,
        max_pixels=settings.max_pixels,
        max_batch=settings.max_batch,
        max_frames=settings.max_frames,
    )


def _catalogue(settings: Settings, supervisor: Supervisor) -> NodeCatalogue:
    catalogue = open_catalogue(settings)
    catalogue.follow(supervisor)
    return catalogue
