"""The operators, one file each: arguments, templates, messages and XCom.

Decisions belong to ``discovery``, ``validation`` and ``table``, where they are tested without Airflow.
Template fields, returned keys and class paths are public.
"""
