"""What `tools/kill_everywhere` consists of; `python -m killing --help` in `tools/` is the same.

- `stepper.cpp`, `tracer`: one process runs another, instruction by instruction, and kills it;
- `victim`: the forked process that does it to;
- `stage`, `reading`: a ring with living participants, and what has to hold for them afterwards;
- `operations`, `broker_operations`: what is interrupted;
- `campaign`: all points of an operation, on several CPUs; `command`: the command line.
"""
