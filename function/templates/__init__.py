"""Templates: workflows with parameters, kept under WORKFLOWS_URL, that people run by name."""
