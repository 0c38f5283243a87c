"""What may be wrong with the audio of a partition. A message says what to do."""

from __future__ import annotations


class DiscoveryError(Exception):
    """The source holds nothing, or too little, of what the table has or the arguments ask for."""
