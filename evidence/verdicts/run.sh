#!/usr/bin/env bash
# The verdicts of circuits.py on the embedded base; run it again to resume.
#
#   evidence/verdicts/run.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
mkdir -p "$1"
cd "$1"
cp "$here/circuits.py" .
for each in hardware_efficient:2,4,2 qaoa:4,2 brick:4,4 iqp:2,8; do
    name=${each%:*}
    "$python" -m qpeft verdict "circuits.py:$name" --shape "${each#*:}" --steps 100 --n-seeds 10 --minutes 120 \
        --workers "${WORKERS:-1}" --yes --out "$name"
done
