"""Chaos and soak: whether what is promised is kept when everything goes wrong, and after hours.

`tools/chaos`: the `conductor` injects the `faults` that the `plan` of a seed says into a `company`
of processes (`crew` starts and hears them, `workers` is what they do, `links` their TCP
connections), and the `oracle` judges what they tell (`records`).
`tools/soak`: `soak` samples what processes and rings use, `judge` says whether anything grows.
"""
