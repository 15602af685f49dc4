"""Configuration: the keys, the YAML files that set them, and where each value came from.

`schema` lists every key of a run, `loader` merges its sources, `profiles/` describe rings and
machines, `workloads/` describe what is sent through them. `brokers` has the keys and the file of
``embar-shm broker``. Both read with `entries`, `fields`, `values`, and merge with `merge`.
Import from these modules: a broker that is started again should not wait for the keys of runs.
"""

from __future__ import annotations

if __name__ != "embar_shm.config":
    # The directory stands at the top of the source tree, so `import config` finds it when Python
    # runs there. A second copy of the classes under that name would fail every isinstance check.
    raise ImportError(f"import this package as embar_shm.config, not as {__name__}")
