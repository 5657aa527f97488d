"""Vocabulary shared by all parts: errors, seeds, the prompt layout, messages. Imports nothing of the other folders."""
