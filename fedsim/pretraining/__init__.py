"""How the embedded backbone came to be: its documents, tokenizer, word vectors and batches; see :mod:`fedsim.pretrain`."""
