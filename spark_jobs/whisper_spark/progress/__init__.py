"""Counters of a running engine, and how they reach the log of the driver."""
