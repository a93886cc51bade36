"""`python -m c_diffset`: the command `c-diffset`."""

import sys

from c_diffset.cli import main

sys.exit(main())
