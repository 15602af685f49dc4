"""The same workloads over other ways between processes, and over ours. See README.md here."""
