"""Compare methods at equal cost: train them from one dense parent, measure them side by side, and rank them."""
