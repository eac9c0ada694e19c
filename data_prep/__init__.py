"""Stage 1: a folder of 3D files -> views, coloured points and signed distances in WebDataset shards."""

import shapeloom as shapeloom  # first of all: it refuses a second writer before anything heavy is imported
