#!/usr/bin/env bash
# Run the stages of evidence/smollm2/PROTOCOL.md, or resume them.
#
#   evidence/smollm2/run.sh FOLDER [STAGE ...]
#
# FOLDER needs before: build/smollm2 and build/minilm, the bases (`qpeft base smollm2` and `minilm` there), and texts
# (`evidence/smollm2/texts.py`).
# Rows are copied to results/smollm2 when a stage ends or is stopped with Ctrl-C. Variables: PYTHON, WORKERS, RESULTS, and
# DEVICE: cpu (4 blocks of 64 tokens, the default) or gpu (8 blocks of 128); never both in one FOLDER.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
here="$root/evidence/smollm2"
python=${PYTHON:-$root/.venv/bin/python}
workers=${WORKERS:-2}
results=${RESULTS:-$root/results/smollm2}
size="--batch-size 4 --seq-len 64"
[ "${DEVICE:-cpu}" = cpu ] || size="--batch-size 8 --seq-len 128"
cd "$1"
shift
mkdir -p runs frames "$results"
cp "$here"/studies/*.yaml . # the command of a study is kept, without a path of this machine

study() { # NAME STUDY TEXT [BASE ENDING SIZE]
    local kept="$results/$1.jsonl.xz" folder="runs/$1" base=${4:-smollm2} ending=${5:-txt} status=0
    [ ! -f "$kept" ] || [ -d "$folder" ] || "$python" "$root/evidence/winners.py" restore "$kept" "$folder"
    "$python" -m qpeft compare run "$2.yaml" --base "$base" --data "texts/$3/train.$ending" \
        --eval-data "texts/$3/validation.$ending" --test-data "texts/$3/test.$ending" \
        ${6:-$size} --workers "$workers" --retry failed --out "$folder" || status=$?
    [ $status -eq 2 ] || "$python" "$root/evidence/winners.py" keep "$folder" "$kept" # 2: it did not start
    return $status
}

customers="e2e gsm8k grimm stories numpy python"

shared_frames() { # the frame files of stage 3
    local name
    for name in mixture customers shakespeare wikitext2; do
        [ -f "frames/$name.safetensors" ] || "$python" -m qpeft frames --model smollm2 --data "texts/$name/train.txt" \
            $size --share type --n-layers 1 --r 1 --frame-rank 32 --out "frames/$name"
    done
    [ -f frames/loras.safetensors ] && return
    ls texts/loras | sed 's/.txt//' | xargs -P "$workers" -I{} "$python" -m qpeft train --model smollm2 \
        --data texts/loras/{}.txt --method lora --r 8 --lora-alpha 8 --lr 1e-3 --steps 100 $size \
        --eval-blocks 16 --eval-every 100 --out runs/loras/{}
    "$python" "$here/lora_directions.py" build/smollm2 runs/loras/* --out frames/loras.safetensors
}

stage() {
    local text
    case $1 in
        0) study signal-e2e signal e2e && study signal-shakespeare signal shakespeare ;;
        1) study circuit-e2e circuit e2e ;;
        2)
            study adapters-500-e2e adapters_500 e2e && study adapters-500-seeds-e2e adapters_500_seeds e2e
            study adapters-10000-e2e adapters_10000 e2e && study adapters-10000-seeds-e2e adapters_10000_seeds e2e
            study adapters-10000-twins-e2e adapters_10000_twins e2e && study adapters-e2e adapters e2e
            ;;
        3) shared_frames && for text in $customers; do study "frames-$text" frames "$text"; done ;;
        4) study head-wikitext2 head wikitext2 ;;
        5) study sst2 sst2 sst2-labels minilm jsonl "--batch-size 16 --seq-len 64" ;;
        6)
            study generation-short generation_short e2e-chats smollm2 jsonl "--batch-size 4 --seq-len 192"
            "$python" "$here/slot_values.py" runs/generation-short texts/e2e-chats/test.jsonl "$results/slot-values-short.json"
            "$python" "$here/generation_study.py" "$results/adapters-e2e.jsonl.xz" generation.yaml
            study generation-e2e generation e2e-chats smollm2 jsonl "--batch-size 4 --seq-len 192"
            "$python" "$here/slot_values.py" runs/generation-e2e texts/e2e-chats/test.jsonl "$results/slot-values.json"
            ;;
        7) study adapters-500-shakespeare adapters_500_shakespeare shakespeare && study adapters-shakespeare adapters shakespeare ;;
        8) study twins-e2e twins e2e ;;
        *) echo "no stage $1; there are 0 to 8" >&2 && exit 2 ;;
    esac
}
for name in ${@:-0 1 4 8 5 3 2 6 7}; do stage "$name"; done
