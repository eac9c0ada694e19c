"""What a shape is: an implicit MLP whose hidden matrices belong to one asset."""

from shapeloom import cpu as cpu
