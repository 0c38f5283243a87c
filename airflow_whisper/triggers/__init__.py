"""Triggers that watch for audio in the triggerer, without occupying a worker slot.

This package holds only asynchronous code around ``watch``, which blocks and therefore runs in a thread.
Airflow's database stores the class paths and serialised arguments of triggers, so both are public.
"""
