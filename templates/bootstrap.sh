#!/bin/sh
# Makes this machine able to run the trainer, and prints the path of the Python that can, as the last line.
# usage: bootstrap.sh FOLDER    where FOLDER/setup/requirements.txt lists pinned, hashed packages
#
# 1. A Python (3.10 or newer) that has every package already is taken as it is: most images bring torch.
# 2. Otherwise a Python that has torch gets the rest beside it, in env/site, which a wrapper puts first on its path.
#    Not a virtual environment: images keep torch in one of their own, and a second would not see it. torch itself is
#    the image's business: another one of several GB would be paid time.
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

if [ -x env/python ] && complete env/python 2>/dev/null; then
    echo "$PWD/env/python"
    exit 0
fi
seen="" with_torch=""
for name in python3 python python3.13 python3.12 python3.11 python3.10; do
    path=$(command -v "$name" 2>/dev/null) || continue
    if complete "$path" 2>/dev/null; then
        echo "$path"
        exit 0
    fi
    seen="$seen $("$path" --version 2>&1)"
    if [ -z "$with_torch" ] && "$path" -c 'import sys, torch; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then with_torch=$path; fi
done
[ -n "$with_torch" ] || { echo "the image has no Python 3.10 or newer with PyTorch (found:${seen:- none}): set machine.image to one that has" >&2; exit 1; }
mkdir -p env
"$with_torch" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target env/site -r setup/requirements.txt >&2
printf '#!/bin/sh\nPYTHONPATH="%s/env/site" exec "%s" "$@"\n' "$PWD" "$with_torch" >env/python
chmod +x env/python
complete env/python 2>setup/missing || { echo "still missing after the installation: $(cat setup/missing)" >&2; exit 1; }
echo "$PWD/env/python"
