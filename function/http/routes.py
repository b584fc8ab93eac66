"""The table of routes: path and methods, and the room and function that answer them."""

from __future__ import annotations

from werkzeug.routing import Map, Rule

ROUTES = Map(
    [
        Rule("/", methods=["POST"], endpoint=("cloudevents", "receive")),
        Rule("/prompt", methods=["POST"], endpoint=("prompt", "run")),
        Rule("/interrupt", methods=["POST"], endpoint=("interrupt", "interrupt")),
        Rule("/workflow", methods=["GET"], endpoint=("workflows", "show_names")),
        Rule("/workflow/<path:name>", methods=["GET"], endpoint=("workflows", "show")),
        Rule("/workflow/<path:name>", methods=["POST"], endpoint=("workflows", "run")),
        Rule("/models", methods=["GET"], endpoint=("models", "show")),
        Rule("/download", methods=["POST"], endpoint=("models", "download")),
        Rule("/jobs", methods=["POST"], endpoint=("jobs", "submit")),
        Rule("/jobs", methods=["GET"], endpoint=("jobs", "show_page")),
        Rule("/jobs/<job_id>", methods=["GET"], endpoint=("jobs", "show")),
        Rule("/jobs/<job_id>/events", methods=["GET"], endpoint=("streams", "follow")),
        Rule("/jobs/<job_id>/cancel", methods=["POST"], endpoint=("jobs", "cancel")),
        Rule("/outputs/<path:key>", methods=["GET"], endpoint=("outputs", "fetch")),
        Rule("/v1/images/generations", methods=["POST"], endpoint=("openai_images", "generate")),
        Rule("/v1/images/edits", methods=["POST"], endpoint=("openai_images", "edit")),
        Rule("/v1/images/variations", methods=["POST"], endpoint=("openai_images", "edit")),
        Rule("/v1/models", methods=["GET"], endpoint=("openai_images", "show_models")),
        Rule("/v1/models/<path:name>", methods=["GET"], endpoint=("openai_images", "show_model")),
        Rule("/openapi.json", methods=["GET"], endpoint=("openapi", "show")),
        Rule("/docs", methods=["GET"], endpoint=("docs", "show")),
        Rule("/docs/json", methods=["GET"], endpoint=("openapi", "show")),
        Rule("/health", methods=["GET"], endpoint=("status", "health")),
        Rule("/ready", methods=["GET"], endpoint=("status", "ready")),
        Rule("/metrics", methods=["GET"], endpoint=("metrics", "show")),
    ],
    strict_slashes=False,
    merge_slashes=False,
)
