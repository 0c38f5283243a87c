"""The operators, one module each. They handle arguments, templates, log messages and XComs.

Keep them thin: decisions belong in ``discovery``, ``validation`` and ``table``, which are tested without
Airflow. Arguments, template fields, returned keys and class paths are public.
"""
