"""Webhooks: signatures, which answers are final, when to try again, what URLs may look like."""

from __future__ import annotations

import base64
import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks import Webhook

from function.config import read_settings, shown_settings
from function.errors import InvalidRequestError, SettingsError
from function.job import parse_webhook_url
from function.storage.objects import Listing, ObjectInfo
from function.streamed import DocumentWithFiles
from function.webhooks.delivery import TRY_SECONDS
from function.webhooks.schedule import Schedule, WebhookState, parse_webhook_state
from function.webhooks.sending import Answer
from function.webhooks.signing import Message, signed_headers
from tests.support.contract import contract

if TYPE_CHECKING:
    from collections.abc import Iterable

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
JOB_ID = "0" * 32


@pytest.mark.parametrize("vector", contract("signatures"), ids=lambda vector: vector["from"])
def test_signatures_are_those_of_other_implementations(vector: dict[str, Any]) -> None:
    """The setting's secret gives the published signature of a message, whether its body comes whole or in pieces."""
    secrets = read_settings({"WEBHOOK_SECRET": vector["secret"]}).webhook_secrets
    at = datetime.fromtimestamp(vector["timestamp"], UTC)
    message = Message(vector["id"], {"Content-Type": "application/json"}, vector["body"].encode())
    assert signed_headers(message, secrets, at=at) == {
        "Content-Type": "application/json",
        "webhook-id": vector["id"],
        "webhook-timestamp": str(vector["timestamp"]),
        "webhook-signature": vector["signature"],
    }


def test_a_body_in_pieces_has_the_signature_of_the_whole() -> None:
    """However large it is; an unsigned message has none."""
    document = DocumentWithFiles({"id": "x"}, "images", [bytes(1_000_000)], {"filenames": ["a"]})
    pieces, whole = Message("x", {}, document), Message("x", {}, b"".join(document))
    assert signed_headers(pieces, [b"key"], at=NOW) == signed_headers(whole, [b"key"], at=NOW)
    assert "webhook-signature" not in signed_headers(Message("x", {}, b"{}", signed=False), [b"key"], at=NOW)


def test_during_a_rotation_a_receiver_with_either_secret_is_content() -> None:
    """Each secret gives a signature of its own."""
    old, new = (base64.b64encode(letter * 24).decode() for letter in (b"o", b"n"))
    secrets = read_settings({"WEBHOOK_SECRET": f"whsec_{new}, whsec_{old}"}).webhook_secrets
    headers = signed_headers(Message("1", {}, "ä".encode()), secrets, at=datetime.now(UTC))
    for secret in (old, new):
        Webhook(secret).verify("ä".encode(), headers, json_parse=False)


def test_without_a_secret_nothing_is_signed() -> None:
    """There is no signature with an empty key that would look like one."""
    secrets = read_settings({}).webhook_secrets
    assert set(signed_headers(Message("1", {}, b"{}"), secrets, at=NOW)) == {"webhook-id", "webhook-timestamp"}


@pytest.mark.parametrize("text", ["secret!", "whsec_", "whsec_AAAA whsec_", "A", "-_-_", "ä"])
def test_a_secret_that_is_no_base64_stops_the_start_and_is_not_shown(text: str) -> None:
    """Two libraries would read it differently."""
    with pytest.raises(SettingsError) as error:
        read_settings({"WEBHOOK_SECRET": text})
    assert error.value.message.startswith("WEBHOOK_SECRET=...: expected base64")


def test_the_secret_is_never_shown() -> None:
    """Neither in the settings' own text nor to people."""
    environ = {"WEBHOOK_SECRET": "whsec_c2VjcmV0"}
    assert "secret" not in repr(read_settings(environ)).replace("webhook_secrets", "")
    assert shown_settings(environ) == ["WEBHOOK_SECRET=..."]


@pytest.mark.parametrize(
    ("status", "delivered", "final"),
    [
        *((status, True, False) for status in (200, 201, 204, 299)),
        *((status, False, True) for status in (400, 401, 404, 410, 422)),
        *((status, False, False) for status in (0, 101, 301, 302, 307, 408, 409, 425, 429, 500, 502, 503)),
    ],
)
def test_which_answers_end_it(status: int, delivered: bool, final: bool) -> None:  # noqa: FBT001  (expected values)
    """2xx delivers; a 4xx that time does not change is final; everything else is tried again."""
    answer = Answer(status, "")
    assert (answer.delivered, answer.final) == (delivered, final)


def state_of(names: Iterable[str], job_id: str = JOB_ID) -> WebhookState:
    """What a listing of these records says, each a minute younger than the one before."""
    infos = [
        ObjectInfo(f"jobs/{job_id}/{name}", 2, "", NOW + timedelta(minutes=minute)) for minute, name in enumerate(names)
    ]
    return parse_webhook_state(job_id, Listing(tuple(infos), NOW + timedelta(hours=1), complete=True))


def test_the_state_is_read_from_the_records() -> None:
    """Tries are counted by the last one; the others' records are left alone."""
    state = state_of(
        ["attempt-1.json", "job.json", "result.json", "webhook-1.json", "webhook-2.json", "webhook-x.json"]
    )
    assert (state.over, state.tries, state.last_try_at) == (False, 2, NOW + timedelta(minutes=4))
    assert state_of(["job.json"]).tries == 0
    assert state_of(["webhook-1.json", "webhook-over.json"]).over
    assert state_of(["webhook.1-2.json"]).tries == 2


def test_the_first_try_is_due_at_once() -> None:
    """Whatever the clocks say."""
    assert Schedule().due_at(state_of(["job.json"])) < NOW


def pauses_of(job_id: str) -> list[timedelta]:
    """The time from each try to the next by the default schedule, and what follows the last one."""
    schedule = Schedule()
    tries = [state_of(["job.json", f"webhook-{number}.json"], job_id) for number in range(1, schedule.tries + 1)]
    return [schedule.due_at(state) - state.last_try_at for state in tries]


def test_pauses_grow_over_about_a_day_and_none_is_shorter_than_a_try() -> None:
    """A try that may still be under way is never overtaken, whatever the jitter."""
    for number in range(200):
        pauses = pauses_of(f"{number:032x}")
        *between, after_the_last = pauses
        assert timedelta(hours=20) < sum(between, timedelta()) < timedelta(hours=36)
        assert all(later > sooner for sooner, later in itertools.pairwise(between))
        assert min(between[0], after_the_last) > timedelta(seconds=TRY_SECONDS + 2)


def test_jobs_that_failed_together_are_not_tried_together() -> None:
    """Pauses differ from job to job, by a quarter at most, and are the same to every pod."""
    first = {pauses_of(f"{number:032x}")[0].total_seconds() for number in range(100)}
    assert len(first) > 90
    assert 22.5 <= min(first) < 26
    assert 34 < max(first) <= 37.5
    assert pauses_of(JOB_ID) == pauses_of(JOB_ID)


@pytest.mark.parametrize(
    "text",
    ["https://shop.example/hook?token=a%20b", "http://receiver.default.svc.cluster.local:8080/", "https://[::1]/"],
)
def test_urls_of_receivers(text: str) -> None:
    """They are kept as they came."""
    assert parse_webhook_url(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "https://me:s3cr3t@shop.example/",
        "https://s3cr3t@shop.example/",
        "https:///s3cr3t",
        "https://shop.example:99999/s3cr3t",
        "https://shop.example\\@s3cr3t/",
        "https://shop.example/s3cr3t\r\nX-Injected: 1",
        "s3://bucket/s3cr3t",
        "https://[fe80::1%25eth0]/s3cr3t",
    ],
)
def test_urls_that_are_refused_are_not_repeated(text: str) -> None:
    """One line that says what is expected."""
    with pytest.raises(InvalidRequestError, match=r"webhook\.url: expected an http or https URL") as error:
        parse_webhook_url(text)
    assert "s3cr3t" not in error.value.message
