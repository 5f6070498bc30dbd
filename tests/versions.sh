#!/usr/bin/env bash
# Older versions of transformers, each in a folder of its own beside the environment that it
# borrows torch and numpy from:  tests/versions.sh PYTHON FOLDER
set -euo pipefail
python=$1 folder=$2
install() { # transformers, and the tokenizers and huggingface_hub of its day
    local place=$folder/$1
    [ -e "$place/.installed" ] && return
    rm -rf "$place"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$place" \
        "transformers==$1" "tokenizers==$2" "huggingface_hub==$3"
    touch "$place/.installed"
}
install 4.44.2 0.19.1 0.24.7
install 4.51.3 0.21.1 0.30.2
