import sys

from waveglow_jax.cli import main

sys.exit(main())
