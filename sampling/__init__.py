"""Stage 4: prompts to latents, and from them NeRF turntables and textured meshes."""
