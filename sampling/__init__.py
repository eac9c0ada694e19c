"""Stage 4: prompts to latents, and from them NeRF turntables and textured meshes."""

import shapeloom as shapeloom  # first of all: it says how threads wait
