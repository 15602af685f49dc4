"""`tools/kill_everywhere` runs this."""

import sys

from killing.command import main

sys.exit(main())
