import sys

from offroad.cli import main

sys.exit(main())
