"""Trained parameters: prefixes (prompts), and their injection into attention on padded and packed batches."""
