"""The embedded backbone and what makes it (:mod:`fedsim.assets.pretraining`), and a dashboard for Grafana."""
