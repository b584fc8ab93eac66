"""What can be said of a workflow before models are brought and the engine is asked: node definitions and policy."""
