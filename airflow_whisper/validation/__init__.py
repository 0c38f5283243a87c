"""Decide whether a run may be published: checks of staged rows, and the figures of the report.

Add new checks to ``checks`` and call them in ``run``. Memory use must not grow with the number of rows. The
presentation of checks belongs in ``report``.
"""
