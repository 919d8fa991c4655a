#!/usr/bin/env bash
# The snippets of docs/using.md with Scanpy, cell-eval and pertpy, and their numbers beside ours.
#
#     bash tests/interop.sh [FOLDER]
#
# The tools get an environment of their own, in FOLDER (a temporary one), where it is found again.
# Five minutes on two cores, and as long again where the tools have to be installed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
cd "$folder"
if [ ! -d venv ]; then
    python3 -m venv venv
    venv/bin/pip install -q -r "$root/requirements.txt" scanpy cell-eval pertpy "statsmodels<0.15"
fi
source venv/bin/activate
export MPLBACKEND=Agg
if [ ! -f runs/simulated/model.pt ]; then
    python "$root/train.py" --epochs 4 >train.txt 2>&1 || { tail -n 5 train.txt; exit 1; }
fi
python "$root/tests/interop.py"
