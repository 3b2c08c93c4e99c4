#!/usr/bin/env bash
# The verdicts of circuits.py on the embedded base, kept in results/verdicts; run it again to resume.
# Ten seeds, as a verdict needs them, and few steps: a verdict takes about 12 minutes of processor
# time.
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
    "$python" -m qpeft verdict "circuits.py:$name" --shape "${each#*:}" --steps 30 --n-seeds 10 --minutes 240 \
        --workers "${WORKERS:-1}" --yes --out "$name"
    kept="$here/../../results/verdicts/$name"
    "$python" "$here/../winners.py" keep "$name" "$kept.jsonl.xz"
    cp "$name/verdict.json" "$kept.json"
done
