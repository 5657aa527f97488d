"""fedsim: a Ray-native simulator of federated prompt tuning."""

__version__ = "0.1.0"
