"""Configuration: the keys, the YAML files that set them, and where each value came from.

`schema` lists every key of a run, `loader` merges its sources, `profiles/` describe rings and
machines, `workloads/` describe what is sent through them. `brokers` has the keys and the file of
``embar-shm broker``. Both read with `entries`, `fields`, `values`, and merge with `merge`.
"""

from __future__ import annotations

if __name__ != "embar_shm.config":
    # The directory stands at the top of the source tree, so `import config` finds it when Python
    # runs there. A second copy of the classes under that name would fail every isinstance check.
    raise ImportError(f"import this package as embar_shm.config, not as {__name__}")

from embar_shm.config.brokers import BROKER_KEYS, BrokerConfig, load_broker, load_brokers
from embar_shm.config.loader import LoadedConfig, Parameter, builtin_names, load
from embar_shm.config.schema import KEYS, OF_TCP, Key, RunConfig

__all__ = [
    "BROKER_KEYS",
    "KEYS",
    "OF_TCP",
    "BrokerConfig",
    "Key",
    "LoadedConfig",
    "Parameter",
    "RunConfig",
    "builtin_names",
    "load",
    "load_broker",
    "load_brokers",
]
