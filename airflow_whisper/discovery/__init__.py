"""What has to be done: list the audio of a partition, compare it with the table, write the manifest."""
