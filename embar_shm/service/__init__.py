"""Brokers in the foreground, as an operator or a service manager runs them.

`serving` runs one in this process, `supervisor` several, each in a process of its own (`child`).
Whoever starts them is told what happens as an `Audience`.
"""
