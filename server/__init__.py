"""What happens on the server: sampling, aggregation, optimizers. Knows flat vectors and weights only, never a model."""
