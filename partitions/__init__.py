"""How a dataset is dealt out to clients: one small base class, one file a partitioner, a registry."""
