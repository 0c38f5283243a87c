"""What this provider tells Airflow about itself. Imports nothing: all Airflow components load it."""


def get_provider_info() -> dict[str, object]:
    """Provider metadata in the shape of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-whisper",
        "name": "Whisper",
        "description": "Audio in object storage becomes a trustworthy table of transcripts: "
        "faster-whisper on Spark, from Apache Airflow.",
        "extra-links": [
            "airflow_whisper.links.SparkUILink",
            "airflow_whisper.links.ReportLink",
            "airflow_whisper.links.TableLink",
        ],
        "integrations": [
            {
                "integration-name": "Whisper",
                "external-doc-url": "https://github.com/SYSTRAN/faster-whisper",
                "tags": ["software"],
            }
        ],
        "operators": [
            {
                "integration-name": "Whisper",
                "python-modules": [
                    "airflow_whisper.operators.discover",
                    "airflow_whisper.operators.transcribe",
                    "airflow_whisper.operators.validate",
                    "airflow_whisper.operators.register",
                ],
            }
        ],
        "sensors": [
            {"integration-name": "Whisper", "python-modules": ["airflow_whisper.sensors.audio"]},
        ],
        "triggers": [
            {"integration-name": "Whisper", "python-modules": ["airflow_whisper.triggers.audio"]},
        ],
    }
