"""How gunicorn runs the function: its settings, the application, and an orderly shutdown."""
