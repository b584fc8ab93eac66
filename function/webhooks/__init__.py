"""Webhooks: who asked for it is told of a job's end, from the stored result, until the receiver has taken it.

Below RESULTS_URL, beside the job's own records:

    webhooks/due/<ms>-<job_id>       there while a webhook has to be sent: not before this moment, in ms since 1970
    jobs/<job_id>/webhook-<n>.json   create-if-absent: one pod's claim of try n; its age says when the next one is due
    jobs/<job_id>/webhook-over.json  create-if-absent: it was delivered, or given up
    webhooks/dead/<job_id>           create-if-absent: a dead letter; what became of a webhook that was given up

A job may have several webhooks, each with records of its own: those of the second one are called `<job_id>.1` in place
of `<job_id>`, and `webhook.1-<n>.json`. Which there are follows from the job and its result (`letters`).

The keys of `webhooks/due/` are in the order of time, so a sweep reads those that are due and no others, however many
wait for a receiver that is down. Such a key only says when to look; the job's records decide, so that a key that is
left over, or there twice, does no harm. A webhook is delivered at least once: a pod that dies between the receiver's
answer and its own record of it leaves another try to be made, with the same `webhook-id`.
"""
