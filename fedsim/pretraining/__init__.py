"""Makes the embedded backbone again (``python -m fedsim.pretraining``): its documents, tokenizer, word vectors, batches."""
