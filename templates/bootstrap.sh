#!/bin/sh
# Makes this machine able to run the trainer, and prints the path of the Python that can, as the last line.
# usage: bootstrap.sh FOLDER    where FOLDER/setup/requirements.txt lists pinned, hashed packages
#
# 1. A Python (3.10 or newer) that has every package already is taken as it is: most images bring torch.
# 2. Otherwise a virtual environment over the image's packages gets what is missing. torch itself is the
#    image's business: a second torch of several GB would be paid time.
set -eu
cd "$1"

complete() {
    "$1" - <<'PYTHON'
import importlib.util, sys
needed = ("torch", "diffusers", "transformers", "safetensors", "pydantic", "PIL", "numpy")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
print(" ".join(missing), file=sys.stderr)
sys.exit(bool(missing) or sys.version_info < (3, 10))
PYTHON
}

if [ -x env/bin/python ] && complete env/bin/python 2>/dev/null; then
    echo "$PWD/env/bin/python"
    exit 0
fi
found=""
for name in python3 python python3.13 python3.12 python3.11 python3.10; do
    path=$(command -v "$name" 2>/dev/null) || continue
    if complete "$path" 2>/dev/null; then
        echo "$path"
        exit 0
    fi
    if [ -z "$found" ] && "$path" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then found=$path; fi
done
[ -n "$found" ] || { echo "the image has no Python 3.10 or newer" >&2; exit 1; }
"$found" -c 'import torch' 2>/dev/null || { echo "the image has no PyTorch: set machine.image to one that has" >&2; exit 1; }
"$found" -m venv --system-site-packages env >&2 || { echo "the image cannot make virtual environments (python3-venv is missing)" >&2; exit 1; }
env/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r setup/requirements.txt >&2
complete env/bin/python 2>setup/missing || { echo "still missing after the installation: $(cat setup/missing)" >&2; exit 1; }
echo "$PWD/env/bin/python"
