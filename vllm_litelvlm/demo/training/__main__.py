"""``python -m vllm_litelvlm.demo.training``: see ``--help``."""

import sys

from vllm_litelvlm.demo.training.command import main

if __name__ == "__main__":
    sys.exit(main())
