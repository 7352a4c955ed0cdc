"""What a model needs before it runs: parameters, arithmetic, memory, and whether it fits."""
