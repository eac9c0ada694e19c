"""Diffusion as mathematics, without networks: schedules, objectives, samplers, guidance."""

from shapeloom import cpu as cpu
