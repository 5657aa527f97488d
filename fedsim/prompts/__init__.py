"""Trained prompts: files, usable models, PEFT adapters, starting points."""
