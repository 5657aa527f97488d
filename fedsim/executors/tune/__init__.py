"""Ray Tune: searches over configs, each trial a run; reached as ``fedsim.tune``."""

from fedsim.executors.tune.resources import callbacks, resources
from fedsim.executors.tune.trainable import trainable

__all__ = ["callbacks", "resources", "trainable"]
