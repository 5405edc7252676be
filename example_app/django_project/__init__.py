"""A minimal Django project with metered chat completions in front of it."""
