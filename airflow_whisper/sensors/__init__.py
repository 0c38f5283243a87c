"""Sensors: wait for audio inside a DAG run."""
