"""Bytes -> windows: decode any container, find speech, pack it into windows, compute log-mel features.

Knows neither Whisper nor Spark. A file that cannot be decoded raises ``AudioError``, never anything else.
"""
