"""Sensors: wait for audio inside a DAG run.

Only arguments and the three ways to wait. What counts as arrived is decided in ``watch``.
"""
