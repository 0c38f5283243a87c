"""What a person sees of a run: the validation report as JSON, as a page, and behind a link in Airflow."""
