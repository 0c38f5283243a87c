"""Checks whether a host can transcribe, and says what to do about each thing that it lacks.

Importing this package needs nothing but the standard library: it must run where other packages are missing.
"""
