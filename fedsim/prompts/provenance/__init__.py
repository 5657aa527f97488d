"""Provenance of an exported adapter: a model card and RO-Crate metadata, without paths or names of the machine."""
