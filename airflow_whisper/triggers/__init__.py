"""Triggers: watch for audio without holding a worker."""
