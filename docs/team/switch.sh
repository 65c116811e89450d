#!/bin/sh
# Put another model server in the place of the one that nginx asks, without losing a request:
#     sh switch.sh NEW_ADDRESS OLD_PID
# NEW_ADDRESS is as in 127.0.0.1:5002. A new server that does not answer /ping within two minutes leaves all as it is.
set -eu
new=$1 old=$2
folder=${NGINX_FOLDER:-/etc/nginx} # with nginx.conf, and the model-server.conf that it includes
pid=${NGINX_PID:-/run/nginx.pid}

curl --silent --fail --retry 120 --retry-delay 1 --retry-max-time 120 --retry-all-errors --output /dev/null \
    "http://$new/ping" || { echo "http://$new/ping does not answer: nothing is switched" >&2; exit 1; }

workers=$(pgrep --parent "$(cat "$pid")")
echo "server $new;" >"$folder/model-server.conf.new"
mv "$folder/model-server.conf.new" "$folder/model-server.conf"
nginx -c "$folder/nginx.conf" -q -t
nginx -c "$folder/nginx.conf" -s reload
for worker in $workers; do # each ends once it has answered what it has begun
    while kill -0 "$worker" 2>/dev/null; do sleep 0.2; done
done
kill "$old"
