"""Stage 2: shards -> encoder and weight projection, trained; then every asset -> latent shards."""

import shapeloom as shapeloom  # first of all: it says how threads wait
