"""Operators, one concept a file."""
