"""Jobs in storage: what a pod must not forget, and what any other pod can answer from.

Below RESULTS_URL:

    jobs/<job_id>/job.json               create-if-absent: the job, without credentials
    jobs/<job_id>/attempt-<n>.json       create-if-absent: one pod's claim of attempt n
    jobs/<job_id>/attempt-<n>.beat       put by the claimer alone: it is at work, and how far
    jobs/<job_id>/attempt-<n>.returned   create-if-absent: handed back, it doesn't count
    jobs/<job_id>/attempt-<n>.failed     create-if-absent: it ended without a result, and counts
    jobs/<job_id>/cancel                 create-if-absent: somebody wants the job to end
    jobs/<job_id>/result.json            create-if-absent, written last: the manifest; its presence means done
    inputs/<job_id>/<n>.<ext>            files that came inside the workflow
    outputs/<job_id>/<n>/...             files of attempt n
    open/<job_id>                        there while a job that outlives its request is not done with
    held/<process>                       put again by one process: the open jobs whose requests it holds
    index/<inverted ms>-<job_id>         create-if-absent: newest first
    labels/<digest>/<job_id>             create-if-absent: the jobs that clients of comfyui-api gave one id

Create-if-absent is the only conditional write. Status is derived from what is there and never stored.
"""
