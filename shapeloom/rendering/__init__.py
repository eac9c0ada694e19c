"""How a shape becomes pixels and surfaces. Knows nothing of latents or networks: fields come as callables."""

from shapeloom import cpu as cpu
