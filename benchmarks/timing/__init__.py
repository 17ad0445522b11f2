"""Speed and memory beside reference formulations and other libraries; ``python -m benchmarks.run`` runs all of them."""
