"""Part attention in a sampler: recorded, shown, bound to regions."""
