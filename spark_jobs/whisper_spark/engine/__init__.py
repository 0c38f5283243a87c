"""The engine: reads many files, batches their windows across files, and returns one transcript per file.

Change here how files are read ahead, how windows are batched and in which order files finish, and how a crash
of the engine's process is handled. How a batch is decoded belongs to ``decoding``.
"""
