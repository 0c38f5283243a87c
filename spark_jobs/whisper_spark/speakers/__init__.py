"""Tells who says what: embeddings of speech, clusters of embeddings, and speakers of words.

Embeddings are computed while a file is read, speakers are told apart at its end. A failure here costs a file
its speakers, never its transcript.
"""
