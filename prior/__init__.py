"""Stage 3: a conditional diffusion prior over latents, and the small CLIP that conditions it offline."""
