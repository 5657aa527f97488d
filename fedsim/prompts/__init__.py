"""Trained prompts as files, as usable models, as PEFT adapters and as starting points."""
