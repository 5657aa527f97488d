"""The frozen model: families, loading, heads, and passes through its layers."""
