"""Stage 3: a conditional diffusion prior over latents, and the small CLIP that conditions it offline."""

import shapeloom as shapeloom  # first of all: it says how threads wait
