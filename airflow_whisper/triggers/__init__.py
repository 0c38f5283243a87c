"""Triggers: watch for audio in the triggerer, without holding a worker.

Only asynchronous code around ``watch``, which blocks and therefore runs in a thread. Airflow stores the
class paths and the serialised arguments of triggers: both are public.
"""
