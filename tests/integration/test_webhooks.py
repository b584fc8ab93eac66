"""Webhooks over every kind of store, to a real receiver."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks import Webhook

from function.errors import JobMissingError
from function.job import random_job_id
from function.jobs.dispatch import Dispatcher
from function.jobs.ended import to_ended_event
from function.jobs.holders import Holders
from function.jobs.manifest import utc_now
from function.jobs.records import JobRecords
from function.jobs.sweep import Sweep
from function.storage.connecting import ConnectionRules
from function.webhooks.records import DeadLetter, WebhookRecords
from function.webhooks.sending import Answer, Sender
from function.webhooks.signing import Message
from tests.support.https import HttpsServer, make_server_tls, make_tls, on_this_machine
from tests.support.processes import wait_until
from tests.support.webhooks import HERE, SECRET, Receiver, ended_job, make_webhooks, sweeping_process, trickling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from function.storage.local import LocalStore
    from function.storage.objects import ObjectStore
    from function.webhooks.delivery import Webhooks
    from tests.support.storage import S3Server

AT_ONCE = (0.0,) * 8
SHORTLY = (1.0,) * 8  # longer than a try takes, so that two of them never overlap
SOON = 20.0  # seconds within which a cut-off has to show; the limits under test are far shorter


def notes(store: ObjectStore) -> list[str]:
    """Keys of what is still to be sent."""
    return [info.key for info in store.list_objects("webhooks/due/")]


def records_of(store: ObjectStore, job_id: str) -> list[str]:
    """Names of the records of a job's webhook."""
    prefix = f"jobs/{job_id}/"
    return [info.key.removeprefix(prefix) for info in store.list_objects(f"{prefix}webhook-")]


def is_over(store: ObjectStore, job_id: str) -> bool:
    """Whether a webhook was delivered or given up; a listing beside a write may miss that a note was moved."""
    return "webhook-over.json" in records_of(store, job_id) and not notes(store)


def sweep_until(webhooks: Webhooks, condition: Callable[[], bool], what: str) -> None:
    """Sweep again and again."""

    def swept() -> bool:
        webhooks.sweep()
        return condition()

    wait_until(swept, what=what)


def test_a_webhook_is_the_event_of_the_jobs_end_signed_and_sent_once(store: ObjectStore) -> None:
    """The bytes are those of the reply event; afterwards nothing is left to be done, however often it is asked for."""
    outcomes: list[str] = []
    with Receiver() as receiver:
        result = ended_job(store, f"{receiver.url}?token=7")
        webhooks = make_webhooks(store, outcomes=outcomes)
        webhooks.see_off(result.job_id)
        wait_until(lambda: is_over(store, result.job_id), what="the delivery")
        webhooks.see_off(result.job_id)
        wait_until(lambda: not notes(store), what="the end of the second look")
        (request,) = receiver.requests
    headers, body = to_ended_event(result)
    assert (request.target, request.body) == ("/hook?token=7", body)
    assert request.headers["content-type"] == headers["content-type"]
    assert request.headers["webhook-id"] == result.job_id
    Webhook(SECRET).verify(request.body, request.headers)
    assert json.loads(body)["data"]["job_id"] == result.job_id
    assert records_of(store, result.job_id) == ["webhook-1.json", "webhook-over.json"]
    assert JobRecords(store).open_jobs().objects == ()
    assert outcomes == ["delivered"]


def test_a_failed_job_is_told_of_too_and_no_payload_holds_what_the_job_was_sent_with(store: ObjectStore) -> None:
    """The workflow, the webhook's URL and the secret stay here."""
    with Receiver() as receiver:
        error = {"code": "node_failed", "message": "node 1 failed"}
        job_id = ended_job(store, f"{receiver.url}?token=t0ken", status="failed", error=error).job_id
        make_webhooks(store).see_off(job_id)
        wait_until(lambda: is_over(store, job_id), what="the delivery")
        (request,) = receiver.requests
    assert json.loads(request.body)["type"] == "dev.comfyfn.job.failed"
    sent = request.body + json.dumps(request.headers).encode()
    for secret in (b"s3cret", b"t0ken", SECRET):
        assert secret not in sent


def test_a_job_without_a_webhook_is_closed(store: ObjectStore) -> None:
    """Nothing else is written."""
    result = ended_job(store)
    JobRecords(store).open(result.job_id)
    make_webhooks(store).see_off(result.job_id)
    assert JobRecords(store).open_jobs().objects == ()
    assert notes(store) == records_of(store, result.job_id) == []


def test_several_receivers_are_told_each_for_itself(store: ObjectStore) -> None:
    """One that refuses is given up and tried again alone; the other gets its message once."""
    outcomes: list[str] = []
    with Receiver() as good, Receiver(410, 200) as bad:
        job_id = ended_job(store, good.url, bad.url).job_id
        webhooks = make_webhooks(store, outcomes=outcomes)
        webhooks.see_off(job_id)
        wait_until(lambda: sorted(outcomes) == ["dead", "delivered"], what="both outcomes")
        (letter,) = WebhookRecords(store).dead_letters()
        assert (letter.job_id, letter.number, letter.status) == (job_id, 1, 410)
        WebhookRecords(store).revive(job_id)
        sweep_until(webhooks, lambda: outcomes.count("delivered") == 2, "the second delivery")
        wait_until(lambda: not notes(store), what="the end of its note")
        assert (len(good.requests), len(bad.requests)) == (1, 2)
    assert list(WebhookRecords(store).dead_letters()) == []


def test_a_webhook_of_a_job_that_is_gone_is_forgotten(store: ObjectStore) -> None:
    """Nothing is left behind that every sweep would look at again."""
    WebhookRecords(store).plan(random_job_id())
    webhooks = make_webhooks(store)
    sweep_until(webhooks, lambda: not notes(store), "the end of the note")


def test_a_sweep_sees_off_a_job_whose_process_died_after_its_end(local_store: LocalStore, tmp_path: Path) -> None:
    """It is open, has a result, and nobody has spoken for it for a while."""
    with Receiver() as receiver:
        job_id = ended_job(local_store, receiver.url).job_id
        webhooks, records = make_webhooks(local_store), JobRecords(local_store)
        holders = Holders(local_store)
        dispatcher = Dispatcher("http://127.0.0.1:1/", records, holders, answer_seconds=1, on_ended=webhooks.see_off)
        sweep = Sweep(records, dispatcher, on_ended=webhooks.see_off, chores=(webhooks.sweep,))
        sweep.run()
        assert records_of(local_store, job_id) == []
        an_hour_ago = time.time() - 3600
        os.utime(tmp_path / "store" / "open" / job_id, (an_hour_ago, an_hour_ago))
        sweep.run()
        wait_until(lambda: is_over(local_store, job_id), what="the delivery")
        assert len(receiver.requests) == 1
    assert records.open_jobs().objects == ()


def test_errors_of_the_receiver_are_tried_again_by_other_processes_with_the_same_id(store: ObjectStore) -> None:
    """What one process has tried is known to the next; each try is signed anew."""
    outcomes: list[str] = []
    with Receiver(500, 503, 429, 200) as receiver:
        result = ended_job(store, receiver.url)
        make_webhooks(store, pauses=SHORTLY, outcomes=outcomes).see_off(result.job_id)
        wait_until(lambda: len(outcomes) == 1, what="try 1")
        for tries in (2, 3, 4):  # the store's clock counts full seconds: a sweep in the second of a try finds none due
            webhooks = make_webhooks(store, pauses=SHORTLY, outcomes=outcomes)
            sweep_until(webhooks, lambda tries=tries: len(outcomes) >= tries, f"try {tries}")
        wait_until(lambda: is_over(store, result.job_id), what="the delivery")
        assert {request.headers["webhook-id"] for request in receiver.requests} == {result.job_id}
        assert {request.body for request in receiver.requests} == {to_ended_event(result)[1]}
        for request in receiver.requests:
            Webhook(SECRET).verify(request.body, request.headers)
    assert outcomes == ["failed"] * 3 + ["delivered"]


def test_the_next_try_waits_for_its_time(store: ObjectStore) -> None:
    """The note says when, sweeps before that leave it alone, and even a note that is due too early changes nothing."""
    outcomes: list[str] = []
    with Receiver(500) as receiver:
        job_id = ended_job(store, receiver.url).job_id
        webhooks = make_webhooks(store, outcomes=outcomes)
        webhooks.see_off(job_id)
        wait_until(lambda: outcomes == ["failed"], what="the first try")
        (note,) = notes(store)
        seconds = int(note.rpartition("/")[2].partition("-")[0]) / 1000 - utc_now().timestamp()
        assert 15 < seconds < 38
        webhooks.sweep()
        WebhookRecords(store).plan(job_id)
        sweep_until(webhooks, lambda: notes(store) == [note], "the end of the early note")
        assert outcomes == ["failed"]
        assert len(receiver.requests) == 1


def test_notes_are_read_in_the_order_of_their_time_and_only_those_that_are_due(store: ObjectStore) -> None:
    """However many wait for later."""
    records, now = WebhookRecords(store), utc_now()
    planned = {minutes: random_job_id() for minutes in (5, -5, 60, -60)}
    for minutes, job_id in planned.items():
        records.postpone(records.plan(job_id), now + timedelta(minutes=minutes))
    assert [key[-32:] for key in records.due(now)] == [planned[-60], planned[-5]]


@pytest.mark.parametrize("status", [400, 404, 410])
def test_a_refusal_is_final_until_somebody_has_it_tried_again(store: ObjectStore, status: int) -> None:
    """There is a dead letter that says why, without the path and query of the URL; a retry begins anew."""
    outcomes: list[str] = []
    with Receiver(status, 200) as receiver:
        job_id = ended_job(store, f"{receiver.url}?token=7").job_id
        webhooks = make_webhooks(store, outcomes=outcomes)
        webhooks.see_off(job_id)
        wait_until(lambda: outcomes == ["dead"], what="the end")
        records = WebhookRecords(store)
        (letter,) = records.dead_letters()
        says = f"http://127.0.0.1:{receiver.port}: HTTP {status}"
        assert letter == DeadLetter(job_id, status, says, 1, letter.at)
        webhooks.sweep()
        records.revive(job_id)
        assert list(records.dead_letters()) == []
        sweep_until(webhooks, lambda: outcomes == ["dead", "delivered"], "the delivery")
        assert is_over(store, job_id)
        assert len(receiver.requests) == 2
    with pytest.raises(JobMissingError, match="there is no dead letter of job"):
        records.revive(job_id)


def test_it_is_given_up_after_the_last_try(store: ObjectStore) -> None:
    """A receiver that never works costs a number of tries."""
    outcomes: list[str] = []
    with Receiver(500) as receiver:
        job_id = ended_job(store, receiver.url).job_id
        webhooks = make_webhooks(store, pauses=(0.0, 0.0), outcomes=outcomes)
        webhooks.see_off(job_id)
        sweep_until(webhooks, lambda: "dead" in outcomes, "the end")
        assert len(receiver.requests) == 3
    assert outcomes == ["failed", "failed", "dead"]
    (letter,) = WebhookRecords(store).dead_letters()
    assert (letter.status, letter.tries) == (500, 3)


def test_a_dead_letter_is_deleted_with_its_job(store: ObjectStore) -> None:
    """Retention leaves no trace."""
    records = WebhookRecords(store)
    job_id = ended_job(store, "http://127.0.0.1:1/").job_id
    records.bury(job_id, status=404, says="HTTP 404", tries=1)
    JobRecords(store).expire(utc_now() + timedelta(days=1))
    assert [info.key for info in store.list_objects() if job_id in info.key] == []


def test_a_note_of_a_job_that_is_gone_goes_too(store: ObjectStore) -> None:
    """It expired while its webhook waited."""
    WebhookRecords(store).plan(random_job_id())
    sweep_until(make_webhooks(store), lambda: not notes(store), "the end of the note")


def test_pods_that_sweep_at_once_make_each_try_once(store: ObjectStore) -> None:
    """Of five pods that see eight jobs off and sweep at the same moment, each job's first try is one pod's."""
    outcomes: list[str] = []
    with Receiver(200) as receiver:
        job_ids = [ended_job(store, receiver.url).job_id for _ in range(8)]
        pods = [make_webhooks(store, outcomes=outcomes) for _ in range(5)]
        barrier = threading.Barrier(len(pods))

        def work(webhooks: Webhooks) -> None:
            barrier.wait()
            for job_id in job_ids:
                webhooks.see_off(job_id)
            webhooks.sweep()

        threads = [threading.Thread(target=work, args=(pod,)) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: len(outcomes) == len(job_ids), what="the deliveries")
        a_day_later = make_webhooks(store, outcomes=outcomes, clock=lambda: utc_now() + timedelta(days=1))
        sweep_until(a_day_later, lambda: not notes(store), "the end of every note")
        assert sorted(request.headers["webhook-id"] for request in receiver.requests) == sorted(job_ids)
    assert outcomes == ["delivered"] * len(job_ids)


@pytest.mark.parametrize("kind", ["local_store", "s3_store"])
def test_a_process_that_is_killed_in_a_try_leaves_the_next_one_to_others(
    kind: str, request: pytest.FixtureRequest, s3_server: S3Server
) -> None:
    """The receiver gets the same message again once the pause is over, and takes it."""
    store: ObjectStore = request.getfixturevalue(kind)
    with Receiver(0, 200) as receiver:
        job_id = ended_job(store, receiver.url).job_id
        WebhookRecords(store).plan(job_id)
        with sweeping_process(store, s3_server.environ, pause_seconds=2) as first:
            wait_until(lambda: len(receiver.requests) == 1, what="the first try")
            first.kill()
            first.wait()
        assert records_of(store, job_id) == ["webhook-1.json"]
        with sweeping_process(store, s3_server.environ, pause_seconds=2):
            wait_until(lambda: is_over(store, job_id), what="the delivery")
        assert len(receiver.requests) == 2
        assert len({(one.headers["webhook-id"], one.body) for one in receiver.requests}) == 1
    assert records_of(store, job_id) == ["webhook-1.json", "webhook-2.json", "webhook-over.json"]


def test_a_last_try_that_was_cut_off_ends_in_a_dead_letter(store: ObjectStore) -> None:
    """Nobody knows what became of it, and somebody may want to try again."""
    job_id = ended_job(store, "http://127.0.0.1:1/").job_id
    records = WebhookRecords(store)
    for number in (1, 2):
        assert records.claim(job_id, number)
    records.plan(job_id)
    sweep_until(make_webhooks(store, pauses=(0.0,)), lambda: is_over(store, job_id), "the end")
    (letter,) = records.dead_letters()
    assert (letter.status, letter.tries, letter.says) == (0, 2, "the last try was cut off before its answer")


def post(url: str, *, seconds: float = 10.0, sender: Sender | None = None) -> Answer:
    """What becomes of one request that may take some time."""
    message = Message("1", {"Content-Type": "application/json"}, b"{}")
    return (sender or Sender(HERE)).post(url, message, until=time.monotonic() + seconds)


def test_a_receiver_that_hangs_is_cut_off() -> None:
    """The try ends within its time and is no delivery."""
    with Receiver(0) as receiver:
        began = time.monotonic()
        answer = post(receiver.url, seconds=0.3)
        assert time.monotonic() - began < SOON
        assert (answer.status, answer.delivered, answer.final) == (0, False, False)
        assert answer.says.startswith(f"http://127.0.0.1:{receiver.port}: no answer")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_receiver_that_trickles_is_cut_off_all_the_same(scheme: str) -> None:
    """Each byte comes in time, the answer never does."""
    with trickling(make_server_tls() if scheme == "https" else None) as port:
        sender = Sender(ConnectionRules(allow_private=True, resolve=on_this_machine, make_tls=make_tls))
        began = time.monotonic()
        answer = post(f"{scheme}://shop.example:{port}/", seconds=0.5, sender=sender)
        assert time.monotonic() - began < SOON
    assert (answer.status, answer.final) == (0, False)


def test_a_try_whose_time_is_over_before_it_is_sent_reaches_nobody() -> None:
    """Its claim took too long, and another pod may be at the next one."""
    with Receiver() as receiver:
        assert post(receiver.url, seconds=0).status == 0
    assert receiver.requests == []


def test_redirects_are_not_followed() -> None:
    """It counts as an error that may pass."""
    with Receiver() as other, Receiver(307) as receiver:
        receiver.location = other.url
        assert post(receiver.url) == Answer(307, f"http://127.0.0.1:{receiver.port}: HTTP 307")
        assert other.requests == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://[::1]:{port}/"])
def test_private_addresses_are_refused_for_good_unless_they_are_allowed(url: str) -> None:
    """Nothing is sent there."""
    with Receiver() as receiver:
        answer = post(url.format(port=receiver.port), sender=Sender(ConnectionRules(plain_http=True)))
        assert answer.final
        assert "ALLOW_PRIVATE_NETWORKS=true" in answer.says
        assert receiver.requests == []


@pytest.mark.parametrize("address", ["169.254.169.254", "100.100.100.200", "fd00:ec2::254"])
def test_metadata_addresses_are_never_reached(address: str) -> None:
    """Whatever the settings, and whatever the name."""
    rules = ConnectionRules(allow_private=True, plain_http=True, resolve=lambda _host, _port: [address])
    answer = post("http://receiver.example/", sender=Sender(rules))
    assert answer.final
    assert "metadata" in answer.says


def test_a_name_is_resolved_once_and_spoken_to_the_receiver() -> None:
    """The connection goes to the address that was checked."""
    asked: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with Receiver() as receiver:
        rules = ConnectionRules(allow_private=True, plain_http=True, resolve=resolve)
        assert post(f"http://shop.example:{receiver.port}/a?b", sender=Sender(rules)).delivered
        (request,) = receiver.requests
        assert (request.target, request.headers["host"]) == ("/a?b", f"shop.example:{receiver.port}")
    assert asked == ["shop.example"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="certificate"),
        pytest.param({"resolve": lambda _host, _port: []}, id="name"),
        pytest.param({"connect_seconds": 0.001, "resolve": lambda _host, _port: ["192.0.2.1"]}, id="connection"),
    ],
)
def test_what_may_be_mended_is_tried_again(change: dict[str, Any]) -> None:
    """A certificate that is not valid, a name without an address, a host that does not answer."""
    with HttpsServer() as server:
        rules = {"allow_private": True, "plain_http": True, "resolve": on_this_machine} | change
        answer = post(server.url("/s3cret"), sender=Sender(ConnectionRules(**rules)))
    assert (answer.status, answer.final) == (0, False)
    assert "s3cret" not in answer.says
