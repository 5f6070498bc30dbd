#!/bin/bash
# Start a full-size run as a job on Hugging Face. The same command resumes it:
#
#     examples/hf_jobs.sh ADDRESS_OF_THIS_CODE USER/NAME config/partial_reverse.py
#
# It needs `hf auth login` and credit. The job has not been run yet, only checked with
# `hf jobs run --dry-run`.
# The disk vanishes with the job, so the run is copied to the bucket USER/NAME every ten minutes.
# At the end, the models are published in the repo USER/NAME. Further options go to hf jobs run.
set -eu
usage="usage: examples/hf_jobs.sh ADDRESS_OF_THIS_CODE USER/NAME CONFIG [OPTION ...]"
code=${1:?$usage} name=${2:?$usage} config=${3:?$usage}
shift 3
exec hf jobs run --flavor a100-large --timeout 12h --secrets HF_TOKEN "$@" \
    --env CODE="$code" --env NAME="$name" --env CONFIG="$config" \
    python:3.12-bookworm bash -euc '
git clone --quiet "$CODE" code
cd code
pip install --quiet -c constraints.txt -r requirements.txt
save() { hf buckets sync out/run "hf://buckets/$NAME" --exclude "*.unfinished" --exclude .lock; }
hf buckets create "$NAME" --private --exist-ok
mkdir -p out/run
hf buckets sync "hf://buckets/$NAME" out/run
python prepare.py "$CONFIG"
(while sleep 600; do save || true; done) &
saving=$!
python train.py "$CONFIG" --out_dir=out/run
kill $saving
save
python convert_to_hf.py --out_dir=out/run --push_to_hub="$NAME"
'
