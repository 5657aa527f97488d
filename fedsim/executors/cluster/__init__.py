"""Clusters: joining or starting Ray, its nodes, and how many actors of which size fit."""
