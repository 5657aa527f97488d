"""What is trained: prefixes (prompts) and how they enter attention, on padded and on packed batches."""
