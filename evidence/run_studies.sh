#!/usr/bin/env bash
# Run the studies of evidence/PROTOCOL.md one after the other, or resume them from the rows in results/. Hours on two cores.
#
#   evidence/run_studies.sh FOLDER [STAGE ...]
#
# FOLDER is for runs, and needs before: models/stories260K and models/llama10m (`make bases`), and the texts grimm.txt,
# shakespeare.txt and wikitext2.txt. Stages are those at the end of this file; without one, all run.
# The searches of stories260K are complete; commit 8a2c555b ran them, and later ones count their settings as others.
# Rows are kept in results/ when a stage ends or is stopped with Ctrl-C.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python="$root/.venv/bin/python"
winners="$root/evidence/winners.py"
studies="$root/evidence/studies"
cd "$1"
shift
mkdir -p texts runs models
ln -sfn "$root/evidence/bases/bytes1m" models/bytes1m
cp "$studies"/*.yaml . # the command of a study is kept, without a path of this machine
[ -d texts/numpy ] || "$python" "$root/evidence/split_text.py" numpy --skip 0.6 --out texts/numpy
[ -d texts/grimm ] || "$python" "$root/evidence/split_text.py" grimm.txt --skip 0.6 --out texts/grimm
[ -d texts/shakespeare ] || "$python" "$root/evidence/split_text.py" shakespeare.txt --out texts/shakespeare

run() { # NAME/SETUP STUDY.yaml BASE TEXT PART TEST [OPTION ...]
    local name=$1 study=$2 base=$3 text=$4 part=$5 test=$6 kept="$root/results/$1.jsonl.xz" folder="runs/$1"
    shift 6
    [ ! -f "$kept" ] || [ -d "$folder" ] || "$python" "$winners" restore "$kept" "$folder"
    local status=0
    "$python" -m qpeft compare run "$study" --base "$base" --data "texts/$text/$part.txt" \
        --eval-data "texts/$text/validation.txt" --test-data "$test" --workers "${WORKERS:-2}" --retry failed --out "$folder" "$@" || status=$?
    [ $status -eq 2 ] || "$python" "$winners" keep "$folder" "$kept" # 2: it did not start
    return $status
}

search() { # STUDY SETUP BASE TEXT: until its trials have ended; the runs behind them choose nothing
    run "$1/$2" "$1.yaml" "$3" "$4" train wikitext2.txt 2>&1 | sed -u '/ seed[01]: /q' || true
}

second() { # STUDY SETUP BASE TEXT SEARCHED: the winners of the search of a setup
    "$python" "$winners" final "$root/results/$1/$5.jsonl.xz" "runs/$1-$2.yaml"
    run "$1-final/$2" "runs/$1-$2.yaml" "$3" "$4" train "texts/$4/test.txt"
}

angles() { # SETUP BASE TEXT
    run "angles/$1" angles.yaml "$2" "$3" train "texts/$3/test.txt"
}

epochs() { # SETUP BASE TEXT EPOCHS
    "$python" "$winners" epochs "$root/results/equal-search/$1.jsonl.xz" "runs/epochs-$1.yaml"
    run "equal-search-epochs/$1-$4" "runs/epochs-$1.yaml" "$2" "$3" epoch "texts/$3/test.txt" --epochs "$4"
}

margins() { # SETUP BASE TEXT
    run "margins/$1" margins.yaml "$2" "$3" epoch "texts/$3/test.txt"
}

elsewhere() { # SETUP BASE TEXT
    [ -d "texts/$3" ] || "$python" "$root/evidence/split_text.py" "$3.txt" --out "texts/$3"
    "$python" "$root/evidence/suggest_evidence.py" "runs/elsewhere-$1.yaml" "${1%-*}"
    run "elsewhere/$1" "runs/elsewhere-$1.yaml" "$2" "$3" train "texts/$3/test.txt"
}

rates() { # SETUP BASE TEXT: the search of the learning rates of suggest
    "$python" "$root/evidence/suggest_evidence.py" rates.yaml "${1%-*}" --rates
    search rates "$@"
}

stories=models/stories260K bytes1m=models/bytes1m
stage() {
    case $1 in
        search-embedded-numpy) search equal-search embedded-numpy embedded numpy ;;
        final-stories-grimm) second equal-search stories-grimm $stories grimm stories-grimm ;;
        final-stories-shakespeare) second equal-search stories-shakespeare $stories shakespeare stories-shakespeare ;;
        final-embedded-numpy) second equal-search embedded-numpy embedded numpy embedded-numpy ;;
        final-embedded-shakespeare) second equal-search embedded-shakespeare embedded shakespeare embedded-numpy ;;
        margins-stories-grimm) margins stories-grimm $stories grimm ;;
        margins-stories-shakespeare) margins stories-shakespeare $stories shakespeare ;;
        margins-embedded-numpy) margins embedded-numpy embedded numpy ;;
        margins-embedded-shakespeare) margins embedded-shakespeare embedded shakespeare ;;
        angles-embedded-numpy) angles embedded-numpy embedded numpy ;;
        angles-embedded-shakespeare) angles embedded-shakespeare embedded shakespeare ;;
        angles-stories-grimm) angles stories-grimm $stories grimm ;;
        angles-stories-shakespeare) angles stories-shakespeare $stories shakespeare ;;
        epochs-stories-grimm) epochs stories-grimm $stories grimm 1 && epochs stories-grimm $stories grimm 4 ;;
        epochs-embedded-numpy) epochs embedded-numpy embedded numpy 1 && epochs embedded-numpy embedded numpy 4 ;;
        adapters-stories) search quantum-adapters stories-grimm $stories grimm
            second quantum-adapters stories-grimm $stories grimm stories-grimm
            second quantum-adapters stories-shakespeare $stories shakespeare stories-grimm ;;
        adapters-bytes1m) search quantum-adapters bytes1m-grimm $bytes1m grimm
            second quantum-adapters bytes1m-grimm $bytes1m grimm bytes1m-grimm
            second quantum-adapters bytes1m-shakespeare $bytes1m shakespeare bytes1m-grimm ;;
        elsewhere-bytes1m) elsewhere bytes1m-wikitext2 $bytes1m wikitext2 && elsewhere bytes1m-shakespeare $bytes1m shakespeare ;;
        rates-bytes1m) rates bytes1m-shakespeare $bytes1m shakespeare ;;
        rates-llama10m) rates llama10m-shakespeare models/llama10m shakespeare ;;
        elsewhere-llama10m) elsewhere llama10m-shakespeare models/llama10m shakespeare ;;
        *) echo "no stage $1; see the end of $0" >&2 && exit 2 ;;
    esac
}
all=$(sed -n 's/^        \([a-z0-9-]*\)) .*/\1/p' "$root/evidence/run_studies.sh")
for name in ${@:-$all}; do stage "$name"; done
