"""Part dictionaries: learned vectors of (part, kind) pairs, merged and extended."""
