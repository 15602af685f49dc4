"""Measuring: runs brokers, publishers and subscribers as processes and makes a result of it.

`coordinator` runs a workload: `scenarios` says what there is, `crew` who works, `phases` when, and
`failure` does the one with a broker that dies. `fleet` has the processes, `specs` what they are
told to be; `worker` is what they execute, with `publishing`, `producers` and `reading`, and
`access` what tokens and certificates mean to them. `ceilings` and `yardsticks` are the same two
sides of measuring the machine, `watch` sees progress.
`result` is the stable JSON, `stages`, `sockets`, `instrumentation` and `environment` fill parts of
it, as do `delivery` (what subscribers read, and whether it is what was published) and `latency`;
`csvfile` writes one row.
`verdict` judges a result by the rules in `bounds` and `notes`, which ask `facts` and `breakdown`.
`compare` runs several transports in turn, `contrast` says what their difference means.
"""
