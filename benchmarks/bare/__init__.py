"""Loops over clients as careful users write them for a kind of tuner: transformers' own model, padded batches, AdamW."""
