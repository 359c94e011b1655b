"""`python -m fedjax_sim.cli`."""

import sys

from fedjax_sim.cli.commands import main

sys.exit(main())
