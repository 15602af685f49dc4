"""What an operator sees of rings, and does to them: `ls`, `top`, `fsck`, `clean`, `evict`.

Looking costs a ring's users nothing: everything is read from private copies of its words
(`copies`), and the kernel is asked who is alive. Nothing but `cleaning` and `eviction` changes
anything.
"""

from __future__ import annotations
