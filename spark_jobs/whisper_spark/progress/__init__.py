"""Counters of a running engine, and how they reach the log of the driver.

Measures, never decides: an engine gives the same transcripts without it, and a store that fails here fails
no task.
"""
