"""What is measured on clients before training: layer scores, Hessian spectra, and the share of layers."""
