#!/usr/bin/env bash
# A wheel built from a clean checkout works outside of it: recipes, demo, report and card, by the command alone.
# usage: tools/check_wheel.sh [PYTHON]
# Without PYTHON everything is installed anew. With it, the libraries are those of that interpreter, which saves
# minutes: its site-packages become a path of the new environment, in which no editable install takes effect.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/checkout" "$work/elsewhere"
git -C "$root" archive HEAD | tar -x -C "$work/checkout"
python3 -m venv "$work/venv"
bin=$work/venv/bin
"$bin/pip" wheel --quiet --no-deps --wheel-dir "$work" "$work/checkout"
if [ $# -gt 0 ]; then
    site=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/borrowed.pth"
    "$bin/pip" install --quiet --no-deps --ignore-installed "$work"/*.whl
else
    "$bin/pip" install --quiet "$work"/*.whl
fi
rm -rf "$work/checkout"

cd "$work/elsewhere"
unset PYTHONPATH
place=$("$bin/python" -c 'import c_diffset; print(c_diffset.__file__)')
case $place in "$work/venv"/*) ;; *) echo "check_wheel: $place is not the wheel" >&2; exit 1 ;; esac
"$bin/c-diffset" finetune --config sd21 --data.source pairs --print_config > config.yaml
"$bin/c-diffset" demo --max_steps 6 --size 32
"$bin/c-diffset" publish demo/run/pipeline --repo me/demo --license mit --evaluation demo/evaluation --dry-run=preview
grep -q 'stable-diffusion-2-1' config.yaml
grep -q '</html>' demo/evaluation/report.html
grep -q 'C-DiffSET\|c_diffset' preview/README.md
echo "check_wheel: the wheel's recipes, demo, report and card are there"
