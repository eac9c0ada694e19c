"""What one GPU does: whether it agrees with the CPU, and how fast it trains and decodes."""
