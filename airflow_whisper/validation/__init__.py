"""May it be published? Checks of staged rows, and the figures that the report shows.

A new check goes into ``checks``, and is called in ``run``. Memory must not grow with the number of rows.
How a check looks on the page belongs to ``report``.
"""
