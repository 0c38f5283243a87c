"""Objects by URI: list, read, write, delete, with one small hierarchy of errors for all stores."""
