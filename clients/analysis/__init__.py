"""Measurements on clients before training: layer scores, Hessian spectra, and the layer share."""
