"""What helps how much: models, presets, samplers and reconstructions measured for their quality."""
