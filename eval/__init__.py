"""Stage 5: reconstructions and samples -> numbers beside their baselines, and one page to look at."""
