"""Vocabulary shared by all parts: errors, seeds, the prompt layout, messages. Imports nothing from the other folders."""
