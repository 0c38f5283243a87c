"""Write the transcripts of a partition as files, and keep these files equal to the table's rows.

Which row each file was written from is recorded beside the files, in the index of the partition.
"""
