"""Network parts that every stage shares: attention and the transformer block."""
