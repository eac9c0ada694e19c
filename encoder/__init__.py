"""Stage 2: shards -> encoder and weight projection, trained; then every asset -> latent shards."""
