"""May it be published? Checks of staged rows, and the numbers that the report shows."""
