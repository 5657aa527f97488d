"""What a run leaves behind: its folder, events, Parquet records, checkpoints, and their copies at a URL."""
