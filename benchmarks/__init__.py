"""Measurements of speed (``benchmarks.round``) and of learning (``benchmarks.learning``)."""
