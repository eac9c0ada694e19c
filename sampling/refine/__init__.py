"""Refining shapes by 2-D diffusion models: score distillation into latents or fields of ours."""
