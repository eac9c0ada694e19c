"""Options that the commands of this room have beside --out and the config's. Standard library alone."""

from shapeloom.options import add_executor

OPTIONS = {"encoder.encode": add_executor}
