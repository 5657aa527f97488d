"""Devices and availability of files: our own form, FLHetBench's and FedScale's."""
