"""What a user sees: progress, tables and pictures."""
