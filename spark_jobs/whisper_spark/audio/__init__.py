"""Turns the bytes of a file into windows: decoding, speech detection, packing, log-mel features.

Change here how files are decoded and cut. This package knows neither the Whisper model nor Spark. A file that
cannot be decoded raises ``AudioError`` and nothing else; :mod:`~whisper_spark.audio.reader` turns it into an
error code.
"""
