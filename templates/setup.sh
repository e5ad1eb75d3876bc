#!/bin/sh
# Starts the set-up of this machine, or says how far it is; the same command either way, and a cut line harms nothing.
# usage: setup.sh FOLDER     prints one line: `ready PYTHON`, `failed WHY` or `running WHAT`
cd "$1/setup" || exit 1

if [ -f python ]; then
    echo "ready $(cat python)"
elif [ -f failed ]; then
    echo "failed $(tail -n 1 failed)"
elif [ -f pid ] && kill -0 "$(cat pid)" 2>/dev/null; then
    echo "running $(tail -n 1 log 2>/dev/null)"
else
    # shellcheck disable=SC2016  # expanded by the inner shell
    setsid sh -c '
        echo $$ >pid
        if sh bootstrap.sh .. >out 2>log; then tail -n 1 out >python.part && mv python.part python; else tail -n 1 log >failed; fi
    ' </dev/null >/dev/null 2>&1 &
    echo "running"
fi
