"""Configuration of a run: the keys, the YAML files that set them, and where each value came from.

`schema` lists every key, `loader` merges the sources, `profiles/` describe rings and machines,
`workloads/` describe what is sent through them.
"""

from __future__ import annotations

if __name__ != "embar_shm.config":
    # The directory stands at the top of the source tree, so `import config` finds it when Python
    # runs there. A second copy of the classes under that name would fail every isinstance check.
    raise ImportError(f"import this package as embar_shm.config, not as {__name__}")

from embar_shm.config.loader import LoadedConfig, Parameter, builtin_names, load
from embar_shm.config.schema import KEYS, OF_TCP, Key, RunConfig

__all__ = [
    "KEYS",
    "OF_TCP",
    "Key",
    "LoadedConfig",
    "Parameter",
    "RunConfig",
    "builtin_names",
    "load",
]
