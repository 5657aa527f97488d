"""The round loop and its parts: preparation, choice of layers, evaluation, recovery, results of a round."""
