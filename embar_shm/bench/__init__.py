"""Measuring: runs brokers and publishers as processes and makes a result of what they did.

`coordinator` runs a workload, `fleet` its processes, `worker` is what those processes execute,
`access` what tokens and certificates mean to them; `ceilings` and `yardsticks` are the same two
sides of measuring the machine, `watch` sees progress.
`result` is the stable JSON, `stages`, `sockets`, `instrumentation` and `environment` fill parts of
it, `csvfile` writes one row.
`verdict` judges a result by the rules in `bounds` and `notes`, which ask `facts` and `breakdown`.
`compare` runs several transports in turn, `contrast` says what their difference means.
"""
