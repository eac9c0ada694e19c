"""Diffusion as mathematics, without networks: schedules, objectives, samplers, guidance."""
