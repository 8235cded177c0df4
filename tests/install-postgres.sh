#!/bin/sh
# Make sure that PostgreSQL 15 with wal2json is on this machine, or say what is missing.
set -u
bin=/usr/lib/postgresql/15/bin
plugin=/usr/lib/postgresql/15/lib/wal2json.so

[ -x "$bin/postgres" ] && [ -e "$plugin" ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing PostgreSQL 15 and wal2json"
    export DEBIAN_FRONTEND=noninteractive
    # The package would make and start a cluster of its own; the tests bring theirs.
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql-15 postgresql-15-wal2json >/dev/null
    [ -x "$bin/postgres" ] && [ -e "$plugin" ] && exit 0
fi

echo "PostgreSQL 15 with wal2json is missing: apt-get install postgresql-15 postgresql-15-wal2json" >&2
echo "Without it the comparisons with the wal2json plugin, test_decoding and pg_recvlogical are left out." >&2
[ "${CI:-}" = true ] && exit 1
exit 0
