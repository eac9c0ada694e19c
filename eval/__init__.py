"""Stage 5: reconstructions and samples -> numbers beside their baselines, and one page to look at."""

import shapeloom as shapeloom  # first of all: it says how threads wait
