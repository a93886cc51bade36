#!/usr/bin/env bash
# The first hour of an engineer with pairs of their own and of an analyst with scenes, from a fresh clone, on generated
# data: every step is timed, and has to end as a user would want it to. Run by hand before a release:
#     tools/first_hour.sh [FOLDER]
# FOLDER is new, holds everything, and stays; by default it is a temporary one that is removed. PYTHON is the
# interpreter that the environment is made with, python3 by default.
set -euo pipefail
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
hour=${1:-$(mktemp -d)}
[ $# -gt 0 ] || trap 'rm -rf "$hour"' EXIT
mkdir -p "$hour"
cd "$hour"

step() { # NAME COMMAND...: run a command and print its time; its output is shown where it fails
    local name=$1 start end
    shift
    start=$(date +%s%N)
    if ! "$@" > step.log 2>&1; then
        cat step.log
        echo "first hour: '$name' failed: $*" >&2
        exit 1
    fi
    end=$(date +%s%N)
    printf '%8.1f s  %s\n' "$(((end - start) / 100000000))e-1" "$name"
}
refuses() { # NAME WORDS COMMAND...: a command that has to end with one line of error that holds these words
    local name=$1 words=$2
    shift 2
    if "$@" > refused.log 2>&1; then
        echo "first hour: '$name' was not refused: $*" >&2
        exit 1
    fi
    if ! grep -q "$words" refused.log || grep -q Traceback refused.log; then
        cat refused.log
        echo "first hour: '$name' was refused in other words than '$words'" >&2
        exit 1
    fi
    printf '%8s    %s\n' "" "$name: refused, as it should be"
}

echo "in $hour"
step "clone" git clone --quiet "$root" c_diffset
step "environment" "${PYTHON:-python3}" -m venv venv
step "installation" venv/bin/pip install --quiet ./c_diffset
export PATH="$hour/venv/bin:$PATH"
step "version and machine" c-diffset env
cp step.log env.txt
step "help" c-diffset --help
step "help of translate" c-diffset translate --help

echo "-- an engineer with pairs of their own"
cat > make.py <<'PYTHON'
import numpy as np
import rasterio
from rasterio.transform import from_origin

from c_diffset import make_pair, write_pairs
from c_diffset.synthetic.generate import to_display

write_pairs("own", count=60, size=64, split="train")
for name, seed, decibels in (("scene", 7, False), ("decibels", 8, True)):
    sar = make_pair(seed=seed, size=256).sar
    values = (20 * np.log10(np.maximum(to_display(sar), 1) / 255) - 5).astype("float32") if decibels else to_display(sar)
    layout = {"driver": "GTiff", "width": 256, "height": 256, "count": 1, "dtype": values.dtype}
    place = {"crs": "EPSG:32631", "transform": from_origin(500_000, 5_700_000, 10, 10)}
    with rasterio.open(f"{name}.tif", "w", **layout, **place) as file:
        file.write(values, 1)
PYTHON
step "generated data" python make.py
step "a look at the data" c-diffset inspect own --output look
recipe=(--config model.yaml --data.source data)
cat > model.yaml <<'YAML'
output_dir: run
model:
  unet: {block_out_channels: [16, 32], layers_per_block: 1}
  prediction_type: sample
  beta_schedule: linear
  zero_terminal_snr: true
  sar_transform: {units: display, range: [0.0, 1.0], channels: [0]}
  default_num_inference_steps: 4
data: {source: data, crop_size: 64}
optimizer: {learning_rate: 5e-4}
validation: {every: 20, num_images: 4, crop_size: null}
max_steps: 60
batch_size: 8
ema_decay: 0.9
YAML
refuses "training without a validation split" validation_fraction c-diffset finetune --config model.yaml --data.source own
step "preparation" c-diffset prepare folders own/train data
step "fine-tuning, interrupted" bash -c 'c-diffset finetune "$@" & sleep 20; kill -TERM $!; wait $! || [ $? -eq 143 ]' _ "${recipe[@]}"
step "fine-tuning, to its end" c-diffset finetune "${recipe[@]}"
cat step.log | tail -8 > finetune.txt
step "calibration" c-diffset calibrate --model run/best --data data --split validation
step "evaluation" c-diffset evaluate --model run/best --data data --split test --output evaluation --download false
step "a second evaluation" c-diffset evaluate --model run/pipeline --data data --split test --output second --download false
step "comparison" c-diffset compare evaluation second --output compare.html
step "distillation" c-diffset distill --teacher run/best --data.source data --data.crop_size 64 --output_dir student \
    --validation.crop_size 64 --validation.every 0 --max_steps 10 --batch_size 4
step "a card to look at" c-diffset publish run/best --repo me/sar2eo --evaluation evaluation --license mit --dry_run preview

echo "-- an analyst with scenes"
step "what the model reads, and the scene" c-diffset info run/best scene.tif
cp step.log info.txt
step "a scene" c-diffset translate scene.tif --model run/best --output eo --confidence --stac --preview
step "the same again" c-diffset translate scene.tif --model run/best --output eo --confidence --stac --preview
step "a part of it" c-diffset translate scene.tif --model run/best --output part --window 64 64 128 96
step "images" c-diffset translate own/train/sar --model run/best --output images
refuses "decibels for a model of display values" "display" c-diffset translate decibels.tif --model run/best --output no
refuses "a shortened option" "num_inference" c-diffset translate scene.tif --model run/best --output no --num_inference 4
echo "done: $hour"
