#!/bin/sh
# Makes the secrets of the deployment that are missing, and changes none that are there. Needs neither Docker nor Python.
# The folder keeps other users of this machine out; the files in it can be read by the containers' users.
set -eu
cd "$(dirname "$0")"
umask 077
chmod 700 .

random() { od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n'; }

make() { # NAME TEXT
    [ -e "$1" ] || { printf '%s\n' "$2" >"$1" && echo "made secrets/$1"; }
    chmod 644 "$1"
}

make api_key.txt "$(random)"
make db_password.txt "$(random)"
make db_superuser_password.txt "$(random)"
make openai_api_key.txt "${OPENAI_API_KEY:-}"
if ! grep -q '[^[:space:]]' openai_api_key.txt; then
    echo 'secrets/openai_api_key.txt is empty: put your OpenAI API key in it (a local model needs none), then'
    echo '    docker compose restart chat'
fi
