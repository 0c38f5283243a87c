"""Errors in the audio of a partition. Their messages say what to do."""

from __future__ import annotations


class DiscoveryError(Exception):
    """The source lacks the audio that the arguments select, or too much of the audio that the table has."""
