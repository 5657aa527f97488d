"""Trackers: services that are told of a run while it goes on, such as TensorBoard, Weights & Biases and MLflow."""
