"""What takes how long: CPU seconds, memory, and how they scale."""
