"""What arrived? Listing a source again and again, and which partitions have new audio since."""
