#!/usr/bin/env bash
# A server and three clients on this machine, each a process of its own, with keys: ./run.sh
# It needs `pip install 'bhfl[flower]'`, and takes minutes: Flower starts processes for every message.
set -euo pipefail
cd "$(dirname "$0")"
port=${PORT:-8443}
[ -f network.yaml ] || bhfl init network
[ -d keys ] || bhfl serve --config network.yaml --make_keys keys
started=()
trap 'kill "${started[@]}" 2>/dev/null; wait' EXIT
for client in 0 1 2; do
    bhfl join --server "127.0.0.1:$port" --key "keys/clients/client-$client" --folder "client-$client" &
    started+=($!)
done
bhfl serve --config network.yaml --listen 127.0.0.1 --port "$port" "$@"
