"""The operators, one module each. They handle arguments, templates, log messages and XComs.

Modules without an operator hold what ``discover`` says in its log, and what comparison, estimate and manifest
need from several packages.

Keep them thin: decisions belong in ``discovery``, ``validation`` and ``table``, which are tested without
Airflow. Arguments, template fields, returned keys and class paths are public.
"""
