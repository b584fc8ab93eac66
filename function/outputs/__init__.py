"""Output files of a job: found where the engine wrote them, stored while the run goes on or handed to the caller."""
