"""Sensors that wait for audio within a DAG run.

This package holds only the arguments and the three modes of waiting: poke, reschedule and deferral. ``watch``
decides which files have arrived. Arguments and class paths are public.
"""
