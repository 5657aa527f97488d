"""The server side: sampling, aggregation, optimizers. Works on flat vectors and weights, never on a model."""
