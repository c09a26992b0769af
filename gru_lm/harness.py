"""An alias of `gru_lm.integrations.lm_eval`, the adapter for lm-evaluation-harness."""

import sys

from gru_lm.integrations.lm_eval import GruLM, main

__all__ = ["GruLM", "main"]

if __name__ == "__main__":
    sys.exit(main())
