"""Input files of a job: found in its workflow, brought into a directory of the job's own, which goes with the job.

An input file is given as a URL, a data URI, base64, or a name: of an object under UPLOADS_URL, or else of a file that
lies in the engine's input directory. In the record of a job that is run from storage, what came inside the workflow or
from other people's servers is an object of the job's own, `inputs/<job_id>/...` under RESULTS_URL.
"""
