"""Speed and memory, compared with reference formulations and other libraries; ``python -m benchmarks.run`` runs all of them."""
