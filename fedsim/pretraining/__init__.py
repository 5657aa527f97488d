"""Pretraining of the embedded backbone (``python -m fedsim.pretraining``): documents, tokenizer, embeddings, batches."""
