import sys

from lrtrain.cli import main

sys.exit(main())
