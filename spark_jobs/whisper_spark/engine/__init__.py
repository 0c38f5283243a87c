"""Many files -> batches across files -> transcripts, in one process.

The order in which files finish, and how windows share batches, is decided here and nowhere else.
"""
