"""Provider metadata for Airflow. Imports nothing, because every Airflow component loads it."""


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
        "cli": ["airflow_whisper.cli.get_cli_commands"],
        "config": {
            "whisper": {
                "description": "Settings of airflow-provider-whisper.",
                "options": {
                    "warehouse": {
                        "description": "Folder of the embedded catalog and its tables, for one machine.\n"
                        "It is used where no ``catalog_conn_id`` is given.\n"
                        "Empty: ``whisper_warehouse`` in ``AIRFLOW_HOME``.\n",
                        "version_added": "0.2.0",
                        "type": "string",
                        "example": "/srv/whisper_warehouse",
                        "default": "",
                    },
                },
            },
        },
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
                    "airflow_whisper.operators.export",
                    "airflow_whisper.operators.maintain",
                    "airflow_whisper.operators.check",
                ],
            }
        ],
        "sensors": [
            {"integration-name": "Whisper", "python-modules": ["airflow_whisper.sensors.audio"]},
        ],
        "triggers": [
            {
                "integration-name": "Whisper",
                "python-modules": ["airflow_whisper.triggers.audio", "airflow_whisper.triggers.sensor"],
            },
        ],
    }
