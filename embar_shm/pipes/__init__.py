"""Between files and rings: what ``embar-shm publish`` and ``embar-shm subscribe`` do.

`source` reads in pieces and stops for signals, `pacer` keeps a rate, `publishing` turns bytes into
messages; `subscribing` does the opposite.
"""
