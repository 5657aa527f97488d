"""Pretraining of the embedded backbone (``python -m fedsim.assets.pretraining``): documents, tokenizer, embeddings, batches."""
