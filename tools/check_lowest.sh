#!/usr/bin/env bash
# The lower bounds of setup.cfg are true: the light tests of all that leans on a library pass with the lowest versions.
# usage: tools/check_lowest.sh        (needs `uv`, which the extra `dev` brings)
# Left out are most slow tests, and those of pages, cards and objectives: they use the same few calls of their libraries.
# And uploads to the stand-in for the Hub of `test_saving.py`, which speaks to newer clients only.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
uv venv --quiet --python "$(command -v python3)" --allow-existing "$venv"
uv pip install --quiet --python "$venv/bin/python" --resolution lowest-direct -e ".[test]"
"$venv/bin/python" -m pytest -n 2 -m "not slow" \
    tests/pipelines tests/models tests/data tests/sar tests/test_loading.py tests/hub/test_refusals.py \
    tests/training/test_config.py tests/training/test_recipes.py \
    tests/inference/test_raster.py tests/inference/test_scene.py tests/inference/test_stac.py
# a folder loaded by diffusers alone, and recipes by the command
"$venv/bin/python" -m pytest -n 2 -m slow -k "not an_upload_is_complete" tests/pipelines/test_saving.py tests/training/test_recipes.py
