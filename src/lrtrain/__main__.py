import sys

from lrtrain.cli.main import main

sys.exit(main())
