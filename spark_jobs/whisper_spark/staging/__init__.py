"""What a run leaves in staging: rows that are durable while the job runs, and its result."""
