"""Numbers below 1e-38 are zeros, wherever this has been imported: by all that computes with torch.

They cost a CPU a hundred times as much as others, and saturated densities and signs make many of them: a
trained encoder's step takes half of the time without. Threads inherit it.
"""

import torch

torch.set_flush_denormal(True)
