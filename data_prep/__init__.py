"""Stage 1: a folder of 3D files -> views, coloured points and signed distances in WebDataset shards."""
